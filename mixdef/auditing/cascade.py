"""Rounds of reference models, each trained with what the rounds before made certain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mixdef.attacks import Signals, cmia, cmia_anchors
from mixdef.attacks.cmia import Anchors
from mixdef.data import Dataset, subsets
from mixdef.training import Ensemble

_FRACTIONS = 0.25, 0.75  # of the open records, so that both sides keep models


class Cascade(NamedTuple):
  """What the rounds have found.

  Attributes:
    signals: of the models of round 1, [S, N, Q].
    scores: [N] of `cmia`, over the models of all rounds.
    models: number of models of all rounds.
    seconds: time of their training.
    anchors: number of positive and of negative anchors that each round kept.
  """

  signals: Signals
  scores: np.ndarray
  models: int
  seconds: float
  anchors: list[dict[str, int]]


def train_cascade(
  phi: np.ndarray,
  data: Dataset,
  *,
  rounds: int,
  models: int,
  seed: int,
  train: Callable[[np.ndarray, str, int], Ensemble],
  query: Callable[[Ensemble], Signals],
) -> Cascade:
  """Train all rounds, and score the release against them.

  The anchors of a round follow from the outputs of the release and of the earlier
  rounds alone. The membership of the release is not an argument.

  Args:
    phi: [N, Q] of the release; with groups, of persons.
    data: the records.
    rounds: number of rounds R.
    models: number of models S of each round.
    seed: random seed of the subsets.
    train: `(members [S, N], name, first) -> Ensemble` trains the models of a round,
      under the name of its folder, with random streams `first` to first + S - 1.
    query: returns the signals of an ensemble; with groups, of persons.

  Returns:
    The `Cascade`.
  """
  nobody = np.zeros(len(phi), bool)
  anchors, kept, seconds = Anchors(nobody, nobody), [], 0.0
  sides: list[Signals] = []
  for place in range(rounds):
    if sides:
      anchors = cmia_anchors(phi, sides)
    keep = _subsets(data, anchors, models * place, models, seed)
    ensemble = train(keep, f"round_{place + 1}", models * place)
    sides.append(query(ensemble))
    kept.append({side: int(mask.sum()) for side, mask in anchors._asdict().items()})
    seconds += ensemble.seconds
  total = sum(len(side.phi) for side in sides)
  return Cascade(sides[0], cmia(phi, sides), total, seconds, kept)


def _subsets(
  data: Dataset, anchors: Anchors, first: int, models: int, seed: int
) -> np.ndarray:
  """Draw the subsets of one round, which no other round repeats.

  The open records are drawn as often as makes half of all records members, so that
  anchors do not change the size of the training sets, whose effect on outputs is large.
  """
  positive, negative, total = *(mask.sum() for mask in anchors), len(anchors.open)
  share = (total / 2 - positive) / max(total - positive - negative, 1)
  rows: Any = data.units  # of persons, or of records
  drawn = subsets(
    data,
    first + models,
    seed=seed,
    fraction=float(np.clip(share, *_FRACTIONS)),
    eligible=~anchors.negative[rows],
    always_member=anchors.positive[rows],
  )
  return drawn[first:]
