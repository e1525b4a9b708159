"""Test whether members and hold-out differ by more than membership."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.randomness import generator
from mixdef.metrics.intervals import bootstrap_records
from mixdef.metrics.roc import auc

_FOLDS = 5
_MOST = 4000  # records of each side that are used
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

  A logistic regression and boosted trees are fitted to records and labels by five-fold
  cross-validation. If they distinguish the two sides, an attack on the model may do the
  same without any leakage, for example if the hold-out was collected later.

  Args:
    x: [N, ...] the records.
    y: int [N], the labels.
    members: bool [N].
    groups: [N], records of one group are in the same fold.
    seed: random seed of the folds and of the records, at most 4,000 of each side.

  Returns:
    {"auc", "auc_ci", "classifier", "confounded", "num_records"} of the better of the
    two, with a 99 % interval that is widened for the choice. They are confounded if the
    interval lies above 0.5.

  Reference: the idea is that of "blind" attacks; the two classifiers are our choice
    [ours].

  >>> rng = np.random.default_rng(0)
  >>> x, members = rng.normal(size=(400, 3)), np.arange(400) < 200
  >>> blind_test(x, np.zeros(400, int), members)["confounded"]
  False
  """
  from sklearn.ensemble import HistGradientBoostingClassifier
  from sklearn.linear_model import LogisticRegression
  from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from threadpoolctl import threadpool_limits

  members, rng = np.asarray(members), generator(seed)
  rows = np.concatenate(
    [rng.permutation(np.flatnonzero(members == side))[:_MOST] for side in (True, False)]
  )
  table, truth = (
    _features(np.asarray(x)[rows], np.asarray(y)[rows], seed),
    members[rows],
  )
  count = min(_FOLDS, truth.sum(), (~truth).sum())
  if count < 2:
    raise ValueError("members and hold-out need two records each: pass more")
  folds: Any = StratifiedKFold(count, shuffle=True, random_state=seed % 2**32)
  units = None
  if groups is not None:
    units = np.unique(np.asarray(groups)[rows], return_inverse=True)[1]
    folds = GroupKFold(min(_FOLDS, len(np.unique(units))))
  linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
  trees = HistGradientBoostingClassifier(max_iter=50, random_state=seed % 2**32)
  found = {}
  for name, model in (("logistic regression", linear), ("boosted trees", trees)):
    with threadpool_limits(1):  # threads that wait for each other slow small fits down
      answers = cross_val_predict(
        model, table, truth, cv=folds, groups=units, method="predict_proba"
      )
    found[name] = answers[:, 1]
  best = max(found, key=lambda name: auc(found[name], truth))
  interval = bootstrap_records(
    found[best], truth, resamples=200, seed=seed, confidence=1 - _LEVEL / len(found)
  )["auc"]
  return {
    "auc": auc(found[best], truth),
    "auc_ci": list(interval),
    "classifier": best,
    "confounded": bool(interval[0] > 0.5),
    "num_records": len(rows),
  }


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
