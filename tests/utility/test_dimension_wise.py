"""Dimension-wise probability and prediction against scikit-learn, and their plots."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from mixdef.utility import (
  column_regressions,
  dwp,
  dwpre,
  fit_columns,
)


def table(n, d=7, *, seed=0):
  """Draw rows whose columns depend on two hidden factors; the last two are equal."""
  rng = np.random.default_rng(seed)
  factors = rng.normal(size=(n, 2)) @ np.random.default_rng(9).normal(size=(2, d))
  x = (factors + rng.normal(size=(n, d)) > 0.3).astype(np.float32)
  x[:, -1] = x[:, -2]
  return x


def independent(x, *, seed=0):
  """Draw every column on its own, at its share."""
  return (np.random.default_rng(seed).random(x.shape) < x.mean(0)).astype(np.float32)


def test_regressions_equal_those_of_scikit_learn(monkeypatch):
  monkeypatch.setattr(column_regressions, "_AT_ONCE", 3)  # the last block is filled up
  x = table(150)
  columns = np.array([5, 0, 3, 6])
  weights = fit_columns(x, columns, c=0.7)
  for column, w in zip(columns, weights.T, strict=True):
    others = np.delete(np.arange(7), column)
    model = LogisticRegression(C=0.7, tol=1e-9, max_iter=1000)
    model.fit(x[:, others], x[:, column])
    np.testing.assert_allclose(w[others], model.coef_[0], atol=2e-3)
    assert w[-1] == pytest.approx(model.intercept_[0], abs=2e-3)
    assert w[column] == 0


def test_dwpre_equals_regressions_one_by_one():
  real, test = table(150), table(90, seed=1)
  synthetic = independent(real)
  result = dwpre(real, synthetic, test, columns=[1, 6])
  for side, train in (("real", real), ("synthetic", synthetic)):
    for f1, column in zip(result[side], (1, 6), strict=True):
      model = LogisticRegression(tol=1e-9).fit(
        np.delete(train, column, 1), train[:, column]
      )
      called = model.predict(np.delete(test, column, 1))
      assert f1 == pytest.approx(f1_score(test[:, column], called), abs=1e-12)


def test_dwpre_sees_dependence_and_dwp_does_not():
  real, test = table(1500), table(1500, seed=1)
  shuffled = independent(real)
  assert dwp(real, shuffled)["rmse"] < 0.05
  assert dwpre(real, table(1500, seed=2), test)["rmse"] < 0.1
  assert dwpre(real, shuffled, test)["rmse"] > 0.5


def test_pitfall_126_dwp_of_a_set_with_itself_is_the_diagonal():
  x = table(50)
  result = dwp(x, x)
  np.testing.assert_array_equal(result["real"], x.mean(0, dtype=np.float64))
  np.testing.assert_array_equal(result["real"], result["synthetic"])
  assert result["rmse"] == 0
  assert result["correlation"] == pytest.approx(1)


def test_pitfall_126_constant_columns_have_f1_0_and_are_counted():
  real, test = table(60), table(40, seed=1)
  synthetic, real = real.copy(), real.copy()
  real[:, 0], synthetic[:, [1, 2]], test[:, 3] = 1, 0, 0
  result = dwpre(real, synthetic, test)
  assert result["real"][0] == 0
  assert (result["synthetic"][1:3] == 0).all()
  assert result["real"][3] == result["synthetic"][3] == 0
  counts = [result[name] for name in ("constant_real", "constant_synthetic", "absent")]
  assert counts == [1, 2, 1]
  nothing = dwpre(np.zeros_like(real), synthetic, test)
  assert (nothing["real"] == 0).all()
  assert np.isnan(nothing["correlation"])


def test_what_is_no_binary_table_is_refused():
  x = table(20)
  with pytest.raises(
    ValueError, match=r"synthetic\[0, 0\] is 0.25; pass zeros and ones"
  ):
    dwp(x, x * 0 + 0.25)
  with pytest.raises(ValueError, match="synthetic has 6 columns and real 7"):
    dwp(x, x[:, 1:])
  with pytest.raises(ValueError, match="columns reach 7 to 7 of 0 to 6"):
    dwpre(x, x, x, columns=[7])
  with pytest.raises(ValueError, match="c=0"):
    dwpre(x, x, x, c=0)
