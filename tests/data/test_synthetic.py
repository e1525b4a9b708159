import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from mixdef.data import load
from mixdef.data.synthetic import synthetic_clusters, synthetic_memorize


def _accuracies(model, data):
  model.fit(data.x, data.y)
  return model.score(data.x, data.y), model.score(data.test.x, data.test.y)


def test_memorize_leaks_by_the_stated_amount():
  data = synthetic_memorize()
  train, test = _accuracies(KNeighborsClassifier(1), data)
  assert train == 1
  assert abs(test - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1000)


def test_clusters_leave_a_simple_model_without_a_gap():
  data = synthetic_clusters()
  model = LogisticRegression(C=0.01)
  train, test = _accuracies(model, data)
  assert min(train, test) > 0.995
  scores = [
    model.predict_proba(part.x)[np.arange(1000), part.y] for part in (data, data.test)
  ]
  auc = roc_auc_score(np.repeat([1, 0], 1000), np.concatenate(scores))
  assert abs(auc - 0.5) < 5 * np.sqrt(2001 / (12 * 1000**2))


@pytest.mark.parametrize("name", ["synthetic_memorize", "synthetic_clusters"])
def test_loading_is_repeatable_and_labelled_as_a_stand_in(name):
  one, two = load(name), load(name)
  assert one.name.startswith("synthetic_")
  np.testing.assert_array_equal(one.x, two.x)
  assert one.name == one.test.name == name
  assert one.num_classes == 4
  assert set(one.y) == {0, 1, 2, 3}


def test_clusters_need_an_axis_for_each_class():
  with pytest.raises(ValueError, match="num_features=3 is below num_classes=4"):
    synthetic_clusters(num_features=3)
