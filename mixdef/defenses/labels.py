"""Transformations of the label rows."""

import math

import jax
import jax.numpy as jnp

from mixdef.core.check import check_flag, check_number, is_static
from mixdef.core.hooks import Defense, defense
from mixdef.core.randomness import batch_keys
from mixdef.core.traits import Traits


@defense(neutral="label_smoothing(0.0)")
def label_smoothing(epsilon=0.1) -> Defense:
  """Mix every label row with the uniform distribution.

  ```
  y' = (1 - epsilon) y + epsilon / K
  ```

  Args:
    epsilon: weight of the uniform distribution in [0, 1]; 0 changes nothing. 0.1 is the
      usual value; Kaya and Dumitras sweep 0.01..0.995.

  Returns:
    The defense. It acts after mixing, with which it commutes.

  Guarantee: none; smoothing can make membership easier to infer.

  Reference: Szegedy et al., Rethinking the Inception Architecture for Computer Vision,
    2016, arXiv 1512.00567; Kaya, Dumitras, When Does Data Augmentation Help With
    Membership Inference Attacks?, 2021.

  >>> str(label_smoothing(0.2))
  'label_smoothing(epsilon=0.2)'
  """
  check_number("label_smoothing: epsilon", epsilon, 0, 1)

  def batch(batch, state, ctx):
    del state, ctx
    return batch._replace(y=_smooth(batch.y, epsilon))

  return Defense("", batch=batch, traits=Traits(order="label"))


@defense(neutral="disturb_label(0.0)")
def disturb_label(alpha=0.1) -> Defense:
  """Replace some labels by random ones, drawn anew at every visit.

  ```
  y' = y with probability 1 - alpha, else a class drawn uniformly from all K
  ```

  The true class is kept with probability 1 - alpha (K - 1) / K, and each other class
  has probability alpha / K: in expectation this is label smoothing by alpha.

  Args:
    alpha: probability in [0, 1]; 0 changes nothing. Kaya and Dumitras sweep 0.01..0.99,
      which includes the default [ours]. May be traced.

  Returns:
    The defense. The random numbers of a record are determined by its id.

  Guarantee: none.

  Deviation: it acts after mixing, and the label of a mixed row is replaced as a whole
    [ours]. Auxiliary rows are treated in the same way, so that they stay comparable
    with the members.

  Reference: Xie, Wang, Wei, Wang, Tian, DisturbLabel: Regularizing CNN on the Loss
    Layer, 2016, arXiv 1605.00055; Kaya, Dumitras, When Does Data Augmentation Help
    With Membership Inference Attacks?, 2021.

  >>> str(disturb_label(0.5))
  'disturb_label(alpha=0.5)'
  """
  check_number("disturb_label: alpha", alpha, 0, 1)

  def batch(batch, state, ctx):
    del state

    def one(key, y):
      coin_key, class_key = jax.random.split(key)
      drawn = jax.random.randint(class_key, (), 0, len(y))
      other = jax.nn.one_hot(drawn, len(y), dtype=y.dtype)
      return jnp.where(jax.random.bernoulli(coin_key, alpha), other, y)

    keys = batch_keys(ctx.key, batch)
    return batch._replace(y=jax.vmap(one)(keys, batch.y))

  return Defense("", batch=batch, traits=Traits(order="label"))


@defense(neutral="hamp_label(0.0)")
def hamp_label(gamma=0.95, *, official_grid=False) -> Defense:
  """Train on labels of high entropy, the first part of HAMP.

  ```
  y' = p on the true class, (1 - p) / (K - 1) elsewhere
  p  = the largest with entropy(y') >= gamma log K
  ```

  This is label smoothing by epsilon = (1 - p) K / (K - 1). It is applied to a soft or
  mixed label in the same way, whose entropy is then at least that of a hard label.

  Args:
    gamma: fraction of the largest entropy, in [0, 1]; 0 changes nothing, 1 is the
      uniform distribution. Official: CIFAR-10 0.95 (the default), Purchase 0.8, Texas
      0.6, CIFAR-100 and Location 0.5; Aerni et al. use 0.99968377 on CIFAR-10.
    official_grid: whether to take p from 1, 0.99, 0.98, ... as the official code does;
      otherwise p is the exact root, as in Aerni et al.

  Returns:
    The defense. It acts after mixing, with which it commutes.

  Raises:
    ValueError: for a gamma that is out of range or traced, because p is solved for
      before tracing.

  Guarantee: none.

  Deviation: if the grid has no such p of at least 1 / K, p is 1 / K [ours].

  Reference: Chen, Pattabiraman, Overconfidence is a Dangerous Thing: Mitigating
    Membership Inference Attacks by Enforcing Less Confident Prediction, 2024, arXiv
    2307.01610; Aerni, Zhang, Tramer, Evaluations of Machine Learning Privacy Defenses
    are Misleading, 2024, arXiv 2404.17399.

  >>> round(label_confidence(0.95, 10), 5), label_confidence(0.95, 10, grid=True)
  (0.26981, 0.26)
  """
  check_number("hamp_label: gamma", gamma, 0, 1)
  check_flag("hamp_label: official_grid", official_grid)
  if not is_static(gamma):
    raise ValueError(
      "hamp_label: gamma is traced; sweep label_smoothing, which is equivalent, or "
      "pass a plain number"
    )

  def batch(batch, state, ctx):
    del state, ctx
    classes = batch.y.shape[-1]
    p = label_confidence(gamma, classes, grid=official_grid)
    return batch._replace(y=_smooth(batch.y, (1 - p) * classes / (classes - 1)))

  return Defense("", batch=None if gamma == 0 else batch, traits=Traits(order="label"))


def label_confidence(gamma, classes, *, grid=False) -> float:
  """Return the largest p in [1/K, 1] whose label row has entropy gamma log K.

  Args:
    gamma: fraction of the largest entropy, in (0, 1].
    classes: K, at least 2.
    grid: whether to round p down to hundredths, but not below 1/K.
  """

  def entropy(p):
    return -p * math.log(p) - (1 - p) * math.log((1 - p) / (classes - 1))

  low, high = 1 / classes, 1.0  # the entropy falls from log K to 0 between them
  for _ in range(50):  # halvings to the precision of a double, still below 1
    middle = (low + high) / 2
    if entropy(middle) >= gamma * math.log(classes):
      low = middle
    else:
      high = middle
  # A root that is an exact hundredth may be a rounding error below it.
  return max(math.floor(100 * low + 1e-9) / 100, 1 / classes) if grid else low


def _smooth(y, epsilon):
  return (1 - epsilon) * y + epsilon / y.shape[-1]
