import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import Signals, Unavailable
from mixdef.attacks.imia import glira, imia, imia_coverage, shrink
from mixdef.metrics import auc

OUT = (np.array([[0.0], [1], [-1]]), np.zeros((3, 1), bool))


def inside_of(*values):
  return np.array(values, float)[:, None], np.ones((len(values), 1), bool)


def draw(gap, n_in=10, n_out=10, records=4000, seed=0):
  """phi of a release, of ordinary models and of imitators, and the members."""
  rng = np.random.default_rng(seed)
  level = 3 * rng.normal(size=records)
  effects = gap * rng.exponential(size=records)
  members = rng.random(records) < 0.5
  sides = []
  for models in (n_in, n_out):
    chosen = rng.random((models, records)) < 0.5
    phi = level + rng.normal(size=chosen.shape) + effects * chosen
    sides.append((phi, chosen))
  return level + rng.normal(size=records) + effects * members, *sides, members


def test_check_values_of_the_clamp():
  assert imia([2.5], inside_of(2, 3, 4), OUT, form="clamp")[0] == pytest.approx(6)
  two = np.tile([2.5], 2)
  inside = np.array([[2.0, -2], [3, -1], [4, 0]]), np.ones((3, 2), bool)
  out = np.tile(OUT[0], 2), np.zeros((3, 2), bool)
  np.testing.assert_allclose(imia(two, inside, out, form="clamp"), [6, 0])
  raw = (2.5 - 0) ** 2 - (2.5 + 1) ** 2
  assert raw == -6
  assert imia_coverage(two, inside, out)["clamped"] == 1


def test_the_clamp_is_that_of_the_mean_over_views():
  # Gaps of three records in two views: (4, -1), (-4, 1) and (5, 5).
  inside = np.array([[[4.0, -1], [-4, 1], [5, 5]]]), np.ones((1, 3), bool)
  out = np.zeros((1, 3, 2)), np.zeros((1, 3), bool)
  phi = np.array([[3.0, 2], [3, 2], [1, 4]])
  expected = [((9 - 1) + (4 - 9)) / 2, 0, ((1 - 16) + (16 - 1)) / 2]
  np.testing.assert_allclose(imia(phi, inside, out, form="clamp"), expected)
  assert imia_coverage(phi, inside, out)["clamped"] == 1


def test_the_clamp_equals_a_loop_over_records_and_views():
  rng = np.random.default_rng(3)
  level = rng.normal(size=(25, 3))
  sides = []
  for models in (12, 9):
    members = rng.random((models, 25)) < 0.5
    members[:2] = [[True], [False]]
    noise = 2 * rng.normal(size=(models, 25, 3))
    sides.append((level + noise + members[..., None], members))
  phi = level + rng.normal(size=level.shape)
  expected = []
  for i in range(25):
    gap = score = 0.0
    for q in range(3):
      (a, kept), (b, left) = sides
      mu_in = np.mean([a[s, i, q] for s in range(12) if kept[s, i]])
      mu_out = np.mean([b[s, i, q] for s in range(9) if not left[s, i]])
      gap += mu_in - mu_out
      score += ((phi[i, q] - mu_out) ** 2 - (phi[i, q] - mu_in) ** 2) / 3
    expected.append(score if gap >= 0 else 0.0)
  scores = imia(phi, *sides, form="clamp")
  np.testing.assert_allclose(scores, expected, atol=1e-12)
  tied = int((scores == 0).sum())
  assert 0 < tied < 12
  assert imia_coverage(phi, *sides)["clamped"] == tied


def test_check_values_of_the_shrunk_gap():
  one = np.ones(1)
  for gap, middle, expected, score in ((3, 1.5, 2.2, 4.4), (-1, -0.5, 0.1, 0.6)):
    found = shrink(np.array([gap]), np.array([2 / 3]), one, one)[0]
    assert found == pytest.approx(expected)
    assert 2 * found * (2.5 - middle) == pytest.approx(score)


def test_no_spread_between_records_gives_all_the_mean_gap():
  gap = np.array([3.0, -1.0, 1.0])
  found = shrink(gap, np.ones(3), np.full(3, 1.0), np.zeros(3))
  np.testing.assert_array_equal(found, 1.0)
  np.testing.assert_array_equal(
    shrink(gap, np.zeros(3), np.zeros(3), np.zeros(3)), [3, 0, 1]
  )


@pytest.mark.parametrize("form", ["shrunk", "clamp"])
def test_scores_equal_a_loop_over_records(form):
  phi, inside, out, _ = draw(2.0, records=30)
  lists = []
  for (values, members), side in ((inside, True), (out, False)):
    lists.append([values[members[:, i] == side, i] for i in range(30)])
  means = np.array([[x.mean() for x in side] for side in lists])
  v = [
    sum(((x - x.mean()) ** 2).sum() for x in side) / sum(len(x) - 1 for x in side)
    for side in lists
  ]
  d = means[0] - means[1]
  w = np.array([v[0] / len(a) + v[1] / len(b) for a, b in zip(*lists, strict=True)])
  tau2 = max(0, d.var() - w.mean())
  star = (d / w + d.mean() / tau2) / (1 / w + 1 / tau2)
  star = np.maximum(star, d.mean() / 10)
  gap = star if form == "shrunk" else np.where(d < 0, 0, d)
  expected = 2 * gap * (phi - means.mean(0))
  np.testing.assert_allclose(imia(phi, inside, out, form=form), expected, rtol=1e-9)


def test_shrinking_beats_the_clamp_and_both_find_members():
  areas = {}
  phi, inside, out, members = draw(1.0, records=20_000)
  for form in ("shrunk", "clamp"):
    areas[form] = auc(imia(phi, inside, out, form=form), members)
  assert areas["shrunk"] > areas["clamp"] > 0.65


def test_the_clamp_ties_the_records_that_are_counted():
  phi, inside, out, _ = draw(0.5)
  scores = imia(phi, inside, out, form="clamp")
  tied = imia_coverage(phi, inside, out)["clamped"]
  assert tied > 200
  assert (scores == 0).sum() == tied
  shrunk = imia(phi, inside, out)
  scored = ~np.isnan(shrunk)
  assert len(np.unique(shrunk[scored])) == scored.sum()


def test_a_target_trained_on_none_of_the_records_is_not_found():
  phi, inside, out, members = draw(2.0, records=20_000)
  rng = np.random.default_rng(5)
  phi = np.where(out[1], 0, out[0]).sum(0) / np.maximum((~out[1]).sum(0), 1)
  scores = imia(phi + rng.normal(size=len(phi)), inside, out)
  scored = ~np.isnan(scores)
  found = auc(scores[scored], members[scored])
  assert abs(found - 0.5) < 3.3 * np.sqrt(1 / 12 * (4 / 20_000))


def test_without_a_direction_there_is_no_score():
  with pytest.raises(Unavailable, match="no direction"):
    imia([2.5], inside_of(-2, -3), OUT)


def test_a_record_without_models_on_a_side_has_no_score():
  phi, inside, out, _ = draw(2.0, records=50)
  out[1][:, 4] = True
  scores = imia(phi, inside, out)
  assert np.flatnonzero(np.isnan(scores)).tolist() == [4]
  assert imia_coverage(phi, inside, out)["excluded"] == 1
  with pytest.raises(Unavailable, match="train more models"):
    imia(phi, inside, (out[0], np.ones_like(out[1])))


def test_views_count_alike_and_signals_serve_as_references():
  phi, inside, out, _ = draw(2.0, records=50)
  one = imia(phi, inside, out)

  def twice(side):
    views = np.stack([side[0]] * 2, -1)
    return Signals.from_phi(views, side[1], audited=np.arange(50) > 3)

  several = imia(np.stack([phi] * 2, -1), twice(inside), twice(out))
  assert np.isnan(several[:4]).all()
  audited = [(values[:, 4:], members[:, 4:]) for values, members in (inside, out)]
  np.testing.assert_allclose(several[4:], imia(phi[4:], *audited), rtol=1e-12)
  assert not np.array_equal(one[4:], several[4:])


def test_references_must_be_of_the_same_records():
  with pytest.raises(ValueError, match="same records"):
    imia([2.5, 1.0], inside_of(2, 3), OUT)
  with pytest.raises(ValueError, match="form is 'raw'"):
    imia([2.5], inside_of(2, 3), OUT, form="raw")


def test_glira_is_the_one_sided_t_test():
  out = np.array([[0.0], [1], [-1], [0]]), np.zeros((4, 1), bool)
  assert np.exp(-glira([2.5], out)[0]) == pytest.approx(0.035711, abs=5e-7)
  assert np.exp(-glira([-2.5], out)[0]) == pytest.approx(1 - 0.035711, abs=5e-7)
  phi, _, out, members = draw(3.0)
  scores = glira(phi, out)
  row = 17
  values = out[0][~out[1][:, row], row]
  scale = values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
  expected = stats.t.logsf((phi[row] - values.mean()) / scale, len(values) - 1)
  assert scores[row] == pytest.approx(-expected)
  scored = ~np.isnan(scores)
  assert auc(scores[scored], members[scored]) > 0.7
