"""The DP-SGD baseline: DP-SGD tuned to match the accuracy of a defense."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax
from absl import logging
from numpy.typing import ArrayLike

from mixdef.core.chaining import chain
from mixdef.core.check import channels_first
from mixdef.core.files import path_of
from mixdef.core.learner import Learner
from mixdef.data import Dataset, validate_members
from mixdef.defenses import adam_corrected, dp_sgd, ema, random_crop
from mixdef.learners.classifier import classifier
from mixdef.training import Ensemble, fit_many

NOISE_MULTIPLIERS = (0.003125, 0.00625, 0.05, 0.2, 0.5, 1.0, 2.0)
LEARNING_RATES = (0.5, 1.0, 2.0, 4.0)

POINT = 0.01  # accuracy by which the baseline may fall short
_RECORDS = 4096  # records per block; their outputs [S,B,K] are held


class DPRecipe(NamedTuple):
  """A way to train with DP-SGD, of which noise and learning rate are searched.

  Attributes:
    optimizer: makes the optimizer from its learning rate.
    rates: factor of the learning rates of plain SGD that suits the optimizer.
    private: arguments of `dp_sgd`.
    shifts: whether images are shifted at random; other records cannot be.
  """

  optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd
  rates: float = 1.0
  private: Mapping[str, Any] = {}
  shifts: bool = False


RECIPES = {
  "sgd": DPRecipe(),
  "automatic_clipping": DPRecipe(private={"clipping": "automatic"}),
  "corrected_adam": DPRecipe(adam_corrected, rates=0.002),
  "shifted_views": DPRecipe(private={"multiplicity": 4}, shifts=True),
}


class MatchedDP(NamedTuple):
  """DP-SGD with about the same accuracy as a defense.

  Attributes:
    learner: learner that trains the baseline's models.
    recipe: name of the chosen recipe in `RECIPES`.
    noise_multiplier: the chosen ratio of noise to clipping norm.
    learning_rate: the chosen learning rate of the recipe's optimizer.
    epsilon: privacy loss of one model at `delta`; None where it is infinite.
    delta: delta of the guarantee.
    accuracy: accuracy of the chosen candidate, in [0, 1].
    target_accuracy: accuracy of the defense.
    matched: whether `accuracy` is at least the target minus one point.
    candidates: all candidates, as dicts with `recipe`, `noise_multiplier`,
      `learning_rate`, `test_accuracy` and `epsilon`.
  """

  learner: Learner
  recipe: str
  noise_multiplier: float
  learning_rate: float
  epsilon: float | None
  delta: float
  accuracy: float
  target_accuracy: float
  matched: bool
  candidates: list[dict[str, Any]]


def high_utility_dp(
  model: Any,
  *,
  noise_multiplier: Any,
  learning_rate: Any,
  delta: float = 1e-5,
  recipe: str = "sgd",
  data: Dataset | None = None,
) -> Learner:
  """Make a DP-SGD learner with settings for high accuracy.

  It uses gradients clipped to norm 1, Poisson batches, no weight decay, and the release
  of the weights' moving average, with decay min(.9999, (1+t)/(10+t)).

  ```
  sgd                 SGD without momentum
  automatic_clipping  the same with dp_sgd(clipping="automatic")
  corrected_adam      adam_corrected
  shifted_views       sgd with the mean gradient of four views of each image, shifted
                      by up to an eighth of its height
  ```

  Args:
    model: as for `classifier`; a linen module's field `norm="batch"` is set to "group".
    noise_multiplier: > 0; may be traced.
    learning_rate: > 0; may be traced.
    delta: in (0, 1), below one over the number of members.
    recipe: a name of `RECIPES`.
    data: the records. Those with groups are sampled and clipped person by person, and
      `shifted_views` needs their height.

  Returns:
    The `Learner`.

  Raises:
    ValueError: for another recipe, and for shifted views without images [H,W,C].

  Guarantee: that of `dp_sgd`, for a person if the records have groups; at noise far
    below 1 epsilon is vacuous.

  Deviation: the papers also change the network (order of ReLU and normalisation, scaled
    skips, weight standardisation) and average each gradient over 8 or 16 views, which
    are mirrored as well; the user's network is kept here, and images are not mirrored,
    because that changes digits and letters. This lowers the baseline's accuracy, never
    its privacy.

  Reference: De et al., "Unlocking High-Accuracy Differentially Private Image
    Classification through Scale", 2022, arXiv 2204.13650; Aerni, Zhang, Tramer,
    "Evaluations of Machine Learning Privacy Defenses are Misleading", 2024, arXiv
    2404.17399; Bu et al., 2022, arXiv 2206.07136 (`automatic_clipping`); Tang et al.,
    2023, arXiv 2312.14334 (`corrected_adam`).
  """
  allowed = recipes_for(data)
  if recipe not in allowed:
    raise ValueError(
      f"recipe={recipe!r}; choose from {', '.join(allowed)}"
      + (", or pass data= with images [H,W,C]" if recipe in RECIPES else "")
    )
  if isinstance(model, nn.Module) and getattr(model, "norm", None) == "batch":
    model = model.clone(norm="group")
  chosen = RECIPES[recipe]
  unit = "record" if data is None or data.groups is None else "person"
  private = dp_sgd(noise_multiplier, clip=1.0, delta=delta, unit=unit, **chosen.private)
  parts = [private, ema(0.9999)]
  if chosen.shifts and data is not None:
    parts.insert(0, random_crop(max(1, data.x.shape[1] // 8), fill="reflect"))
  return classifier(model, chosen.optimizer(learning_rate), chain(*parts))


def recipes_for(data: Dataset | None) -> list[str]:
  """Return the names of the recipes that suit some records; images have all.

  >>> recipes_for(None)
  ['sgd', 'automatic_clipping', 'corrected_adam']
  """
  images = data is not None and data.x.ndim == 4 and not channels_first(data.x.shape)
  return [name for name, recipe in RECIPES.items() if images or not recipe.shifts]


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
  out: str | os.PathLike | None = None,
  **training: Any,
) -> MatchedDP:
  """Find the most private DP-SGD that keeps a defense's accuracy.

  This trains `high_utility_dp` with plain SGD for every noise multiplier and learning
  rate, all of them together, and finds the largest noise whose accuracy is within a
  point of the defense's, at its best learning rate; see `choose`. At this noise and at
  the next larger one, it then trains every other recipe that suits the records, at
  every learning rate, and chooses again among all candidates. Models that diverged to
  NaN have accuracy 0.

  Without `noise_multipliers` and `learning_rates`, these are 28 candidates with plain
  SGD, and then at most 8 with each other recipe: 44 in all, and 52 for images, of which
  8 cost four times as much; each is trained once for each row of `members`. With
  groups, a step holds eight rows of every person, and costs up to eight times as much.

  Args:
    model: as for `classifier`, the one that was defended.
    data: the records.
    members: bool [R, N], training sets for the candidates, for example the first two of
      the audited ensemble; accuracies are means over them.
    accuracy: accuracy of the defense, in [0, 1], on the same kind of records.
    noise_multipliers: each > 0. The default holds those of Aerni et al.
    learning_rates: of plain SGD, each > 0; around those of the two papers. Those of
      another recipe are these times its `rates`.
    delta: in (0, 1), below one over the number of members.
    test: records to measure the accuracy on. None uses the audited records that each
      model did not train on, which must not be canaries.
    out: folder, in which every recipe has a run folder; an interrupted call resumes.
    **training: `epochs`, `batch_size`, `seed` and the like, as in `fit_many`. If the
      records have groups, batches and `num_members` count persons.

  Returns:
    The choice, with the learner that trains it.

  Raises:
    ValueError: an argument is out of range, or there is no record to measure on.

  Guarantee: the epsilon is one model's. It does not cover the choice among candidates,
    which saw the same records.

  Deviation: the accuracy of the chosen candidate is the one it was chosen by, so it is
    slightly optimistic; models trained afterwards have their own. The papers tune by
    hand, on the test file. Banded noise is not among the recipes: its noise multiplier
    is on another scale, so that `choose` could not compare it. [ours]
  """
  members = validate_members(members, len(data))
  noises, rates = tuple(noise_multipliers), tuple(learning_rates)
  _check(accuracy, noise_multipliers=noises, learning_rates=rates)
  if test is None:
    _check_out(data, members)
  names = recipes_for(data)

  def tried(recipe, noises):
    grid = list(
      itertools.product(noises, [rate * RECIPES[recipe].rates for rate in rates])
    )
    logging.info(
      "recipe %d of %d for the DP-SGD baseline, %s: %d trainings",
      *(names.index(recipe) + 1, len(names), recipe, len(grid) * len(members)),
    )
    noise, rate = np.repeat(np.array(grid, np.float32), len(members), axis=0).T
    ensemble = fit_many(
      functools.partial(high_utility_dp, model, delta=delta, recipe=recipe, data=data),
      data,
      np.tile(members, (len(grid), 1)),
      sweep={"noise_multiplier": noise, "learning_rate": rate},
      out=None if out is None else path_of(out, "out") / recipe,
      **training,
    )
    reached = _accuracies(ensemble, test).reshape(len(grid), len(members)).mean(axis=1)
    return [
      {
        "recipe": recipe,
        "noise_multiplier": noise,
        "learning_rate": rate,
        "test_accuracy": float(reached[i]),
        "epsilon": ensemble[i * len(members)].guarantee["epsilon"],
      }
      for i, (noise, rate) in enumerate(grid)
    ]

  plain, *others = names
  candidates = tried(plain, noises)
  enough = choose(candidates, accuracy)[0]["noise_multiplier"]
  larger = sorted(noise for noise in set(noises) if noise >= enough)[:2]
  for recipe in others:
    candidates += tried(recipe, larger)
  best, matched = choose(candidates, accuracy)
  chosen = {
    name: best[name] for name in ("recipe", "noise_multiplier", "learning_rate")
  }
  return MatchedDP(
    learner=high_utility_dp(model, delta=delta, data=data, **chosen),
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
