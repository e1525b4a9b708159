"""Test whether members and hold-out differ by more than membership."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.randomness import generator
from mixdef.metrics.roc import auc

_FOLDS = 3
_MOST = 1500  # records of each side that are used
_EXCHANGES = 10
_LEVEL = 0.01  # probability that two equal sides are called confounded
_WIDTH = 1024  # features above this number are projected on principal components
_COMPONENTS = 64


def blind_test(
  x: ArrayLike,
  y: ArrayLike,
  members: ArrayLike,
  *,
  groups: ArrayLike | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Distinguish members from hold-out by the records alone, without the model.

  A logistic regression and boosted trees are fitted to records and labels by three-fold
  cross-validation. If they distinguish the two sides, an attack on the model may do the
  same without any leakage, for example if the hold-out was collected later.

  Args:
    x: [N, ...] the records.
    y: int [N], the labels.
    members: bool [N].
    groups: [N], records of one group are in the same fold.
    seed: random seed of the folds and of the records, at most 1,500 of each side.

  Returns:
    {"auc", "chance", "classifier", "confounded", "num_records"} of the classifier that
    is furthest above chance. "chance" is the interval of AUCs that equal sides would
    give, at 99% for the better of the two; above it, the sides are confounded.

  Deviation: the idea is that of "blind" attacks; the two classifiers and the test are
    ours [ours]. Chance is estimated by exchanging members and hold-out at random,
    because near-duplicates among the records make it wider than that of independent
    records.

  >>> rng = np.random.default_rng(0)
  >>> x, members = rng.normal(size=(400, 3)), np.arange(400) < 200
  >>> blind_test(x, np.zeros(400, int), members)["confounded"]
  False
  """
  from scipy.stats import t
  from sklearn.ensemble import HistGradientBoostingClassifier
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  members, rng = np.asarray(members), generator(seed)
  sides = [rng.permutation(np.flatnonzero(members == side)) for side in (True, False)]
  rows = np.concatenate([side[:_MOST] for side in sides])
  table, truth = (
    _features(np.asarray(x)[rows], np.asarray(y)[rows], seed),
    members[rows],
  )
  units = np.arange(len(rows))
  if groups is not None:
    units = np.unique(np.asarray(groups)[rows], return_inverse=True)[1]
  state = seed % 2**32
  linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
  trees = HistGradientBoostingClassifier(max_iter=30, random_state=state)
  factor = t.ppf(1 - _LEVEL / 2, _EXCHANGES - 1) * np.sqrt(1 + 1 / _EXCHANGES)
  found = []
  for name, model in (("logistic regression", linear), ("boosted trees", trees)):
    value = _cross_validated(model, table, truth, units, state)
    null = [
      _cross_validated(model, table, _exchanged(truth, units, rng), units, state)
      for _ in range(_EXCHANGES)
    ]
    centre, width = float(np.mean(null)), float(factor * np.std(null, ddof=1))
    found.append(
      (value - centre - width, value, [centre - width, centre + width], name)
    )
  above, value, chance, name = max(found)
  return {
    "auc": value,
    "chance": chance,
    "classifier": name,
    "confounded": above > 0,
    "num_records": len(rows),
  }


def _cross_validated(model, table, truth, units, state):
  """Return the AUC of a classifier on folds that it was not fitted on."""
  from sklearn.model_selection import (
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
  )
  from threadpoolctl import threadpool_limits

  ids = np.arange(len(truth)) if units is None else units
  count = min(_FOLDS, len(np.unique(ids[truth])), len(np.unique(ids[~truth])))
  if count < 2:
    raise ValueError("members and hold-out need two records each: pass more")
  make: Any = StratifiedKFold if units is None else StratifiedGroupKFold
  folds = make(count, shuffle=True, random_state=state)
  with threadpool_limits(1):  # threads that wait for each other slow small fits down
    answers = cross_val_predict(
      model, table, truth, cv=folds, groups=units, method="predict_proba"
    )
  return auc(answers[:, 1], truth)


def _exchanged(truth, units, rng):
  """Return the sides in random order, those of a group together."""
  if units is None:
    return rng.permutation(truth)
  first = np.unique(units, return_index=True)[1]
  return rng.permutation(truth[first])[units]


def _features(x, y, seed):
  """Return records and one-hot labels as a table of at most `_WIDTH` columns."""
  table = np.asarray(x, np.float32).reshape(len(x), -1)
  if table.shape[1] > _WIDTH:
    from sklearn.decomposition import PCA

    size = min(_COMPONENTS, *table.shape)
    table = PCA(size, svd_solver="randomized", random_state=seed % 2**32).fit_transform(
      table
    )
  classes, index = np.unique(y, return_inverse=True)
  return np.hstack([table, np.eye(len(classes), dtype=np.float32)[index]])
