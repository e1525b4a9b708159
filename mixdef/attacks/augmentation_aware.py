"""Score the loss on inputs and labels augmented as in training."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.attacks._per_record import HIDDEN
from mixdef.attacks._querying import records_to_query, shadow_examples
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.views import content_hash
from mixdef.core import validate
from mixdef.core.check import checked, count, one_of, optional, seed
from mixdef.core.hooks import Batch
from mixdef.core.randomness import random_key, row_keys
from mixdef.core.registry import attack
from mixdef.data import to_float
from mixdef.metrics.roc import auc
from mixdef.training import Ensemble

AGGREGATES = {
  "mean": np.mean,
  "median": np.median,
  "min": np.min,
  "max": np.max,
  "std": np.std,
}
"""Ways to aggregate a record's losses; each is smaller for members."""

_PARTNERS = 15  # other records in the batch that the hook is given, per audited record
_RECORDS = 256  # augmented at once
_BATCHES = 32  # batches side by side, which bounds the memory of their partners


@attack(family="trained", reads="models")
@checked(
  repeats=count(),
  aggregate=optional(one_of(*AGGREGATES)),
  shadow=optional(count(0)),
  seed=seed,
)
def augmentation_aware(
  ensemble: Ensemble,
  *,
  target: int,
  records: Any = None,
  augment: Callable | None = None,
  repeats: int = 20,
  aggregate: str | None = None,
  shadow: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Score by the negated loss on copies that are augmented as in training.

      l_r(x, y) = -sum_k y~_k log p_k(x~),   (x~, y~) = copy r of (x, y)
      score = -agg_r l_r

  A defense that trains on augmented records can look private on the original records.
  For mixup, the loss is lam CE(y) + (1 - lam) CE(y_partner) at the mixed input. A
  record's copies are determined by its content and, if the defense keeps a table, by
  its row of that table: they are the same for every model and do not depend on which
  other records are queried.

  Args:
    ensemble: S >= 2 models.
    target: index of the attacked model.
    records: int [R], the records to query; default every audited one.
    augment: `(x [...], y [K], key) -> (x', y')` for one record on the model's scale and
      its label as a distribution; traced. The default is the models' own defense: its
      `batch` hook is given each record in a batch with 15 other audited records, as in
      the last epoch and with the state of the shadow, because an attacker does not see
      the target's state.
    repeats: number of copies per record.
    aggregate: one of `AGGREGATES`; the default is the one with the best AUC on the
      shadow, whose members are known, never on the target.
    shadow: index of another model; default the first eligible one after the target, see
      `shadows.one_shadow`. At most 5,000 of its records are queried.
    seed: random seed of the copies.

  Returns:
    Scores [N] in nats; NaN where not queried.

  Raises:
    ValueError: for an invalid target, record or aggregate, repeats below 1, or a shadow
      that cannot be used.
    Unavailable: without `augment`, for a defense that does not change batches, or if no
      model can be the shadow.

  Deviation: partners are drawn from the audited records, not from the training batch;
    one copy in 16 of a mixed record is unmixed, like the fixed points of mixup's
    permutation. The published code selects the best aggregate on the target.

  Reference: Kaya, Dumitras, "When Does Data Augmentation Help With Membership
    Inference Attacks?", 2021 (the attack); Yu, Zhang, Chen, Yin, Liu, "How Does Data
    Augmentation Affect Privacy in Machine Learning?", 2021, arXiv 2007.10567.
  """
  rows = records_to_query(ensemble, target, records)
  shadow, fit, member = shadow_examples(ensemble, target, shadow)
  copies = _maker(ensemble, shadow, augment)

  def losses(model, rows):
    run = ensemble[model]
    out = np.zeros((len(rows), repeats))
    for first in range(0, len(rows), _RECORDS):
      block = slice(first, first + _RECORDS)
      content = jnp.asarray(content_hash(ensemble.data.x[rows[block]]))
      for r in range(repeats):
        key = jax.random.fold_in(random_key(seed), r)
        x, y = copies(rows[block], key, content)
        out[block, r] = _cross_entropy(run.log_probs(x, checked=False), np.asarray(y))
    return out

  if aggregate is None:
    known = losses(shadow, fit)
    areas = {name: _area(-agg(known, 1), member) for name, agg in AGGREGATES.items()}
    aggregate = max(areas, key=areas.__getitem__)
  scores = np.full(len(ensemble.data), np.nan)
  scores[rows] = -AGGREGATES[aggregate](losses(target, rows), 1)
  return scores


def _maker(ensemble, shadow, augment):
  """Return `(rows [R], key, content [R]) -> x' [R,...], y' [R,K]`."""
  data, run = ensemble.data, ensemble[shadow]
  validate.in_memory(data.x, "augmentation_aware", error=Unavailable)
  x, y = jnp.asarray(data.x), jnp.asarray(data.y)
  if augment is not None:
    classes = data.num_classes
    return lambda rows, *draw: _augmented(augment, classes, x[rows], y[rows], *draw)
  hook, plan, state = run.learner.batch, ensemble.plan, run.state.defense
  if hook is None:
    raise Unavailable(
      "the defense of the models does not change batches: use loss_threshold, which "
      "is then the same attack"
    )
  pool = np.flatnonzero(data.audited)
  # Ordered by content, so that partners do not depend on the order of the records.
  pool = jnp.asarray(pool[np.argsort(content_hash(data.x, pool), kind="stable")])
  return lambda *args: _defended(hook, plan, state, x, y, pool, *args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _augmented(augment, classes, x, y, key, content):
  keys = row_keys(key, content)
  return jax.vmap(augment)(to_float(x), jax.nn.one_hot(y, classes), keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _defended(hook, plan, state, x, y, pool, rows, key, content):
  def one(own):
    row, key = own
    draw_key, hook_key = jax.random.split(key)
    others = jax.random.randint(draw_key, (_PARTNERS,), 0, len(pool))
    index = jnp.concatenate([row[None], pool[others]])
    weight = jnp.ones(len(index))
    batch = Batch(
      x=to_float(x[index]),
      y=jax.nn.one_hot(y[index], plan.num_classes),
      index=index,
      weight=weight,
      auxiliary=jnp.zeros(len(index)),
      partner=index,
      lam=weight,
    )
    last = jnp.int32(plan.epochs - 1)
    step = jnp.int32(plan.epochs * plan.steps_per_epoch - 1)
    batch = hook(batch, state, plan.position(hook_key, step, last))
    place = jnp.argmax(batch.index == row)  # a hook may reorder the rows
    return batch.x[place], batch.y[place]

  return jax.lax.map(one, (rows, row_keys(key, content)), batch_size=_BATCHES)


def _cross_entropy(log_probs, y):
  """Return losses [R] in float64, renormalized so that those near 0 do not tie."""
  from scipy.special import log_softmax

  f = log_softmax(np.asarray(log_probs, np.float64), axis=-1)
  return -(y * np.maximum(f, HIDDEN)).sum(-1)


def _area(scores, member):
  return auc(scores, member)
