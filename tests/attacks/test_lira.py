import tracemalloc

import numpy as np
import pytest
from scipy import stats

from mixdef import attacks
from mixdef.attacks import OFFICIAL, Signals
from mixdef.metrics import auc

INSIDE, OUTSIDE = (2, 3, 4, 3), (0, 1, -1, 0)


def one_record(phi, inside=INSIDE, outside=OUTSIDE):
  """A target with this phi, and references in and out of its only record."""
  values = np.array([[phi, *inside, *outside]], dtype=float).T
  members = np.array([[False, *[True] * len(inside), *[False] * len(outside)]]).T
  return Signals.from_phi(values, members)


def draw(models=10, records=60, queries=1, seed=0):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  phi = rng.normal(size=(models, records, queries)) + members[..., None]
  return phi + 2 * rng.normal(size=(records, 1)), members


@pytest.mark.parametrize(
  ("options", "online", "z", "log_sf", "log_pdf"),
  [
    ({}, 4.5, 3.061862, 6.812606, 5.403706),
    (OFFICIAL, 6.0, 3.535534, 8.499962, 6.822365),
  ],
)
def test_pitfall_28_golden_table(options, online, z, log_sf, log_pdf):
  signals = one_record(2.5)

  def score(attack, **more):
    return attack(signals, target=0, **options, **more)[0]

  assert score(attacks.lira_online) == pytest.approx(online, abs=5e-7)
  assert score(attacks.lira_offline) == pytest.approx(z, abs=5e-7)
  tail = score(attacks.lira_offline, combine="log_sf")
  assert tail == pytest.approx(log_sf, abs=5e-7)
  density = score(attacks.lira_offline_two_sided)
  assert density == pytest.approx(log_pdf, abs=5e-7)


@pytest.mark.parametrize("options", [{}, OFFICIAL])
def test_scores_equal_a_loop_over_records(options):
  phi, members = draw(models=24, queries=2)
  signals = Signals.from_phi(phi, members)
  centre = np.median if options else np.mean
  ddof = options.get("ddof", 1)
  online = attacks.lira_online(signals, target=3, **options)
  offline = attacks.lira_offline(signals, target=3, **options)
  density = attacks.lira_offline_two_sided(signals, target=3, **options)
  references = np.arange(24) != 3
  for i in range(members.shape[1]):
    ratios, zs, out = [], [], []
    for q in range(2):
      a, b = (phi[references & (members[:, i] == side), i, q] for side in (True, False))
      densities = [
        stats.norm.logpdf(phi[3, i, q], centre(side), np.std(side, ddof=ddof))
        for side in (a, b)
      ]
      ratios.append(densities[0] - densities[1])
      out.append(densities[1])
      zs.append((phi[3, i, q] - centre(b)) / np.std(b, ddof=ddof))
    assert online[i] == pytest.approx(np.mean(ratios))
    assert offline[i] == pytest.approx(np.mean(zs))
    assert density[i] == pytest.approx(-np.mean(out))


@pytest.mark.parametrize("attack", [attacks.lira_offline, attacks.lira_offline_fixed])
def test_pitfall_17_offline_is_strictly_increasing_in_phi(attack):
  scores = [attack(one_record(phi), target=0)[0] for phi in (-6, -2, 0, 0.5, 9, 90)]
  assert (np.diff(scores) > 0).all()


def test_pitfall_18_two_sided_density_calls_the_far_left_a_member():
  scores = [
    attacks.lira_offline_two_sided(one_record(phi), target=0)[0] for phi in (-6, 2.5)
  ]
  spread = np.std(OUTSIDE, ddof=1)
  assert scores[0] == pytest.approx(-stats.norm.logpdf(-6, 0, spread))
  assert scores[0] > scores[1]
  assert scores[0] == pytest.approx(27.7, abs=0.05)


@pytest.mark.parametrize("combine", ["z", "log_sf"])
def test_pitfall_19_the_far_tail_does_not_tie(combine):
  spread = np.std(OUTSIDE, ddof=1)
  scores = [
    attacks.lira_offline(one_record(z * spread), target=0, combine=combine)[0]
    for z in (40, 50)
  ]
  assert np.isfinite(scores).all()
  assert scores[1] > scores[0]


@pytest.mark.parametrize(
  "attack", [attacks.lira_online_fixed, attacks.lira_offline_fixed]
)
def test_pitfall_20_fixed_variance_ignores_the_spread_between_records(attack):
  phi, members = draw()
  offset = 100 * np.random.default_rng(1).normal(size=(members.shape[1], 1))
  plain = attack(Signals.from_phi(phi, members), target=0)
  moved = attack(Signals.from_phi(phi + offset, members), target=0)
  np.testing.assert_allclose(moved, plain, atol=1e-8)


def test_fixed_variance_is_the_mean_of_within_record_variances_of_each_side():
  phi, members = draw(models=30)
  got = attacks.lira_online_fixed(Signals.from_phi(phi, members), target=0)
  spread, centre = [], []
  for side in (True, False):
    parts = [phi[1:, i, 0][members[1:, i] == side] for i in range(members.shape[1])]
    spread.append(np.sqrt(np.mean([part.var(ddof=1) for part in parts])))
    centre.append(np.array([part.mean() for part in parts]))
  logs = [
    stats.norm.logpdf(phi[0, :, 0], c, s) for c, s in zip(centre, spread, strict=True)
  ]
  np.testing.assert_allclose(got, logs[0] - logs[1])


@pytest.mark.parametrize(
  "attack",
  [
    attacks.lira_offline,
    attacks.lira_offline_fixed,
    attacks.lira_offline_two_sided,
  ],
)
def test_pitfall_21_offline_reads_out_models_only(attack):
  phi, members = draw()
  members[0] = False
  changed = np.where(members[..., None], 10 * phi, phi)
  plain = attack(Signals.from_phi(phi, members), target=0)
  np.testing.assert_array_equal(
    attack(Signals.from_phi(changed, members), target=0), plain
  )


@pytest.mark.parametrize(
  "attack", [attacks.lira_online_fixed, attacks.lira_offline_fixed]
)
def test_pitfall_22_spread_never_comes_from_the_target(attack):
  phi, members = draw()
  first = attack(Signals.from_phi(phi, members), target=0)[0]
  phi[0, 1:] *= 50
  assert attack(Signals.from_phi(phi, members), target=0)[0] == first


def test_pitfall_23_fixed_variance_is_honoured_offline():
  phi, members = draw(models=20)
  signals = Signals.from_phi(phi, members)
  fixed = attacks.lira_offline_fixed(signals, target=0)
  own = attacks.lira_offline(signals, target=0)
  assert not np.allclose(fixed, own)
  centre = np.array(
    [phi[1:, i, 0][~members[1:, i]].mean() for i in range(members.shape[1])]
  )
  ratio = fixed / (phi[0, :, 0] - centre)
  np.testing.assert_allclose(ratio, ratio[0])


def test_pitfall_25_with_equal_spreads_the_roc_does_not_depend_on_them():
  # Two references on each side at distance 1: every within-record variance is equal.
  rng = np.random.default_rng(0)
  mu_in, mu_out = 1 + rng.normal(size=25), rng.normal(size=25)
  target = rng.normal(size=25) + 0.5
  members = np.zeros((5, 25), dtype=bool)
  members[1:3] = True

  def scores(spread):
    rows = [target, mu_in - spread, mu_in + spread, mu_out - spread, mu_out + spread]
    return attacks.lira_online_fixed(Signals.from_phi(rows, members), target=0)

  np.testing.assert_allclose(scores(0.5), 16 * scores(2.0))


def test_pitfall_26_few_references_give_a_fallback_and_a_count():
  phi, members = draw(models=6, records=8)
  members[:] = np.array([0, 1, 0, 1, 0, 1], dtype=bool)[:, None]
  members[1:, 0] = False  # no model in: the offline z
  members[1:, 1] = [True, False, False, False, False]  # one in: pooled variance
  members[1:, 2] = [True, True, True, True, False]  # one out: pooled variance
  members[1:, 3] = True  # no model out: excluded
  signals = Signals.from_phi(phi, members)
  counts = attacks.lira_coverage(signals, target=0)
  assert counts["offline"] == counts["pooled_in"] == 1
  assert counts["pooled_out"] == counts["excluded"] == 1
  online = attacks.lira_online(signals, target=0)
  offline = attacks.lira_offline(signals, target=0)
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(online)), [3])
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(offline)), [3])
  assert online[0] == offline[0]
  assert np.nanmax(np.abs(online)) < 1e3


@pytest.mark.parametrize("options", [{}, OFFICIAL])
def test_two_models_fall_back_to_the_difference_from_the_reference(options):
  members = np.array([[True, False], [False, False]])
  signals = Signals.from_phi([[3.0, 1.0], [1.0, 2.0]], members)
  scores = attacks.lira_offline(signals, target=0, **options)
  np.testing.assert_array_equal(scores, [2.0, -1.0])


@pytest.mark.parametrize("options", [{}, OFFICIAL])
def test_pitfall_27_identical_references_do_not_make_a_spike(options):
  phi, members = draw(models=12)
  members[1:, 0] = [True] * 5 + [False] * 6
  phi[1:6, 0] = phi[0, 0]
  signals = Signals.from_phi(phi, members)
  scores = attacks.lira_online(signals, target=0, **options)
  assert np.isfinite(scores).all()
  assert scores[0] < 100
  counts = attacks.lira_coverage(signals, target=0)
  assert counts["floored_in"] == 1
  assert counts["floored_out"] == 0


@pytest.mark.parametrize("name", [n for n in attacks.CATALOGUE if "lira_o" in n])
def test_pitfall_27_an_ensemble_of_equal_outputs_does_not_make_a_spike(name):
  _, members = draw(models=12)
  phi = np.full(members.shape, 0.1)  # its mean over three models is not 0.1
  phi[0] = 0.3
  scores = attacks.CATALOGUE[name](Signals.from_phi(phi, members), target=0)
  assert np.nanmax(np.abs(scores)) < 2


def test_the_variance_floor_follows_the_unit_of_phi():
  phi, members = draw(models=12)
  phi[1:, 0] = members[1:, 0, None]
  scores = [
    attacks.lira_online(Signals.from_phi(unit * phi, members), target=0)
    for unit in (1.0, 1e-6)
  ]
  np.testing.assert_allclose(*scores, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in attacks.CATALOGUE if "lira_o" in n])
def test_pitfall_14_views_are_averaged_in_any_order(name):
  phi, members = draw(queries=3)
  attack = attacks.CATALOGUE[name]
  plain = attack(Signals.from_phi(phi, members), target=0)
  turned = attack(Signals.from_phi(phi[:, :, [2, 0, 1]], members), target=0)
  single = [attack(Signals.from_phi(phi[:, :, q], members), target=0) for q in range(3)]
  np.testing.assert_allclose(turned, plain)
  np.testing.assert_allclose(np.mean(single, axis=0), plain)


def test_hinge_is_a_choice_of_statistic():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(8, 20, 3)), rng.integers(0, 3, 20)
  members = rng.random((8, 20)) < 0.5
  members[:4], members[4:] = True, False
  signals = Signals.from_logits(logits, labels, members)
  by_hinge = attacks.lira_online(signals, target=0, score="hinge")
  swapped = Signals.from_phi(signals.hinge, members)
  np.testing.assert_array_equal(by_hinge, attacks.lira_online(swapped, target=0))


def test_global_ranks_as_the_loss():
  phi, members = draw()
  signals = Signals.from_phi(phi, members)
  order = np.argsort(attacks.lira_global(signals, target=0))
  losses = attacks.loss_threshold(signals, target=0)
  np.testing.assert_array_equal(order, np.argsort(losses))


@pytest.mark.parametrize(
  "options", [{"score": "loss"}, {"centre": "mode"}, {"ddof": 2}]
)
def test_unknown_options_are_refused(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    attacks.lira_online(one_record(1.0), target=0, **options)


def test_pitfall_30_working_memory_stays_below_the_score_tensor():
  phi, members = draw(models=32, records=20_000, queries=2)
  signals = Signals.from_phi(phi, members)
  tracemalloc.start()
  attacks.lira_online(signals, target=0)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < signals.phi.nbytes


@pytest.mark.parametrize(("ddof", "plain"), [(0, 0.433), (1, 0.444)])
def test_pitfall_135_null_auc_of_the_designs_at_8_models(ddof, plain):
  rng = np.random.default_rng(0)
  models, records = 8, 20_000
  phi = rng.normal(size=(models, records)) + 2 * rng.normal(size=records)
  halves = rng.random((models, records)).argsort(0).argsort(0) < models // 2
  coins = rng.random((models, records)) < 0.5

  def null_auc(members, design=None):
    signals = Signals.from_phi(phi, members, design=design)
    scores = attacks.leave_one_out(attacks.lira_online, signals, ddof=ddof)
    return auc(scores, members)

  assert null_auc(coins) == pytest.approx(0.5, abs=0.006)
  assert null_auc(halves) == pytest.approx(0.5, abs=0.006)  # evened out by itself
  assert null_auc(halves, "bernoulli") == pytest.approx(plain, abs=0.006)
