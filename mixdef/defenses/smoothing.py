"""Weighted smoothing: training noise that is larger for records that fit too well."""

import math

import jax
import jax.numpy as jnp
from absl import logging

from mixdef.core.check import check_choice, check_flag, check_number, is_static
from mixdef.core.estimators import mean_value_and_grad
from mixdef.core.hooks import Defense, defense, take
from mixdef.core.randomness import batch_keys, fold_in_name
from mixdef.core.traits import Traits

_LOG_FLOOR = math.log(1e-30)
_SPREAD_FLOOR = math.exp(-20)
_LEAST_LOG_PROB = -36.0
_OFF = 1e-12  # a sigma up to this value disables the noise


@defense(neutral="weighted_smoothing(0.0)")
def weighted_smoothing(
  sigma=0.1,
  *,
  position="prediction",
  norm="class_zscore",
  measure="mentr",
  use_gap=True,
  factor="literal",
  start=3,
) -> Defense:
  """Add noise to the predictions in training, weighted by how well a record is fitted.

  ```
  q_i = p_i + n_i (p_(1) - p_(2)) (1 - z_i),   n_i ~ N(0, sigma^2 I_K)
  loss_i = -log( |q_iy| / sum_k |q_ik| ),      clipped to [e^-36, 1]
  z_i = (Mentr_i - mean_c) / (std_c + e^-20)   over the members of the record's class c
  Mentr = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k)
  ```

  The gap p_(1) - p_(2) and z carry no gradient. The table z is recomputed after every
  epoch t >= start, in inference mode. Until then no noise is added, so with start = 3
  the first noisy epoch is 4. Inference is unchanged.

  Args:
    sigma: noise on probabilities, at least 0; 0 gives no defense. The official sweep is
      0, 5.8e-11, 1e-5, ..., 0.05, 0.1, 0.2, 1; the default is a choice from it that was
      not tuned here [ours].
    position: where the noise is added. "prediction" as above; "logit": log p + n, then
      renormalized; "input": x + n before mixing; "gradient": on the gradient of the
      mean loss.
    norm: "class_zscore" as above, "global_zscore" over all members, "class_minmax" (m -
      min_c) / (max_c - min_c), or "none": the measure itself.
    measure: "mentr", "log_mentr" or "ce" (-log p_y).
    use_gap: whether to multiply by the gap (the official code); ignored at "input" and
      "gradient", where no prediction is available.
    factor: "literal" 1 - z, or "clip" max(0, 1 - z).
    start: last epoch, from 0, without noise.

  Returns:
    The defense. Its state is `z` [N], `valid` (whether there is a table) and
    `nonfinite`, the members whose measure was not finite at the last refresh; those get
    no noise.

  Raises:
    ValueError: for an unknown option or a number out of range.

  Guarantee: none. The table is computed from the members' outputs without noise, and
    with a norm the noise of a record depends on the other members of its class, so
    `dp_sgd` must give up its epsilon.

  Deviation: "literal" adds more noise than average to records with z > 2, since noise
    is symmetric; this is the behaviour of the code. The official refresh clips logits
    at 20, which log-probabilities do not allow; logs are floored at 1e-30 as there. A
    class of one member has z = 0. Members with a non-finite measure are excluded from
    the moments. The measure uses the record's own label. "gradient" adds to the mean
    gradient what independent noise N(0, sigma^2 (1 - z_i)^2) on each record's gradient
    would add, exactly in distribution, and replaces any other gradient estimator
    [ours]. The paper also clips the gradient's norm at 10: chain `from_optax`.

  Reference: Tan, Xie, Sun, Wang, Mitigating Membership Inference Attacks via Weighted
    Smoothing, 2023.

  >>> str(weighted_smoothing(0.2, norm="none"))
  "weighted_smoothing(sigma=0.2, norm='none')"
  """
  what = "weighted_smoothing"
  check_number(f"{what}: sigma", sigma, 0)
  check_number(f"{what}: start", start, 0)
  if not is_static(start):
    raise ValueError(f"{what}: start is traced; pass a plain number of epochs")
  check_choice(f"{what}: position", position, _POSITIONS)
  check_choice(f"{what}: norm", norm, tuple(_NORMS))
  check_choice(f"{what}: measure", measure, tuple(_MEASURES))
  check_choice(f"{what}: factor", factor, ("literal", "clip"))
  check_flag(f"{what}: use_gap", use_gap)

  def init(key, spec):
    del key
    if spec.epochs <= start + 1:
      logging.warning(
        "weighted_smoothing: no epoch is noisy because start=%d excludes the first %d "
        "of %d epochs; lower start or train longer",
        start,
        start + 1,
        spec.epochs,
      )
    plain = jnp.ones(spec.num_records)  # z = 1 means no noise
    return {"z": plain, "valid": jnp.array(False), "nonfinite": jnp.int32(0)}

  def scale(state, batch):
    """Return the noise's standard deviation of each row [B], 0 without a table."""
    weight = 1 - take(state["z"], batch)
    weight = jnp.maximum(weight, 0) if factor == "clip" else weight
    return jnp.where(state["valid"] & (sigma > _OFF), sigma * weight, 0.0)

  def row_noise(key, batch, shape):
    draw = jax.vmap(lambda row: jax.random.normal(row, shape))
    return draw(batch_keys(key, batch))

  def log_probs(log_probs, state, ctx):
    probs = jax.lax.stop_gradient(jnp.exp(log_probs))
    top = jax.lax.top_k(probs, 2)[0]
    gap = top[:, 0] - top[:, 1] if use_gap else 1.0
    noise = row_noise(ctx.key, ctx.batch, log_probs.shape[1:])
    noise = noise * (scale(state, ctx.batch) * gap)[:, None]
    if position == "logit":
      noisy = jax.nn.log_softmax(log_probs + noise)
    else:
      noisy = project(jnp.exp(log_probs) + noise)
    return jnp.where(state["valid"] & (sigma > _OFF), noisy, log_probs)

  def add_to_input(batch, state, ctx):
    noise = row_noise(ctx.key, batch, batch.x.shape[1:])
    weight = scale(state, batch).reshape((-1,) + (1,) * (batch.x.ndim - 1))
    return batch._replace(x=batch.x + noise * weight)

  def value_and_grad(losses_fn):
    estimate = mean_value_and_grad(losses_fn)

    def run(params, batch, state, ctx):
      value, grads = estimate(params, batch, state, ctx)
      spread = jnp.linalg.norm(scale(state, batch) * batch.weight)
      spread = spread / jnp.maximum(batch.weight.sum(), 1.0)
      leaves, tree = jax.tree.flatten(grads)
      keys = jax.random.split(fold_in_name(ctx.key, "gradient", what), len(leaves))
      noisy = [
        leaf + spread * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
      ]
      return value, jax.tree.unflatten(tree, noisy)

    return run

  def epoch(state, ctx):
    def refresh():
      x, y, _ = ctx.data
      log_probs = ctx.predict(x)
      measured = _MEASURES[measure](log_probs, y)
      member = ctx.members & jnp.isfinite(measured)
      groups = y if norm.startswith("class") else jnp.zeros_like(y)
      clean = jnp.where(member, measured, 0.0)
      z = _NORMS[norm](clean, member, groups, log_probs.shape[-1])
      return {
        "z": jnp.where(member & jnp.isfinite(z), z, 1.0),
        "valid": jnp.array(True),
        "nonfinite": (ctx.members & ~member).sum(dtype=jnp.int32),
      }

    return jax.lax.cond(ctx.epoch >= start, refresh, lambda: state)

  at_input = position == "input"
  traits = Traits(
    order="augment" if at_input else None,
    couples="nothing" if norm == "none" else "records",
    quantities=at_input,
  )
  if is_static(sigma) and sigma <= _OFF:
    return Defense("", traits=traits)
  return Defense(
    "",
    init=init,
    batch=add_to_input if at_input else None,
    log_probs=log_probs if position in ("prediction", "logit") else None,
    value_and_grad=value_and_grad if position == "gradient" else None,
    epoch=epoch,
    traits=traits,
  )


def project(q):
  """Return log(|q| / sum |q|) [B,K], the ratio clipped to [e^-36, 1].

  The gradient flows through the absolute value and the sum.

  >>> [round(float(v), 6) for v in -project(jnp.array([[0.775, -0.175, 0.25]]))[0]]
  [0.437214, 1.925291, 1.568616]
  """
  q = jnp.abs(q)
  return jnp.log(jnp.clip(q / q.sum(-1, keepdims=True), math.exp(_LEAST_LOG_PROB), 1.0))


def _cross_entropy(log_probs, y):
  return -jnp.take_along_axis(log_probs, y[:, None], -1)[:, 0]


def _mentr(log_probs, y):
  """Return the modified entropy; log(1 - p) is log(-expm1(log p)), exact near 1."""
  true = jax.nn.one_hot(y, log_probs.shape[-1])
  rest = -jnp.expm1(log_probs)
  log_rest = jnp.log(jnp.maximum(rest, math.exp(_LOG_FLOOR)))
  log_floored = jnp.maximum(log_probs, _LOG_FLOOR)
  mixed = true * rest * log_floored + (1 - true) * jnp.exp(log_probs) * log_rest
  return -mixed.sum(-1)


def _log_mentr(log_probs, y):
  return jnp.log(jnp.maximum(_mentr(log_probs, y), math.exp(_LOG_FLOOR)))


def _zscore(values, member, groups, num_groups):
  def total(v):
    return jax.ops.segment_sum(jnp.where(member, v, 0.0), groups, num_groups)

  count = jnp.maximum(total(jnp.ones_like(values)), 1.0)
  centred = values - (total(values) / count)[groups]
  spread = jnp.sqrt(total(centred**2) / count)[groups]
  return centred / (spread + _SPREAD_FLOOR)


def _minmax(values, member, groups, num_groups):
  low = jax.ops.segment_min(jnp.where(member, values, jnp.inf), groups, num_groups)
  high = jax.ops.segment_max(jnp.where(member, values, -jnp.inf), groups, num_groups)
  low, high = low[groups], high[groups]
  return (values - low) / (high - low + _SPREAD_FLOOR)


def _as_it_is(values, member, groups, num_groups):
  del member, groups, num_groups
  return values


_POSITIONS = ("prediction", "logit", "input", "gradient")
_MEASURES = {"mentr": _mentr, "log_mentr": _log_mentr, "ce": _cross_entropy}
_NORMS = {
  "class_zscore": _zscore,
  "global_zscore": _zscore,
  "class_minmax": _minmax,
  "none": _as_it_is,
}
