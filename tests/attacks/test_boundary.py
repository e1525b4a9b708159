import dataclasses

import numpy as np
import pytest
from perturbing_cases import leak, linear, overfitted

from mixdef.attacks.boundary import label_only_boundary
from mixdef.data import Dataset

W = np.array([3.0, 4.0, -1.0, 2.0, 0.5], np.float32)
SOME = np.arange(30)


def table(masked=False, records=150):
  """A two-class linear model with weight difference W and offset 1."""
  x = np.random.default_rng(0).normal(size=(records, len(W))).astype(np.float32)
  y = np.random.default_rng(1).integers(2, size=records)
  return linear(x, y, np.stack([W, 0 * W], 1), [1.0, 0.0], masked)


def margins(ensemble):
  data = ensemble.data
  return (data.x @ W + 1) * np.where(data.y == 0, 1, -1)


@pytest.fixture(scope="module")
def ensemble():
  return table()


@pytest.fixture(scope="module")
def scores(ensemble):
  return label_only_boundary(ensemble, target=0)


@pytest.fixture(scope="module")
def leaky():
  return overfitted()


@pytest.mark.slow
def test_pitfall_57_distance_is_the_margin_of_a_linear_model(ensemble, scores):
  x, margin = ensemble.data.x, margins(ensemble)
  distance = np.abs(margin) / np.linalg.norm(W)
  foot = x - (x @ W + 1)[:, None] * W / (W @ W)
  inside = ((x.min(0) <= foot) & (foot <= x.max(0))).all(1) & (margin > 0)
  assert inside.sum() > 40
  np.testing.assert_allclose(scores[inside], distance[inside], rtol=0.05)
  # An upper bound wherever the range cuts the shortest way off.
  assert (scores[margin > 0] >= distance[margin > 0] * (1 - 1e-4)).all()


@pytest.mark.slow
def test_pitfall_57_misclassified_records_are_at_distance_0(ensemble, scores):
  wrong = margins(ensemble) < 0
  assert wrong.sum() > 40
  assert (scores[wrong] == 0).all()
  assert (scores[~wrong] > 0).all()


@pytest.mark.slow
def test_pitfall_57_and_47_hidden_confidences_change_nothing(ensemble, scores):
  masked = table(masked=True)
  assert masked.log_probs(masked.data.x).min() < -80  # only the label is shown
  # Two programs may round a logit differently: where labels change moves by a bit.
  hidden = label_only_boundary(masked, target=0, records=SOME)
  np.testing.assert_allclose(hidden[SOME], scores[SOME], rtol=1e-5)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_others_attacked(ensemble, scores):
  records = np.array([149, 3, 140, 0, 77])
  some = label_only_boundary(ensemble, target=0, records=records)
  np.testing.assert_array_equal(some[records], scores[records])
  assert np.isnan(np.delete(some, records)).all()


@pytest.mark.slow
def test_the_seed_decides_the_draws(ensemble, scores):
  again, other = (
    label_only_boundary(ensemble, target=0, records=SOME, seed=seed)[SOME]
    for seed in (0, 1)
  )
  np.testing.assert_array_equal(again, scores[SOME])
  assert (other != scores[SOME]).any()
  np.testing.assert_allclose(other, scores[SOME], rtol=0.05)


@pytest.mark.slow
def test_more_queries_come_closer(leaky):
  few, many = (label_only_boundary(leaky, target=0, iterations=t) for t in (1, 5))
  hit = few > 0
  assert np.median(many[hit] / few[hit]) < 0.8
  assert (many <= few + 1e-6).all()


@pytest.mark.slow
def test_pictures_of_bytes_stay_in_range():
  """w = (1, 1) over two pixels in [0,1] and a boundary at a sum of 1.5."""
  x = np.array([[[[51], [0]]], [[[255], [255]]], [[[0], [0]]]], np.uint8)
  kernel = np.array([[0.0, 4.0], [0.0, 4.0]])
  ensemble = linear(x, [0, 1, 0], kernel, [6.0, 0.0])
  scores = label_only_boundary(ensemble, target=1)
  # From (0.2, 0) straight to (0.85, 0.65); from the corner (0, 0) to (.75, .75).
  expected = [1.3 / np.sqrt(2), 0.5 / np.sqrt(2), 1.5 / np.sqrt(2)]
  np.testing.assert_allclose(scores, expected, rtol=0.01)


@pytest.mark.slow
def test_a_boundary_out_of_range_is_infinitely_far():
  x = np.array([[[[0], [0]]], [[[9], [9]]]], np.uint8)
  ensemble = linear(x, [0, 1], np.zeros((2, 2)), [1.0, 0.0])
  np.testing.assert_array_equal(label_only_boundary(ensemble, target=0), [np.inf, 0])


@pytest.mark.slow
def test_members_of_an_overfitted_model_are_farther_from_the_boundary(leaky):
  scores = label_only_boundary(leaky, target=0, iterations=5)
  assert leak(scores, leaky.members[0]) > 0.6
  anyone = np.random.default_rng(5).random(len(scores)) < 0.5
  assert leak(scores, anyone) == pytest.approx(0.5, abs=0.12)


def test_wrong_arguments_are_named(ensemble):
  with pytest.raises(ValueError, match="target=2 is not a model; pass 0 to 1"):
    label_only_boundary(ensemble, target=2)
  with pytest.raises(ValueError, match="draws is 1; pass an integer of at least 2"):
    label_only_boundary(ensemble, target=0, draws=1)
  with pytest.raises(ValueError, match="records hold 150"):
    label_only_boundary(ensemble, target=0, records=[0, 150])


@pytest.mark.slow
def test_reference_records_are_never_scored():
  data = Dataset.from_arrays(np.eye(6, 2, dtype=np.float32), [0, 1] * 3)
  data = data.with_auxiliary(2)
  ensemble = linear(data.x, data.y, np.eye(2))
  ensemble = dataclasses.replace(ensemble, data=data)
  scores = label_only_boundary(ensemble, target=0, iterations=1)
  np.testing.assert_array_equal(np.isnan(scores), data.auxiliary)
  first = np.flatnonzero(data.auxiliary)[0]
  with pytest.raises(
    ValueError, match=f"records hold {first}, which is not an audited"
  ):
    label_only_boundary(ensemble, target=0, records=[first])


@pytest.mark.slow
def test_a_model_that_diverged_is_refused():
  ensemble = linear(np.eye(3, 2, dtype=np.float32), [0, 1, 0], np.full((2, 2), np.nan))
  with pytest.raises(ValueError, match="the target outputs NaN"):
    label_only_boundary(ensemble, target=0)
