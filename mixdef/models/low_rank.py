"""Low-rank changes of kernels, and the factors that watched layers show for them."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from mixdef.models.layer_calls import watch, watcher


class LowRank(NamedTuple):
  """A change of a kernel, W' = W + scale A B.

  Attributes:
    start: W, of any shape.
    scale: of the change.
    a: A [inputs,rank].
    b: B [rank,outputs].
    kernel: W'.
  """

  start: Any
  scale: float
  a: Any
  b: Any
  kernel: Any


def changed(start: Any, scale: float, a: Any, b: Any) -> LowRank:
  """Return the change of a kernel, as a matrix whatever its axes.

  >>> import jax.numpy as jnp
  >>> changed(jnp.ones((1, 2)), 0.5, jnp.ones((1, 3)), jnp.ones((3, 2))).kernel
  Array([[2.5, 2.5]], dtype=float32)
  """
  return LowRank(start, scale, a, b, start + scale * (a @ b).reshape(start.shape))


def call_changed(run: Callable, changes: Collection[LowRank]) -> Any:
  """Call a model whose layers show their factors to a handler that watches them.

  Args:
    run: calls the model, whose kernels are those of the changes.
    changes: of its kernels. A watched layer with such a kernel also holds "NAME/a" and
      "NAME/b", takes them when it is applied alone, and has them in `changes`.

  Returns:
    What `run` returns.
  """
  outer = watcher()
  if outer is None:
    return run()
  found = {id(change.kernel): change for change in changes}

  def handle(layer, call):
    own = {
      name: found[id(leaf)] for name, leaf in layer.params.items() if id(leaf) in found
    }
    factors = {f"{name}/a": change.a for name, change in own.items()}
    factors |= {f"{name}/b": change.b for name, change in own.items()}

    def alone(params, x):
      whole = {name: params[name] for name in layer.params}
      for name, (start, scale, *_) in own.items():
        of = changed(start, scale, params[f"{name}/a"], params[f"{name}/b"])
        whole[name] = of.kernel
      return layer.alone(whole, x)

    params = {**layer.params, **factors}
    return outer(layer._replace(params=params, alone=alone, changes=own), call)

  with watch(handle):
    return run()
