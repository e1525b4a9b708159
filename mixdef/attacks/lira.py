"""LiRA: the target's output compared with per-record Gaussians of reference models.

For record i and query q, N(mu_in, s_in^2) is fitted to the outputs of the reference
models that trained on i and N(mu_out, s_out^2) to those of the others. The target is
never part of a fit. A record's score is the mean over queries.

Options shared by the attacks:
  score: "phi" (logit-scaled confidence) or "hinge" (margin). Taking the better of the
    two on the audited labels is a selection; report both or fix one.
  centre: "mean" or "median" of a side's outputs.
  ddof: 1 or 0, in the variance about the mean of a side's outputs. `**OFFICIAL` selects
    the official code's "median" and 0.
  combine: the offline score is the mean over queries of "z" or of "log_sf", -log Pr[Z >
    phi]. Both rank alike for one query. The tail is computed as a log survival
    function, so no scores tie at 1.

Degenerate records, counted by `lira_coverage`:
  fewer than two models on a side: the side's pooled variance is used.
  no model in: the online score is undefined; the offline z is used.
  no model out: the score is NaN, which the metrics exclude and count.

Reference: Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership Inference Attacks
From First Principles", 2022, arXiv 2112.03570.
"""

import numpy as np

from mixdef.attacks._gaussians import Gaussians, fit_references, log_ratio
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, count, one_of
from mixdef.core.registry import attack

OFFICIAL = {"centre": "median", "ddof": 0}
"""The options of the official code."""

_OPTIONS = {
  "score": one_of("phi", "hinge"),
  "centre": one_of("mean", "median"),
  "ddof": count(0, 1),
}
_COMBINE = one_of("z", "log_sf")


@attack(family="reference", reads="signals")
@checked(**_OPTIONS)
def lira_online(
  signals: Signals,
  *,
  target: int,
  score: str = "phi",
  centre: str = "mean",
  ddof: int = 1,
) -> np.ndarray:
  """Score by the log-likelihood ratio of in and out, with one variance per record.

      log N(phi; mu_in, s_in^2) - log N(phi; mu_out, s_out^2)

  Args:
    signals: signals of S models; useful from S >= 3, and 64 or more are customary.
    target: index of the attacked model.
    score: "phi" or "hinge".
    centre: "mean" or "median".
    ddof: 0 or 1.

  Returns:
    Scores [N] in nats; NaN where no reference is out, or not audited.

  Deviation: the official code adds 1e-30 to the standard deviation, which turns equal
    reference values into a spike; here the variance is floored at 1e-4 of the pooled
    within-record variance. The code fits every record on the first n models of a side,
    where n is the smallest number that any record has there; here, all references are
    used (`Signals.references`).

  >>> phi = np.array([[2.5, 2, 3, 4, 3, 0, 1, -1, 0]]).T
  >>> members = np.array([[0, 1, 1, 1, 1, 0, 0, 0, 0]], dtype=bool).T
  >>> lira_online(Signals.from_phi(phi, members), target=0).round(6)
  array([4.5])
  """
  return _online(signals, target, score, centre, ddof, fixed=False)


@attack(family="reference", reads="signals")
@checked(**_OPTIONS)
def lira_online_fixed(
  signals: Signals,
  *,
  target: int,
  score: str = "phi",
  centre: str = "mean",
  ddof: int = 1,
) -> np.ndarray:
  """Score as `lira_online` with one variance per side, for few reference models.

      s_in^2 = mean_i Var_{k in IN_i} phi_ik,   s_out^2 = mean_i Var_{k in OUT_i} phi_ik

  Args:
    signals: signals of S models; useful from S >= 3.
    target: index of the attacked model.
    score: "phi" or "hinge".
    centre: "mean" or "median".
    ddof: 0 or 1.

  Returns:
    Scores [N] in nats; NaN where no reference is out, or not audited.

  Deviation: the official code uses one standard deviation over records and models,
    which includes the variation between records, and computes the out deviation from in
    data.
  """
  return _online(signals, target, score, centre, ddof, fixed=True)


@attack(family="reference", reads="signals")
@checked(**_OPTIONS, combine=_COMBINE)
def lira_offline(
  signals: Signals,
  *,
  target: int,
  score: str = "phi",
  centre: str = "mean",
  ddof: int = 1,
  combine: str = "z",
) -> np.ndarray:
  """Score by the one-sided test against the out models, Eq. 4.

      Lambda = 1 - Pr[Z > phi], Z ~ N(mu_out, s_out^2);   z = (phi - mu_out)/s_out

  Args:
    signals: signals of S >= 2 models; only models without the record are read.
    target: index of the attacked model.
    score: "phi" or "hinge".
    centre: "mean" or "median".
    ddof: 0 or 1.
    combine: "z" or "log_sf".

  Returns:
    Scores [N], strictly increasing in phi; NaN where no reference is out, or not
    audited.

  Deviation: the official code computes the two-sided density, which also predicts
    membership for records far below mu_out; that is `lira_offline_two_sided`.

  >>> phi = np.array([[2.5, 0, 1, -1, 0]]).T
  >>> signals = Signals.from_phi(phi, np.zeros((5, 1), dtype=bool))
  >>> lira_offline(signals, target=0).round(6)
  array([3.061862])
  >>> lira_offline(signals, target=0, combine="log_sf").round(6)
  array([6.812606])
  """
  return _offline(signals, target, score, centre, ddof, combine, fixed=False)


@attack(family="reference", reads="signals")
@checked(**_OPTIONS, combine=_COMBINE)
def lira_offline_fixed(
  signals: Signals,
  *,
  target: int,
  score: str = "phi",
  centre: str = "mean",
  ddof: int = 1,
  combine: str = "z",
) -> np.ndarray:
  """Score as `lira_offline` with the pooled out variance; ranks as phi - mu_out.

  Args:
    signals: signals of S >= 2 models; only models without the record are read.
    target: index of the attacked model.
    score: "phi" or "hinge".
    centre: "mean" or "median".
    ddof: 0 or 1.
    combine: "z" or "log_sf".

  Returns:
    Scores [N]; NaN where no reference is out, or not audited.

  Deviation: the official code uses the two-sided density, with one standard deviation
    over records and models.
  """
  return _offline(signals, target, score, centre, ddof, combine, fixed=True)


@attack(
  family="reference",
  reads="signals",
  note=(
    "for comparison with published numbers; also predicts membership where the "
    "target's confidence is far below that of the other models"
  ),
)
@checked(**_OPTIONS)
def lira_offline_two_sided(
  signals: Signals,
  *,
  target: int,
  score: str = "phi",
  centre: str = "mean",
  ddof: int = 1,
) -> np.ndarray:
  """Score by `-log N(phi; mu_out, s_out^2)`, as the official offline code does.

  Use it to compare with published numbers. It also classifies records as members if
  their phi is far below mu_out.

  Args:
    signals: signals of S >= 2 models; only models without the record are read.
    target: index of the attacked model.
    score: "phi" or "hinge".
    centre: "mean" or "median".
    ddof: 0 or 1.

  Returns:
    Scores [N] in nats; NaN where no reference is out, or not audited.
  """
  out = fit_references(
    signals, target, member=False, score=score, centre=centre, ddof=ddof, fixed=False
  )
  surprise = -out.log_density(signals.statistic(score)[target])
  return signals.only_audited(surprise.mean(1))


@attack(family="reference", reads="signals")
@checked(score=_OPTIONS["score"])
def lira_global(signals: Signals, *, target: int, score: str = "phi") -> np.ndarray:
  """Score by phi of the target alone (query 0); ranks as `loss_threshold`.

  Args:
    signals: any signals.
    target: index of the attacked model.
    score: "phi" or "hinge".

  Returns:
    Scores [N]; NaN where not audited.

  Deviation: the official code averages phi over all views.
  """
  signals.check_model("target", target)
  return signals.only_audited(signals.statistic(score)[target, :, 0])


def lira_coverage(signals: Signals, *, target: int) -> dict[str, int]:
  """Count the audited records whose Gaussians need a fallback.

  Args:
    signals: signals with phi.
    target: index of the attacked model.

  Returns:
    Counts. pooled_in, pooled_out: records with one model on that side, which take the
    pooled variance; offline: records with no model in, but some out; excluded: records
    with no model out (score NaN); floored_in, floored_out: records whose own variance
    was raised to the floor.

  >>> signals = Signals.from_phi([[0.], [1.], [2.]], [[True], [True], [False]])
  >>> counts = lira_coverage(signals, target=0)
  >>> counts["pooled_in"], counts["pooled_out"], counts["excluded"]
  (1, 1, 0)
  """
  inside, out = _pair(signals, target, "phi", "mean", 1, fixed=False)
  masks = {
    "pooled_in": inside.count == 1,
    "pooled_out": out.count == 1,
    "offline": (inside.count == 0) & (out.count > 0),
    "excluded": out.count == 0,
    "floored_in": inside.floored,
    "floored_out": out.floored,
  }
  return {name: int((mask & signals.audited).sum()) for name, mask in masks.items()}


def _pair(
  signals: Signals, target: int, score: str, centre: str, ddof: int, *, fixed: bool
) -> tuple[Gaussians, Gaussians]:
  options = {"score": score, "centre": centre, "ddof": ddof, "fixed": fixed}
  out = fit_references(signals, target, member=False, **options)
  inside = fit_references(signals, target, member=True, spare=out.pooled, **options)
  return inside, out


def _online(
  signals: Signals, target: int, score: str, centre: str, ddof: int, *, fixed: bool
) -> np.ndarray:
  inside, out = _pair(signals, target, score, centre, ddof, fixed=fixed)
  ratio = log_ratio(inside, out, signals.statistic(score)[target])
  return signals.only_audited(ratio.mean(1))


def _offline(
  signals: Signals,
  target: int,
  score: str,
  centre: str,
  ddof: int,
  combine: str,
  *,
  fixed: bool,
) -> np.ndarray:
  out = fit_references(
    signals, target, member=False, score=score, centre=centre, ddof=ddof, fixed=fixed
  )
  z = out.z(signals.statistic(score)[target])
  if combine == "log_sf":
    from scipy.special import log_ndtr

    z = -log_ndtr(-z)
  return signals.only_audited(z.mean(1))
