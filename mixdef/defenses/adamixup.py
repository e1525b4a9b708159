"""AdaMixup: mixing that decays over the epochs, with the dominant record's label."""

import jax
import jax.numpy as jnp
from absl import logging

from mixdef.core.check import check_choice, check_number, is_static
from mixdef.core.hooks import Defense, defense, weighted_mean
from mixdef.core.traits import Traits
from mixdef.defenses.mixing import draw_share, mix, shuffle

_PATIENT_FACTOR = 0.9  # factor of m in `performance`; 0.1 takes 22 such epochs


@defense(neutral="adamixup('literal', end=1.0)")
def adamixup(
  reading="strength", *, schedule="floor", start=1.0, end=0.1, label="hard"
) -> Defense:
  """Mix records with a coefficient that decays over the epochs; keep a hard label.

  ```
  lam_t = start (1 - t / T)                        (Eq. 3), t = 0..T-1
  x_mix = lam x_i + (1 - lam) x_j                  (Eq. 4)
  y_mix = y_i if lam >= 0.5 else y_j               (Eq. 5), the tie goes to y_i
  ```

  Interpretations of the coefficient, where m is the weight of the minor record:

  ```
  strength      m = lam_t / 2, label y_i
  literal       lam = lam_t as printed: m = min(lam_t, 1 - lam_t), largest half-way
  beta          m = min(b, 1 - b), b ~ Beta(lam_t, lam_t) a step, label y_i
  probability   a row is mixed with probability lam_t, then m = min(b, 1 - b), b uniform
  performance   m = start / 2, times 0.9 (down to end / 2) after every epoch whose gap,
                train minus reference accuracy, is not below that of the epoch before
  ```

  Args:
    reading: one of the five interpretations above.
    schedule: "floor" is max(end, lam_t), "to_min" is the straight line from start to
      end that ends in the last epoch, "raw" is lam_t. `performance` has no schedule.
    start: lam_0 in (0, 1].
    end: last lam in [0, start]; "raw" ignores it.
    label: "hard" (the paper) takes the dominant record's whole label row; "soft" mixes
      the labels as mixup does, as an ablation.

  Returns:
    The defense. `performance` needs auxiliary records.

  Raises:
    ValueError: for an unknown option, a number out of range, or a schedule that
      `performance` would not use.

  Guarantee: none. For m = 0.5 the label is ambiguous between two records; in the last
    epochs the records are almost unmixed.

  Deviation: the published text has no formulas; Eqs. 3-5 are reconstructed, and the
    text describes a large lam as strong mixing, which contradicts Eq. 4, hence the two
    interpretations [ours]. "floor" keeps Eq. 3 and ends at the printed 0.1; it reaches
    this only for T >= start / end epochs, otherwise `init` logs a warning.
    `performance` is mentioned only in the abstract and is defined here [ours]: the gap
    is measured after each epoch in inference mode. Partners are drawn within the batch.

  Reference: AdaMixup, 2025, arXiv 2501.02182. The AdaMixUp of Guo, Mao, Zhang, 2019,
    is another method.

  >>> str(adamixup(end=0.2))
  'adamixup(end=0.2)'
  """
  check_choice("adamixup: reading", reading, ("performance", *_SHARES))
  check_choice("adamixup: schedule", schedule, tuple(_SCHEDULES))
  check_choice("adamixup: label", label, ("hard", "soft"))
  check_number("adamixup: start", start, 0, 1, above=0)
  check_number("adamixup: end", end, 0, start if is_static(start) else 1)
  adaptive = reading == "performance"
  if adaptive and schedule != "floor":
    raise ValueError(
      "adamixup: reading 'performance' follows the accuracy gap, not "
      f"schedule={schedule!r}: drop schedule"
    )

  def init(key, spec):
    del key
    if adaptive:
      return {"m": start / 2, "gap": jnp.inf}
    if schedule == "floor" and _falls_short(start, end, spec.epochs):
      logging.warning(
        "adamixup: in %d epochs schedule='floor' ends at %.3g, not at end=%g; use "
        "schedule='to_min' or at least %.3g epochs",
        spec.epochs,
        start / spec.epochs,
        end,
        start / end if end else jnp.inf,
      )
    return ()

  def batch(batch, state, ctx):
    share_key, pair_key = jax.random.split(ctx.key)
    if adaptive:
      share = 1 - state["m"]
    else:
      rate = _SCHEDULES[schedule](start, end, ctx)
      share = _SHARES[reading](rate, share_key, batch.weight.shape)
    row = shuffle(pair_key, batch.weight)
    mixed = mix(batch, row, share)
    if label == "soft":
      return mixed
    dominant = (mixed.lam >= 0.5)[:, None]
    return mixed._replace(y=jnp.where(dominant, batch.y, batch.y[row]))

  def epoch(state, ctx):
    hits = (ctx.predict(ctx.data.x).argmax(-1) == ctx.data.y).astype(jnp.float32)
    train, held_out = (
      weighted_mean(hits, rows.astype(jnp.float32))
      for rows in (ctx.members, ctx.data.auxiliary)
    )
    gap = train - held_out
    less = jnp.maximum(state["m"] * _PATIENT_FACTOR, end / 2)
    return {"m": jnp.where(gap < state["gap"], state["m"], less), "gap": gap}

  return Defense(
    "",
    init=init,
    batch=batch,
    epoch=epoch if adaptive else None,
    traits=Traits(
      order="mix", couples="records", needs_auxiliary=adaptive, quantities=True
    ),
  )


def _falls_short(start, end, epochs):
  return is_static(start) and is_static(end) and start / epochs > end * (1 + 1e-9)


def _raw(start, end, ctx):
  return start * (1 - ctx.progress)


def _floor(start, end, ctx):
  return jnp.maximum(_raw(start, end, ctx), end)


def _to_min(start, end, ctx):
  return start + (end - start) * ctx.epoch / jnp.maximum(ctx.epochs - 1, 1)


_SCHEDULES = {"floor": _floor, "to_min": _to_min, "raw": _raw}


def _strength(rate, key, shape):
  del key, shape
  return 1 - rate / 2


def _literal(rate, key, shape):
  del key, shape
  return rate


def _beta(rate, key, shape):
  del shape
  return _major(draw_share(key, rate, ()))


def _probability(rate, key, shape):
  coin_key, share_key = jax.random.split(key)
  share = _major(jax.random.uniform(share_key, shape))
  return jnp.where(jax.random.uniform(coin_key, shape) < rate, share, 1.0)


def _major(share):
  return jnp.maximum(share, 1 - share)


_SHARES = {
  "strength": _strength,
  "literal": _literal,
  "beta": _beta,
  "probability": _probability,
}
