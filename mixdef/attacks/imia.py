"""Attacks with imitators: models that were trained to answer as the released one.

Some ten imitators take the place of many shadow models. They are trained with
`mixdef.imitation`, on a random part of the candidates each, with the released model as
their teacher. A record's outputs of the imitators without it are compared with the
release; those of models with it come from ordinary models of the same recipe.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._gaussians import fit
from mixdef.attacks._moments import Moments, moments
from mixdef.attacks._sides import Side, of_release, read_side
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.lira_calibrated import surprise, t_statistic
from mixdef.core.check import check_choice

_LEAST = 0.1  # of the mean gap, the least gap of a record


class Gaps(NamedTuple):
  """The gap between models with and without each record.

  Attributes:
    raw: [N, Q], mu_in - mu_out; NaN if either side has no model.
    shrunk: [N, Q], the gap d* that is used.
    middle: [N, Q], (mu_in + mu_out)/2.
    floored: bool [N], whether d* was raised to a tenth of the mean gap in some view.
  """

  raw: np.ndarray
  shrunk: np.ndarray
  middle: np.ndarray
  floored: np.ndarray


def imia(
  phi: ArrayLike, inside: Side, out: Side, *, form: str = "shrunk"
) -> np.ndarray:
  """Score by a log-likelihood ratio of equal variances, from few reference models.

      clamp:   (phi - mu_out)^2 - (phi - mu_in)^2,  and 0 where d < 0 on average over
               the views
      shrunk:  2 d* (phi - (mu_in + mu_out)/2)

  d* shrinks the gap d = mu_in - mu_out of a record towards the mean gap of all records:

      d*    = (d/w + dbar/tau^2)/(1/w + 1/tau^2),  at least dbar/10
      w     = v_in/n_in + v_out/n_out,  v the pooled variance within records
      tau^2 = max(0, var_i d_i - mean w_i)

  With 5 to 10 models a negative gap is mostly noise. The clamp declares these records
  uninformative and ties them at 0, above every negative score; `imia_coverage` counts
  them.

  Args:
    phi: logit-scaled confidence [N] or [N, Q] of the release.
    inside: models of which those that trained on a record are read: ordinary models of
      the recipe.
    out: models of which those that did not train on a record are read: imitators.
    form: "shrunk" or "clamp".

  Returns:
    Scores [N], mean over views; NaN where either side has no model, or not audited.

  Raises:
    Unavailable: if the mean gap is not positive, so that the attack has no direction,
      or no record has models on both sides.
    ValueError: for arrays of other shapes, or an unknown form.

  Deviation: formula and sides of the clamp are those of the official code, adaptive
    form [verified]; its paper was not available. The code reads the first ten models of
    either side, this function all that it is given, and the code has no check of the
    direction. `shrunk`, the default, is ours, since the clamp distorts the ROC [ours].
    The non-adaptive form with pivots is left out.

  Reference: Imitative membership inference (IMIA), USENIX Security 2026, arXiv
    2509.06796.

  >>> inside = np.array([[2.], [3], [4]]), np.ones((3, 1), bool)
  >>> out = np.array([[0.], [1], [-1]]), np.zeros((3, 1), bool)
  >>> imia([2.5], inside, out, form="clamp")
  array([6.])
  """
  check_choice("imia: form", form, ("shrunk", "clamp"))
  phi = of_release(phi)
  gaps = _gaps(phi, inside, out)
  if form == "shrunk":
    return (2 * gaps.shrunk * (phi - gaps.middle)).mean(1)
  scores = (2 * gaps.raw * (phi - gaps.middle)).mean(1)
  return np.where(gaps.raw.mean(1) < 0, 0.0, scores)


def imia_coverage(phi: ArrayLike, inside: Side, out: Side) -> dict[str, int]:
  """Count the audited records that `imia` cannot treat as the others.

  Args:
    phi: as for `imia`.
    inside: as for `imia`.
    out: as for `imia`.

  Returns:
    Counts. clamped: records whose gap, the mean over views, is negative, which the
    clamp ties at 0; floored: records whose shrunk gap was raised to a tenth of the mean
    gap in some view; excluded: records without models on either side (score NaN).
  """
  phi = of_release(phi)
  gaps = _gaps(phi, inside, out)
  audited = read_side(inside, phi)[2] & read_side(out, phi)[2]
  return {
    "clamped": int((gaps.raw.mean(1) < 0).sum()),
    "floored": int(gaps.floored.sum()),
    "excluded": int((np.isnan(gaps.raw).any(1) & audited).sum()),
  }


def glira(phi: ArrayLike, out: Side) -> np.ndarray:
  """Score by -log p of a t test against imitators without the record.

  The imitators may have another architecture than the release. The test is that of
  `lira_calibrated`.

  Args:
    phi: logit-scaled confidence [N] or [N, Q] of the release.
    out: imitators, of which those that did not train on a record are read.

  Returns:
    Scores [N] in nats, p = exp(-score); NaN where fewer than two models are out, or not
    audited.

  Raises:
    ValueError: for arrays of other shapes.

  Deviation: the official code scores by the two-sided -log density with median and
    ddof 0, and its commands use one deviation for all records [verified]. This density
    also takes records far below the others for members; the one-sided test is ours
    [ours]. `lira_offline_two_sided` with `OFFICIAL` is the density of that code with
    one deviation per record.

  Reference: Galichin, Pautov, Zhavoronkin, Rogov, Oseledets, "GLiRA: Black-Box
    Membership Inference Attack via Knowledge Distillation", 2024, arXiv 2405.07562.

  >>> out = np.array([[0.], [1], [-1], [0]]), np.zeros((4, 1), bool)
  >>> np.exp(-glira([2.5], out)).round(6)
  array([0.035711])
  """
  phi = of_release(phi)
  values, members, audited = read_side(out, phi)
  fitted = fit(values.mean(2, keepdims=True), ~members, audited)
  scores = surprise(t_statistic(fitted, phi.mean(1)), fitted.count - 1)
  return np.where(audited, scores, np.nan)


def shrink(
  gap: np.ndarray, noise: np.ndarray, mean: np.ndarray, spread: np.ndarray
) -> np.ndarray:
  """Return d* = (d/w + dbar/tau^2)/(1/w + 1/tau^2), at least dbar/10.

  Args:
    gap: d [N, Q].
    noise: w [N, Q], at least 0.
    mean: dbar [Q].
    spread: tau^2 [Q], at least 0. Where it and w are 0, d stays.

  >>> shrink(np.array([3., -1.]), np.full(2, 2 / 3), np.ones(2), np.ones(2))
  array([2.2, 0.1])
  """
  both = noise + spread
  share = np.where(both > 0, spread / np.where(both > 0, both, 1.0), 1.0)
  return np.maximum(mean + share * (gap - mean), _LEAST * mean)


def _gaps(phi: np.ndarray, inside: Side, out: Side) -> Gaps:
  sides, audited = [], np.ones(len(phi), bool)
  for references, member in ((inside, True), (out, False)):
    values, members, rows = read_side(references, phi)
    sides.append(moments(values, members == member))
    audited &= rows
  known = audited & (sides[0].count[:, 0] > 0) & (sides[1].count[:, 0] > 0)
  if not known.any():
    raise Unavailable(
      "imia needs records with a model in and a model out: train more models"
    )
  gap = np.where(known[:, None], sides[0].mean - sides[1].mean, np.nan)
  inside_noise, out_noise = (
    _pooled(side, known) / np.maximum(side.count, 1) for side in sides
  )
  noise = inside_noise + out_noise
  mean = gap[known].mean(0)
  if (mean <= 0).any():
    raise Unavailable(
      f"imia has no direction: the mean gap between models with and without a record "
      f"is {mean.min():.3g}, which is not positive; train the references for longer"
    )
  spread = np.maximum(gap[known].var(0) - noise[known].mean(0), 0.0)
  shrunk = shrink(gap, noise, mean, spread)
  middle = (sides[0].mean + sides[1].mean) / 2
  return Gaps(gap, shrunk, middle, (shrunk <= _LEAST * mean).any(1))


def _pooled(side: Moments, known: np.ndarray) -> np.ndarray:
  """Return the pooled within-record variance [Q] of one side."""
  freedom = np.maximum(side.count[known] - 1, 0).sum()
  return side.squares[known].sum(0) / max(freedom, 1)
