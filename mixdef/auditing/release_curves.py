"""Three ROC curves of one release, which answer three questions.

"this release": who can be named in the model at hand, by one threshold on raw scores.
"per-record calibrated": which false-positive rate a given record faces. "pooled": what
the recipe leaks, from attacks on the reference models instead of the release.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixdef.attacks import ATTACKS, Signals, Unavailable, leave_one_out, lira_calibrated
from mixdef.metrics.plots import roc_rates, step_curve
from mixdef.metrics.roc import Roc
from mixdef.metrics.summary import summarize

TITLES = {
  "release": "this release",
  "calibrated": "per-record calibrated",
  "pooled": "pooled",
}
"""The curves, in the order of the page."""

_MEANINGS = {
  "release": (
    "Raw scores of this release, with one threshold for all {unit}s: the level above "
    "counts on it."
  ),
  "calibrated": (
    "The p-value of each {unit} by a t test against the reference models that did not "
    "train on it: which false-positive rate does this {unit} face?"
  ),
  "pooled": (
    "Every reference model attacked with the others: what the recipe leaks on average, "
    "not part of any count for this release."
  ),
}
_POINTS = 120
_NOMINAL = (0.001, 0.01, 0.05)


def own_p(signals: Signals) -> np.ndarray | None:
  """Return the p-value of each record against the models without it, [N].

      T = (phi - m_out) / (s_out sqrt(1 + 1/n_out)),   p = Pr[t_{n_out - 1} >= T]

  Args:
    signals: of the released model, which is model 0, and of its references.

  Returns:
    p in (0, 1], NaN where fewer than two references are out; None if no record has two.

  >>> phi = np.array([[2.5, 0, 1, -1, 0]]).T
  >>> signals = Signals.from_phi(phi, np.zeros((5, 1), dtype=bool))
  >>> own_p(signals).round(6)
  array([0.035711])
  """
  try:
    return np.exp(-lira_calibrated(signals, target=0))
  except Unavailable:
    return None


def curves(
  scores: np.ndarray,
  signals: Signals,
  *,
  attack: str,
  pooled: str | None,
  metrics: Mapping[str, Any],
  p: np.ndarray | None,
  unit: str,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Return the named ROC curves that the signals allow, for the report.

  Args:
    scores: [N] of the attack on the release, members and hold-out.
    signals: of the release, which is model 0, and of its references.
    attack: name of the attack, as in `audit_release`.
    pooled: name of the attack on the reference models, None for none.
    metrics: of these scores, as `Summary.to_json` returns them.
    p: result of `own_p`.
    unit: "record" or "person".
    seed: random seed of the bootstraps.

  Returns:
    By key of `TITLES`: title, meaning, attack, targets, members, nonmembers, auc,
    auc_ci, tpr as in `Summary`, and fpr and tpr of the points to draw. The calibrated
    curve also has `nominal`: the fraction of members and of the hold-out with a p-value
    up to a rate. "calibrated" and "pooled" need reference models.
  """
  member = signals.members[:1]
  found = {"release": _curve(scores[None], member, attack, metrics)}
  if p is not None and _both_sides(p, member[0]):
    own = summarize(-p[None], member, seed=seed).to_json()
    calibrated = _curve(-p[None], member, "lira_calibrated", own)
    found["calibrated"] = {**calibrated, "nominal": _nominal(p, member[0])}
  recipe = None if pooled is None else _pooled(pooled, signals, seed)
  if recipe is not None:
    found["pooled"] = recipe
  return {
    key: {"title": TITLES[key], "meaning": _MEANINGS[key].format(unit=unit), **curve}
    for key, curve in found.items()
  }


def _pooled(attack, signals, seed):
  """Attack every reference model with the others, without the release."""
  if len(signals.phi) < 3:
    return None
  others = signals.only_models(range(1, len(signals.phi)))
  try:
    scores = leave_one_out(ATTACKS.resolve(attack), others)
  except Unavailable:
    return None
  metrics = summarize(scores, others.members, seed=seed).to_json()
  return _curve(scores, others.members, attack, metrics)


def _curve(scores, members, attack, metrics):
  """Return the metrics of a curve, and its points."""
  roc = Roc.of(scores, members)
  rates = roc_rates([int(roc.fp[-1])], points=_POINTS)
  return {
    "attack": attack,
    "targets": len(scores),
    "members": metrics["num_members"],
    "nonmembers": metrics["num_nonmembers"],
    **{name: metrics[name] for name in ("auc", "auc_ci", "tpr")},
    "points": {"fpr": rates.tolist(), "tpr": step_curve(roc, rates).tolist()},
  }


def _both_sides(p, member):
  known = member[~np.isnan(p)]
  return bool(known.any() and not known.all())


def _nominal(p, member):
  """Return the fractions of either side whose p-value is at most a nominal rate."""
  sides = {"members": p[member], "holdout": p[~member]}
  return {
    f"{rate:g}": {
      name: float((values[~np.isnan(values)] <= rate).mean())
      for name, values in sides.items()
    }
    for rate in _NOMINAL
  }
