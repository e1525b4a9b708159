"""Multi-layer perceptron."""

import flax.linen as nn
import jax

from mixdef.core.check import check_count
from mixdef.core.registry import model
from mixdef.models.layers import check_fields, check_quantities


class MLP(nn.Module):
  """Dense layers with ReLU; created by `mlp`."""

  widths: tuple[int, ...] = (256, 128)
  num_classes: int = 10
  dropout: float = 0.0

  def __post_init__(self):
    for width in self.widths:
      check_count("widths", width)
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]` for `x [B,...]`; `weight` has no effect."""
    del weight
    check_quantities(x, "mlp")
    x = x.reshape(x.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
      x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes)(x)


@model
def mlp(*widths: int, num_classes: int = 10, dropout: float = 0.0) -> MLP:
  """Create a multi-layer perceptron for records of numbers, of any shape.

  Args:
    *widths: units of each hidden layer; defaults to 256 and 128.
    num_classes: K.
    dropout: rate in [0,1) after each hidden layer, in training only.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if a width is not positive or a rate is out of range.

  >>> mlp(64).widths
  (64,)
  """
  return MLP(widths or MLP.widths, num_classes=num_classes, dropout=dropout)
