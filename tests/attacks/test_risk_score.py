import numpy as np
import pytest

from mixdef.attacks import Signals
from mixdef.attacks.risk_score import posterior, privacy_risk_score
from mixdef.metrics import auc

GOLDEN_IN, GOLDEN_OUT = np.array([1e-3, 1e-2, 0.1]), np.array([0.01, 1.0, 10.0])


def naive_posterior(value, inside, out, bins):
  pooled = [max(v, 1e-10) for v in (*inside, *out)]
  low, high = np.log(min(pooled)), np.log(max(pooled))

  def place(v):
    share = (np.log(max(v, 1e-10)) - low) / (high - low)
    return min(max(int(np.floor(share * bins)), 0), bins - 1)

  heights = []
  for b in range(bins):
    h_in = sum(place(v) == b for v in inside) / len(inside)
    heights.append((h_in, sum(place(v) == b for v in out) / len(out)))
  filled = [b for b in range(bins) if sum(heights[b]) > 0]
  best = min(filled, key=lambda b: (abs(b - place(value)), b))
  return heights[best][0] / sum(heights[best])


def test_golden_scores():
  scores = posterior(np.array([0.003, 0.02, 0.1, 3.0]), GOLDEN_IN, GOLDEN_OUT)
  np.testing.assert_allclose(scores, [1, 0.5, 1, 0])


def test_values_outside_the_edges_go_to_the_extreme_bins():
  scores = posterior(np.array([0.0, 1e-9, 99.0]), GOLDEN_IN, GOLDEN_OUT)
  np.testing.assert_array_equal(scores, [1, 1, 0])


def test_an_empty_bin_takes_the_nearest_left_first():
  inside, out = np.array([1.0, 1.5]), np.array([1e5, 0.9e5])
  values = 10.0 ** (np.arange(5) + 0.5)  # the middle of each of five bins
  np.testing.assert_array_equal(posterior(values, inside, out), [1, 1, 1, 0, 0])


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_a_naive_histogram(seed):
  rng = np.random.default_rng(seed)
  inside, out, values = (np.exp(3 * rng.normal(size=n)) for n in (7, 9, 30))
  expected = [naive_posterior(value, inside, out, 6) for value in values]
  np.testing.assert_allclose(posterior(values, inside, out, bins=6), expected)


@pytest.mark.parametrize("seed", range(50))
def test_pitfall_50_extremes_are_in_the_histogram(seed):
  rng = np.random.default_rng(seed)
  low, high = np.sort(np.exp(4 * rng.normal(size=2)))
  # The member is alone in its bin at one end, the non-member at the other.
  ends = np.array([low, high])
  np.testing.assert_array_equal(posterior(ends, ends[:1], ends[1:]), [1, 0])
  np.testing.assert_array_equal(posterior(ends, ends[1:], ends[:1]), [0, 1])


def test_equal_values_are_no_evidence():
  scores = posterior(np.array([0.1, 2.0, 3.0]), np.full(3, 2.0), np.full(4, 2.0))
  np.testing.assert_array_equal(scores, 0.5)


def make(classes=3, records=400, seed=0):
  rng = np.random.default_rng(seed)
  labels, members = rng.integers(0, classes, records), rng.random((3, records)) < 0.5
  phi = rng.normal(size=(3, records)) + 2 * members + labels
  return Signals.from_phi(phi, members, labels=labels)


@pytest.mark.parametrize("statistic", ["loss", "confidence"])
def test_every_class_has_its_histograms_from_the_shadow(statistic):
  signals = make()
  scores = privacy_risk_score(signals, target=2, statistic=statistic)
  values = signals.loss[:, :, 0]
  if statistic == "confidence":
    values = np.exp(-values)
  for i in (0, 1, 2, 3, 4, 5):
    mine = signals.labels == signals.labels[i]
    inside = values[0, mine & signals.members[0]]
    out = values[0, mine & ~signals.members[0]]
    assert scores[i] == pytest.approx(naive_posterior(values[2, i], inside, out, 5))
  assert auc(scores, signals.members[2]) > 0.7


def test_pitfall_49_class_missing_in_the_shadow_gets_the_histograms_of_all():
  signals = make()
  labels = signals.labels * 10 + 3  # classes need not be 0..K-1
  labels[0] = 77
  moved = Signals.from_phi(signals.phi, signals.members, labels=labels)
  scores = privacy_risk_score(moved, target=0, shadow=1)
  loss, member = signals.loss[:, :, 0], signals.members[1]
  expected = naive_posterior(loss[0, 0], loss[1, member], loss[1, ~member], 5)
  assert scores[0] == pytest.approx(expected)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"statistic": "entropy"}, "choose from 'loss', 'confidence'"),
    ({"bins": 0}, "bins is 0"),
    ({"shadow": 0}, "shadow=0 is the target"),
  ],
)
def test_unusable_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    privacy_risk_score(make(), target=0, **options)


def test_labels_are_needed():
  signals = make()
  with pytest.raises(ValueError, match="have no labels"):
    privacy_risk_score(Signals.from_phi(signals.phi, signals.members), target=0)
