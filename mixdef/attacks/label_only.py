"""Label-only attacks, which masking the confidences does not prevent.

A record that a model has memorized keeps its label under perturbation. The attacks
query the released model and read only the most likely class, so a defense that changes
the confidences but keeps the label changes no score here.

Reference: Choquette-Choo, Tramer, Carlini, Papernot, "Label-Only Membership Inference
Attacks", 2021, arXiv 2007.14321.
"""

from typing import Any

import numpy as np

from mixdef.attacks._logistic import fit_logistic
from mixdef.attacks._querying import hits, records_to_query, shadow_examples
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.attacks.views import (
  Views,
  content_hash,
  identity,
  rotations,
  translations,
)
from mixdef.core import validate
from mixdef.core.check import checked, count, number, optional, seed
from mixdef.core.mapped import blocks_of
from mixdef.core.randomness import check_seed
from mixdef.core.registry import attack
from mixdef.data import to_float
from mixdef.training import Ensemble

_BLOCK = 2**21  # numbers per batch of regressions


@attack(family="label_only", reads="models")
@checked(sigma=number(above=0), flips=number(above=0), draws=count(), seed=seed)
def label_only_noise(
  ensemble: Ensemble,
  *,
  target: int,
  records: Any = None,
  sigma: float = 0.05,
  flips: float = 3,
  draws: int = 250,
  seed: int = 0,
) -> np.ndarray:
  """Score by the fraction of noisy copies that keep the record's label.

      score = (1/n) sum_k 1[argmax f(x + delta_k) = y],  0 if argmax f(x) != y
      delta_k ~ N(0, sigma^2 I)

  If all records hold only 0 and 1, each entry is flipped with probability flips /
  dimension instead. A record's noise is determined by its content: it is the same for
  every model.

  Args:
    ensemble: S models.
    target: index of the attacked model.
    records: int [R], the records to query; default every audited one.
    sigma: standard deviation of the noise on the model's scale (images in [0, 1]); 0.02
      to 0.1 is customary.
    flips: mean number of flipped entries of binary records; 1 to 10 is customary.
    draws: n, copies per record. The score's standard error is at most 1 / (2 sqrt n).
    seed: random seed of the noise.

  Returns:
    Scores [N] in [0, 1]; NaN where not queried.

  Raises:
    ValueError: for an invalid target or record, or numbers out of range.
    Unavailable: if the records are categorical integers, such as token ids.

  Deviation: the official code draws 2,500 to 5,000 copies and selects the radius on the
    source model; here it is an argument. Copies are not clipped to the range of the
    data.

  Reference: Eq. 2 of AdaMixup, 2025, arXiv 2501.02182, as reconstructed; and the
    module's.
  """
  rows = records_to_query(ensemble, target, records)
  run, data = ensemble[target], ensemble.data
  validate.quantities(data.x, "label_only_noise", error=Unavailable)
  binary = _is_binary(data.x)

  def noisy(x):
    clean = to_float(x)
    shape = (draws, *x.shape[1:])
    copies = np.empty((len(x), *shape), np.float32)
    for copy, record, content in zip(copies, clean, content_hash(x), strict=True):
      random = np.random.default_rng([check_seed(seed), content])
      if binary:
        flipped = random.random(shape, np.float32) < flips / record.size
        copy[:] = np.abs(record - flipped)
      else:
        copy[:] = record + np.float32(sigma) * random.standard_normal(shape, np.float32)
    return copies

  scores = np.full(len(data), np.nan)
  right = hits(run, rows, identity)[:, 0]
  scores[rows] = 0.0
  scores[rows[right]] = hits(run, rows[right], noisy).mean(1)
  return scores


@attack(family="label_only", reads="models")
@checked(distance=count(), shadow=optional(count(0)))
def label_only_translation(
  ensemble: Ensemble,
  *,
  target: int,
  records: Any = None,
  distance: int = 1,
  shadow: int | None = None,
) -> np.ndarray:
  """Score by which shifted copies of an image keep its label.

  The 4d + 1 copies of `views.translations` give 4d + 1 bits. One attack model per
  class, trained on the bits and membership of one shadow model, maps the target's bits
  to log-odds.

  Args:
    ensemble: S >= 2 models of images.
    target: index of the attacked model.
    records: int [R], the records to query; default every audited one.
    distance: d in pixels; the official code uses 1.
    shadow: the model that the attack is trained on, never the target; default the first
      eligible one after it, see `shadows.one_shadow`. At most 5,000 of its records are
      queried.

  Returns:
    Scores [N], log-odds of membership; NaN where not queried.

  Raises:
    ValueError: for an invalid target or record, or a shadow that cannot be used.
    Unavailable: if the records are not images, or no model can be the shadow.

  Deviation: the attack model is a logistic regression with C = 1, not the official
    10-10-2 network trained for one epoch at batch size 1: it has the same loss on
    logits, but no learning rate, no random weights and no dependence on the order of
    records. Nothing is selected on the target, including the distance. A class without
    members or without non-members of the shadow uses the model of all classes.
  """
  return _transferred(ensemble, target, records, shadow, translations(distance))


@attack(family="label_only", reads="models")
@checked(degrees=count(1, 180), shadow=optional(count(0)))
def label_only_rotation(
  ensemble: Ensemble,
  *,
  target: int,
  records: Any = None,
  degrees: int = 9,
  shadow: int | None = None,
) -> np.ndarray:
  """Score by which rotated copies of an image keep its label.

  This is `label_only_translation` with the 2r + 1 copies of `views.rotations`.

  Args:
    ensemble: S >= 2 models of images.
    target: index of the attacked model.
    records: int [R], the records to query; default every audited one.
    degrees: r, the largest angle; the official code uses 9.
    shadow: the model that the attack is trained on, never the target; default the first
      eligible one after it, see `shadows.one_shadow`. At most 5,000 of its records are
      queried.

  Returns:
    Scores [N], log-odds of membership; NaN where not queried.

  Raises:
    ValueError: for an invalid target or record, or a shadow that cannot be used.
    Unavailable: if the records are not images, or no model can be the shadow.

  Deviation: as in `label_only_translation`; the paper queries only 0 and +-r, the
    official code the whole grid, as here.
  """
  return _transferred(ensemble, target, records, shadow, rotations(degrees))


@attack(family="label_only", reads="signals")
@checked(c=number(above=0))
def label_only_logreg(signals: Signals, *, target: int, c: float = 1.0) -> np.ndarray:
  """Score by one logistic regression per record on the correctness of its Q views.

      score = w_i . h_i + b_i,   h_iq = 1[argmax f(view q of i) = y_i]

  w_i and b_i are fitted to the bits of the reference models, labelled by whether they
  trained on record i, with penalty |w|^2 / (2 C).

  Args:
    signals: signals with `correct`, of Q views; 18 (`views.flips_and_shifts`) are
      customary. With one view the score is the gap between both kinds of models.
    target: index of the attacked model.
    c: C > 0. The official code tunes it; never tune it on the target.

  Returns:
    Scores [N], log-odds of membership; NaN where no reference is in or none is out, or
    not audited.

  Raises:
    ValueError: for an invalid target, C not above 0, or signals built from phi alone.

  Reference: Aerni, Zhang, Tramer, "Evaluations of Machine Learning Privacy Defenses are
    Misleading", 2024, arXiv 2404.17399.

  >>> logits = np.array([[[2, 0]], [[2, 0]], [[2, 0]], [[0, 2]], [[0, 2]]])
  >>> members = np.array([[False], [True], [True], [False], [False]])
  >>> signals = Signals.from_logits(logits, [0], members)
  >>> label_only_logreg(signals, target=0).round(4)
  array([0.4011])
  """
  usable = signals.references(target)
  bits = signals.statistic("correct")
  members = signals.members
  both = (usable & members).any(0) & (usable & ~members).any(0) & signals.audited
  scores = np.full(bits.shape[1], np.nan)
  models, _, queries = bits.shape
  size = max(1, _BLOCK // (models * (queries + 1)))
  rows = np.flatnonzero(both)
  for block in (rows[i : i + size] for i in range(0, len(rows), size)):
    features = bits[:, block].transpose(1, 0, 2)
    solution = fit_logistic(features, members[:, block].T, usable[:, block].T, c=c)
    scores[block] = _log_odds(bits[target, block], solution)
  return scores


def _transferred(ensemble, target, records, shadow, views: Views):
  """Train one attack model per class on the shadow's bits; score the target's."""
  rows = records_to_query(ensemble, target, records)
  shadow, fit, member = shadow_examples(ensemble, target, shadow)
  data = ensemble.data
  label = data.y[fit]
  bits = hits(ensemble[shadow], fit, views)

  def train(use):
    return fit_logistic(bits[None], member[None], use[None])

  overall = train(np.ones(len(fit), bool))
  queried = hits(ensemble[target], rows, views)
  scores = np.full(len(data), np.nan)
  for y in np.unique(data.y[rows]):
    of_class, mine = label == y, data.y[rows] == y
    both = 0 < member[of_class].sum() < of_class.sum()
    solution = train(of_class) if both else overall
    scores[rows[mine]] = _log_odds(queried[mine], solution)
  return scores


def _log_odds(bits, solution):
  return (bits * solution[:, :-1]).sum(1) + solution[:, -1]


def _is_binary(x):
  """Return whether all entries are 0 or 1 on the model's scale."""
  one = 255 if x.dtype == np.uint8 else 1
  return all(((block == 0) | (block == one)).all() for block in blocks_of(x))
