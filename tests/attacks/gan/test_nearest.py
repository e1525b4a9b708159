import dataclasses
import functools

import numpy as np
import pytest
from generator_cases import by_heart, ensemble_of, ignorant, leak, memorised, table

from mixdef.attacks._designs import detect_design, references
from mixdef.attacks.gan import _distances
from mixdef.attacks.gan._distances import nearest_distances, tiles
from mixdef.attacks.gan._principal_components import principal_components
from mixdef.attacks.gan._sampling import samples
from mixdef.attacks.gan.calibrated import gan_leaks_calibrated
from mixdef.attacks.gan.monte_carlo import monte_carlo, monte_carlo_set
from mixdef.attacks.gan.nearest import gan_leaks_full_black_box, nearest_losses
from mixdef.attacks.gan.reconstruction import reconstruction_losses

FEW = {"num_samples": 300}
ATTACKS = {
  "full_black_box": gan_leaks_full_black_box,
  "calibrated": gan_leaks_calibrated,
  "count": functools.partial(monte_carlo, percentile=60),
  "log": functools.partial(monte_carlo, kernel="log", percentile=60),
  "ratio": functools.partial(monte_carlo, kernel="ratio", percentile=60),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def naive_distances(x, points):
  return np.sqrt(((np.float64(x)[:, None] - np.float64(points)[None]) ** 2).sum(-1))


def test_tiles_cover_every_pair_once(monkeypatch):
  monkeypatch.setattr(_distances, "_TILE", 4)
  rng = np.random.default_rng(0)
  x, points = rng.random((11, 3), np.float32), rng.random((9, 3), np.float32)
  found = np.full((11, 9), np.nan)
  for rows, columns, squares in tiles(x, points):
    assert np.isnan(found[rows, columns]).all()
    found[rows, columns] = squares
  naive = naive_distances(x, points)
  np.testing.assert_allclose(np.sqrt(found), naive, rtol=1e-9)
  np.testing.assert_allclose(nearest_distances(x, points), naive.min(1), rtol=1e-9)


def test_a_copy_is_at_no_distance_however_long_records_are():
  """||x||^2 is 10^4 here: in float32 a copy could be .03 away."""
  x = np.random.default_rng(1).random((5, 30_000), np.float32)
  near = nearest_distances(x, np.concatenate([x[:4], 1 - x]))
  np.testing.assert_allclose(near[:4], 0, atol=1e-4)
  assert near[4] > 1


def test_the_score_is_the_negated_distance_to_the_nearest_sample():
  ensemble = memorised()
  scores = gan_leaks_full_black_box(ensemble, target=1, **FEW)
  made, _ = samples(ensemble[1], 300)
  naive = naive_distances(ensemble.data.x, made).min(1)
  np.testing.assert_allclose(-scores, naive, rtol=1e-6, atol=1e-7)
  losses = nearest_losses(ensemble, np.array([3, 1]), **FEW)
  np.testing.assert_array_equal(losses[1], -scores[[3, 1]])


def test_pictures_are_compared_on_the_networks_scale():
  """uint8 records against samples in [0,1]: a copy is at no distance."""
  ensemble = memorised()
  data = ensemble.data
  bytes_ = (255 * data.x).astype(np.uint8)
  pictures = dataclasses.replace(data, x=bytes_, test=None)
  leaky = ensemble_of(
    pictures, ensemble.members, by_heart(bytes_ / 255, ensemble.members)
  )
  scores = gan_leaks_full_black_box(leaky, target=0, num_samples=2000)
  assert np.median(scores[ensemble.members[0]]) > -1e-3


@pytest.mark.parametrize("loss", ["nearest", "reconstruction"])
def test_calibration_is_the_mean_over_references_without_the_record(loss):
  ensemble = memorised()
  options = FEW if loss == "nearest" else {"steps": 5}
  ask = nearest_losses if loss == "nearest" else reconstruction_losses
  losses = ask(ensemble, **options)
  scores = gan_leaks_calibrated(ensemble, target=2, loss=loss, **options)
  members, audited = ensemble.members, ensemble.data.audited
  usable = references(members, 2, audited=audited, design=detect_design(members))
  for i in range(len(audited)):
    out = [
      losses[s, i] for s in range(4) if s != 2 and usable[s, i] and not members[s, i]
    ]
    expected = np.mean(out) - losses[2, i] if out else np.nan
    assert scores[i] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_records_without_a_reference_have_no_calibrated_score():
  ensemble = memorised()
  members = ensemble.members.copy()
  members[:, 0], members[:, 1] = True, [False, True, True, True]
  ensemble = dataclasses.replace(ensemble, members=members)
  scores = gan_leaks_calibrated(ensemble, target=0, **FEW)
  assert np.isnan(scores[:2]).all()
  assert np.isfinite(scores[2:]).sum() > 10


@pytest.mark.parametrize(
  ("kernel", "value"),
  [
    ("count", lambda d, eps: 1.0),
    ("log", lambda d, eps: -np.log(d / eps)),
    ("ratio", lambda d, eps: eps / d),
  ],
)
def test_monte_carlo_sums_a_kernel_over_the_ball(kernel, value):
  """Six components of six features are a rotation: distances are those of records."""
  ensemble = memorised()
  x = ensemble.data.x
  made, _ = samples(ensemble[0], 300)
  naive = np.maximum(naive_distances(x, made), 1e-9)
  eps = np.percentile(naive.min(1), 70)
  expected = [sum(value(d, eps) for d in row if d < eps) / 300 for row in naive]
  scores = monte_carlo(ensemble, target=0, kernel=kernel, percentile=70, **FEW)
  # Of a copy, the weight is cut off.
  clear = naive.min(1) > 1e-3
  assert clear.sum() > 5
  np.testing.assert_allclose(scores[clear], np.array(expected)[clear], rtol=1e-3)


def test_pitfall_111_the_radius_does_not_use_membership():
  ensemble = memorised()
  order = np.random.default_rng(0).permutation(len(ensemble.data))
  told = dataclasses.replace(ensemble, members=ensemble.members[:, order])
  np.testing.assert_array_equal(
    monte_carlo(ensemble, target=0, **FEW), monte_carlo(told, target=0, **FEW)
  )


def test_principal_components_are_those_of_a_full_decomposition():
  rng = np.random.default_rng(0)
  for shape in ((40, 6), (5, 30)):  # more records than features, and fewer
    x = rng.random(shape)
    space = principal_components(x, 3)
    _, singular, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(space.spread, singular[:3] / np.sqrt(shape[0] - 1))
    overlap = np.abs(space.axes.T @ axes[:3].T)
    np.testing.assert_allclose(overlap, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(space(x).std(0, ddof=1), space.spread)
    # Five records differ in four directions, whatever is asked for.
    assert len(principal_components(x, 9).spread) == min(6, shape[0] - 1, 9)


def test_components_are_fitted_on_the_held_out_file():
  ensemble = memorised()
  scores = monte_carlo(ensemble, target=0, components=2, **FEW)
  test = ensemble.data.test.select(np.arange(5))
  other = dataclasses.replace(
    ensemble, data=dataclasses.replace(ensemble.data, test=test)
  )
  assert not np.allclose(monte_carlo(other, target=0, components=2, **FEW), scores)


def test_sets_are_told_apart_more_surely_the_larger_they_are():
  """Sums of n scores one apart: Phi(sqrt(n / 2)), .76 at 1 and .98 at 8."""
  rng = np.random.default_rng(0)
  members = np.arange(20_000) < 10_000
  scores = rng.normal(size=20_000) + members
  for size, share in ((1, 0.7602), (8, 0.9772)):
    told = monte_carlo_set(scores, members, size=size, draws=2000)
    assert told == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 2000))
  ties = monte_carlo_set(np.zeros(20_000), members, draws=10)
  assert ties == 0.5


def test_pitfall_110_non_members_are_drawn_for_themselves():
  """Were member 0 always set against non-member 0, the outcome would be certain."""
  scores = np.array([1.0, 3.0, 0.0, 2.0, np.nan])
  members = np.array([True, True, False, False, True])
  told = monte_carlo_set(scores, members, size=1, draws=4000)
  assert told == pytest.approx(0.75, abs=0.035)


@each_attack
def test_members_of_a_memorising_generator_are_found_and_others_not(attack):
  leaky, tight = memorised(), ignorant()
  assert leak(attack(leaky, target=1, num_samples=1000), leaky.members[1]) > 0.8
  scores = attack(tight, target=1, **FEW)
  known = ~np.isnan(scores)
  # 100 against 100: 3 sigma of the AUC are .12, and half of them may tie.
  assert leak(scores[known], tight.members[1, known]) == pytest.approx(0.5, abs=0.12)


@each_attack
def test_scores_do_not_depend_on_the_others_attacked(attack):
  ensemble = memorised()
  scores = attack(ensemble, target=0, **FEW)
  records = np.array([20, 3])
  some = attack(ensemble, target=0, records=records, **FEW)
  np.testing.assert_allclose(some[records], scores[records], rtol=1e-9)
  assert np.isnan(np.delete(some, records)).all()
  assert scores.dtype == np.float64


@pytest.mark.parametrize(
  "attack", [gan_leaks_full_black_box, monte_carlo], ids=lambda f: f.__name__
)
def test_scores_follow_their_records(attack):
  ensemble = memorised()
  order = np.random.default_rng(3).permutation(len(ensemble.data))
  moved = dataclasses.replace(
    ensemble, data=ensemble.data.select(order), members=ensemble.members[:, order]
  )
  scores = attack(ensemble, target=2, **FEW)
  np.testing.assert_allclose(attack(moved, target=2, **FEW), scores[order], rtol=1e-9)


def test_wrong_options_are_named():
  ensemble = memorised()
  for options, message in (
    ({"kernel": "hog"}, "kernel is 'hog'; choose from 'count', 'log', 'ratio'"),
    ({"percentile": 0}, "percentile is 0; pass a number above 0 and at most 100"),
    ({"components": 0}, "components is 0"),
    ({"num_samples": 0}, "num_samples is 0"),
  ):
    with pytest.raises(ValueError, match=message):
      monte_carlo(ensemble, target=0, **options)
  with pytest.raises(ValueError, match="loss is 'lpips'; choose from 'nearest'"):
    gan_leaks_calibrated(ensemble, target=0, loss="lpips")
  with pytest.raises(ValueError, match="all 3 records are equal"):
    principal_components(np.ones((3, 2)), 1)
  scores, members = np.arange(4.0), np.arange(4) < 2
  with pytest.raises(ValueError, match="pass 1 to 2"):
    monte_carlo_set(scores, members, size=3)
  with pytest.raises(ValueError, match="members int64"):
    monte_carlo_set(scores, np.arange(4))


def test_a_table_of_other_records_is_no_help():
  """The fakes of a generator that copies others are near nobody asked about."""
  ensemble = ignorant()
  scores = gan_leaks_full_black_box(ensemble, target=0, **FEW)
  made, _ = samples(ensemble[0], 300)
  assert nearest_distances(table(12, seed=99).x, made).mean() < -scores.mean() / 3
