"""The DP-SGD baseline: DP-SGD tuned to match the accuracy of a defense."""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax
from numpy.typing import ArrayLike

from mixdef.core.chaining import chain
from mixdef.core.learner import Learner
from mixdef.data import Dataset, validate_members
from mixdef.defenses import dp_sgd, ema
from mixdef.learners.classifier import classifier
from mixdef.training import Ensemble, fit_many

NOISE_MULTIPLIERS = (0.003125, 0.00625, 0.05, 0.2, 0.5, 1.0, 2.0)
LEARNING_RATES = (0.5, 1.0, 2.0, 4.0)

POINT = 0.01  # accuracy by which the baseline may fall short
_RECORDS = 4096  # records per block; their outputs [S,B,K] are held


class MatchedDP(NamedTuple):
  """DP-SGD with about the same accuracy as a defense.

  Attributes:
    learner: learner that trains the baseline's models.
    noise_multiplier: the chosen ratio of noise to clipping norm.
    learning_rate: the chosen learning rate of SGD.
    epsilon: privacy loss of one model at `delta`; None where it is infinite.
    delta: delta of the guarantee.
    accuracy: accuracy of the chosen candidate, in [0, 1].
    target_accuracy: accuracy of the defense.
    matched: whether `accuracy` is at least the target minus one point.
    candidates: all candidates, as dicts with `noise_multiplier`, `learning_rate`,
      `test_accuracy` and `epsilon`.
  """

  learner: Learner
  noise_multiplier: float
  learning_rate: float
  epsilon: float | None
  delta: float
  accuracy: float
  target_accuracy: float
  matched: bool
  candidates: list[dict[str, Any]]


def high_utility_dp(
  model: Any, *, noise_multiplier: Any, learning_rate: Any, delta: float = 1e-5
) -> Learner:
  """Make a DP-SGD learner with settings for high accuracy.

  It uses SGD without momentum or weight decay, gradients clipped to norm 1, Poisson
  batches, and the release of the weights' moving average, with decay min(.9999,
  (1+t)/(10+t)).

  Args:
    model: as for `classifier`; a linen module's field `norm="batch"` is set to "group".
    noise_multiplier: > 0; may be traced.
    learning_rate: > 0; may be traced.
    delta: in (0, 1), below one over the number of members.

  Returns:
    The `Learner`.

  Guarantee: that of `dp_sgd`; at noise far below 1 epsilon is vacuous.

  Deviation: the papers also change the network (order of ReLU and normalisation, scaled
    skips, weight standardisation) and average each gradient over 8 or 16 augmented
    views; the user's network is kept here, without views. That lowers the baseline's
    accuracy, never its privacy.

  Reference: De et al., "Unlocking High-Accuracy Differentially Private Image
    Classification through Scale", 2022, arXiv 2204.13650; Aerni, Zhang, Tramer,
    "Evaluations of Machine Learning Privacy Defenses are Misleading", 2024, arXiv
    2404.17399.
  """
  if isinstance(model, nn.Module) and getattr(model, "norm", None) == "batch":
    model = model.clone(norm="group")
  defense = chain(dp_sgd(noise_multiplier, clip=1.0, delta=delta), ema(0.9999))
  return classifier(model, optax.sgd(learning_rate), defense)


def matched_dp(
  model: Any,
  data: Dataset,
  members: ArrayLike,
  *,
  accuracy: float,
  noise_multipliers: Iterable[float] = NOISE_MULTIPLIERS,
  learning_rates: Iterable[float] = LEARNING_RATES,
  delta: float = 1e-5,
  test: Dataset | None = None,
  **training: Any,
) -> MatchedDP:
  """Find the most private DP-SGD that keeps a defense's accuracy.

  This trains `high_utility_dp` for every noise multiplier and learning rate, all of
  them together, and selects the largest noise whose accuracy is within a point of the
  defense's, at its best learning rate; see `choose`. Models that diverged to NaN have
  accuracy 0.

  Args:
    model: as for `classifier`, the one that was defended.
    data: the records.
    members: bool [R, N], training sets for the candidates, for example the first two of
      the audited ensemble; accuracies are means over them.
    accuracy: accuracy of the defense, in [0, 1], on the same kind of records.
    noise_multipliers: each > 0. The default holds those of Aerni et al.
    learning_rates: each > 0; around those of the two papers.
    delta: in (0, 1), below one over the number of members.
    test: records to measure the accuracy on. None uses the audited records that each
      model did not train on, which must not be canaries.
    **training: `epochs`, `batch_size`, `seed` and the like, as in `fit_many`.

  Returns:
    The choice, with the learner that trains it.

  Raises:
    ValueError: an argument is out of range, or there is no record to measure on.

  Guarantee: the epsilon is one model's. It does not cover the choice among candidates,
    which saw the same records.

  Deviation: the accuracy of the chosen candidate is the one it was chosen by, so it is
    slightly optimistic; models trained afterwards have their own. The papers tune by
    hand, on the test file.
  """
  members = validate_members(members, len(data))
  noises, rates = tuple(noise_multipliers), tuple(learning_rates)
  _check(accuracy, noise_multipliers=noises, learning_rates=rates)
  if test is None:
    _check_out(data, members)
  grid = list(itertools.product(noises, rates))
  noise, rate = np.repeat(np.array(grid, np.float32), len(members), axis=0).T
  ensemble = fit_many(
    functools.partial(high_utility_dp, model, delta=delta),
    data,
    np.tile(members, (len(grid), 1)),
    sweep={"noise_multiplier": noise, "learning_rate": rate},
    **training,
  )
  accuracies = _accuracies(ensemble, test).reshape(len(grid), len(members)).mean(axis=1)
  candidates = [
    {
      "noise_multiplier": noise,
      "learning_rate": rate,
      "test_accuracy": float(accuracies[i]),
      "epsilon": ensemble[i * len(members)].guarantee["epsilon"],
    }
    for i, (noise, rate) in enumerate(grid)
  ]
  best, matched = choose(candidates, accuracy)
  chosen = {name: best[name] for name in ("noise_multiplier", "learning_rate")}
  return MatchedDP(
    learner=high_utility_dp(model, delta=delta, **chosen),
    **chosen,
    epsilon=best["epsilon"],
    delta=delta,
    accuracy=best["test_accuracy"],
    target_accuracy=accuracy,
    matched=matched,
    candidates=candidates,
  )


def choose(
  candidates: Sequence[dict[str, Any]], accuracy: float
) -> tuple[dict[str, Any], bool]:
  """Choose the most private candidate that is as accurate as a defense.

  This trains nothing, so the same candidates serve every defense of the same model.

  Args:
    candidates: the candidates of a `MatchedDP`.
    accuracy: accuracy of the defense, in [0, 1].

  Returns:
    The candidate with the largest noise among those with an accuracy of at least
    `accuracy` - 0.01, and True; if there is none, the most accurate candidate, and
    False.

  >>> names = ("noise_multiplier", "test_accuracy")
  >>> tried = [dict(zip(names, row)) for row in ((0.2, 0.9), (0.5, 0.88), (2.0, 0.6))]
  >>> choose(tried, 0.885)
  ({'noise_multiplier': 0.5, 'test_accuracy': 0.88}, True)
  >>> choose(tried, 0.95)
  ({'noise_multiplier': 0.2, 'test_accuracy': 0.9}, False)
  """
  enough = [c for c in candidates if c["test_accuracy"] >= accuracy - POINT]
  if enough:
    return max(enough, key=lambda c: (c["noise_multiplier"], c["test_accuracy"])), True
  most = max(candidates, key=lambda c: (c["test_accuracy"], c["noise_multiplier"]))
  return most, False


def _accuracies(ensemble: Ensemble, test: Dataset | None) -> np.ndarray:
  """Return accuracy [S] on the test records, or on the audited records that are out."""
  if test is not None:
    return _hits(ensemble, test).mean(axis=1)
  data = ensemble.data
  return _hits(ensemble, data).mean(axis=1, where=~ensemble.members & data.audited)


def _hits(ensemble: Ensemble, data: Dataset) -> np.ndarray:
  hits = np.zeros((len(ensemble), len(data)), bool)
  for models, predict in ensemble.chunks():
    for first in range(0, len(data), _RECORDS):
      rows = slice(first, first + _RECORDS)
      answers = predict(data.x[rows])
      right = answers.argmax(-1) == data.y[rows]
      hits[models, rows] = right & ~np.isnan(answers).any(-1)  # argmax of NaN is 0
  return hits


def _check(accuracy: float, **grid: tuple[float, ...]) -> None:
  if not 0 <= accuracy <= 1:
    raise ValueError(f"accuracy={accuracy}; pass a fraction in [0, 1]")
  for name, values in grid.items():
    if not values:
      raise ValueError(f"{name} is empty; pass at least one value")
    for value in values:
      if not 0 < value < math.inf:
        raise ValueError(f"{name} holds {value}; pass finite numbers above 0")


def _check_out(data: Dataset, members: np.ndarray) -> None:
  if data.always_member.any():
    raise ValueError(
      "some records are in every model, so the non-members are canaries, whose labels "
      "do not measure accuracy: pass test="
    )
  full = np.flatnonzero(~(~members & data.audited).any(axis=1))
  if full.size:
    raise ValueError(
      f"members[{full[0]}] excludes no audited record on which accuracy could be "
      "measured: pass test="
    )
