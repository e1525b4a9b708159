"""Resamples of many pairs, which read the ROC at a grid of thresholds."""

import numpy as np
import pytest

from mixdef.metrics import bootstrap_records, paired_bootstrap, resampling
from mixdef.metrics.roc import Roc

FPRS = (0.001, 0.01, 0.05)


def drawn(seed=0, targets=20, records=2000):
  rng = np.random.default_rng(seed)
  members = rng.random((targets, records)) < 0.5
  easy = rng.normal(size=records)  # pairs of a record are dependent
  scores = rng.normal(size=members.shape) + easy + 1.5 * members
  scores[0, :100] = np.nan
  return scores, members


@pytest.fixture
def coarse(monkeypatch):
  """Treat every number of pairs as too many to read all of them."""
  monkeypatch.setattr(resampling, "_EXACT", 0)


def test_binned_counts_are_those_of_a_loop():
  scores, members = drawn(targets=3, records=12)
  scores[:, 5] = np.nan  # a record without any score
  levels = sorted(set(scores[~np.isnan(scores)]), reverse=True)
  found = resampling.Binned.of(scores, members, thresholds=100)
  for row, record in enumerate([i for i in range(12) if i != 5]):
    for place, level in enumerate(levels):
      own = scores[:, record] >= level
      assert found.tp[row, place] == (own & members[:, record]).sum()
      assert found.fp[row, place] == (own & ~members[:, record]).sum()


def test_a_grid_of_thresholds_gives_the_variance_of_all_pairs(monkeypatch):
  scores, members = drawn()
  exact = bootstrap_records(scores, members, fprs=FPRS, threshold=0.5)
  monkeypatch.setattr(resampling, "_EXACT", 0)
  found = bootstrap_records(scores, members, fprs=FPRS, threshold=0.5)
  np.testing.assert_allclose(found["auc"], exact["auc"], atol=1e-4)
  assert found["balanced_accuracy"] == exact["balanced_accuracy"]
  assert found["trials"]["auc"] == pytest.approx(exact["trials"]["auc"], rel=0.01)
  for fpr in FPRS:
    low, high = exact["tpr"][fpr]
    np.testing.assert_allclose(found["tpr"][fpr], (low, high), atol=0.05 * (high - low))


def test_few_thresholds_do_not_move_the_interval(monkeypatch):
  """The lines between 64 thresholds miss area of a concave ROC."""
  scores, members = drawn()
  worse = scores + np.random.default_rng(1).normal(size=scores.shape)
  exact = bootstrap_records(scores, members, fprs=FPRS)
  apart = paired_bootstrap((scores, members), (worse, members), fprs=FPRS)
  monkeypatch.setattr(resampling, "_EXACT", 0)
  monkeypatch.setattr(resampling, "_CELLS", 1)
  found = bootstrap_records(scores, members, fprs=FPRS)
  np.testing.assert_allclose(found["auc"], exact["auc"], atol=2e-4)
  found = paired_bootstrap((scores, members), (worse, members), fprs=FPRS)
  assert found["auc"]["difference"] == pytest.approx(apart["auc"]["difference"])
  np.testing.assert_allclose(found["auc"]["ci"], apart["auc"]["ci"], atol=5e-4)


@pytest.mark.usefixtures("coarse")
def test_a_known_curve_changes_nothing():
  pair = drawn()
  given = bootstrap_records(*pair, fprs=FPRS, resamples=50, curve=Roc.of(*pair))
  assert given == bootstrap_records(*pair, fprs=FPRS, resamples=50)


@pytest.mark.usefixtures("coarse")
def test_differences_of_two_attacks_are_read_from_the_grid_too(monkeypatch):
  scores, members = drawn()
  worse = scores + np.random.default_rng(1).normal(size=scores.shape)
  found = paired_bootstrap((scores, members), (worse, members), fprs=(0.01,))
  monkeypatch.setattr(resampling, "_EXACT", 10**9)
  exact = paired_bootstrap((scores, members), (worse, members), fprs=(0.01,))
  np.testing.assert_allclose(found["auc"]["ci"], exact["auc"]["ci"], atol=3e-4)
  width = np.ptp(exact["tpr"][0.01]["ci"])
  np.testing.assert_allclose(
    found["tpr"][0.01]["ci"], exact["tpr"][0.01]["ci"], atol=0.1 * width
  )


def test_persons_are_drawn_with_all_their_records_in_blocks(monkeypatch):
  monkeypatch.setattr(resampling, "_CELLS", 12)
  units = np.array([0, 0, 1, 2])
  blocks = list(resampling.draws(np.random.default_rng(0), units, 8))
  assert [len(block) for block in blocks] == [3, 3, 2]
  weights = np.concatenate(blocks)
  np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
  np.testing.assert_array_equal(weights[:, 1:].sum(1), 3)
