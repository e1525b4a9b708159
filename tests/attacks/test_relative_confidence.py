import numpy as np
import pytest

from mixdef.attacks import Signals, Unavailable, leave_one_out
from mixdef.attacks.relative_confidence import (
  base,
  confidences,
  rmia,
  tune_offline_a,
)
from mixdef.metrics import auc

MODES = ["online", "offline"]


def phi_of(p):
  p = np.asarray(p, dtype=np.float64)
  return np.log(p) - np.log1p(-p)


def one_record(p_target, p_references, **options):
  phi = phi_of([p_target, *p_references])[:, None]
  return Signals.from_phi(phi, np.zeros(phi.shape, bool), **options)


def draw(models=9, records=30, population=40, queries=1, seed=0, boost=2.0):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  phi = rng.normal(size=(models, records, queries)) + boost * members[..., None]
  phi += 2 * rng.normal(size=(records, 1))
  unseen = rng.normal(size=(models, population, queries))
  unseen += 2 * rng.normal(size=(population, 1))
  return phi, members, unseen


def confidence_of(phi):
  return 1 / (1 + np.exp(-phi))


def naive_ratio(phi, members, i, target, mode, a):
  """r(x) of one record and view, in probabilities."""
  p, usable = [], np.arange(len(phi)) != target
  for k in range(len(phi)):
    if usable[k] and (mode == "online" or not members[k, i]):
      p.append(confidence_of(phi[k, i]))
  average = sum(p) / len(p)
  if mode == "offline":
    average = 0.5 * ((1 + a) * average + (1 - a))
  return confidence_of(phi[target, i]) / average


def test_golden_rmia():
  ratios = np.array([0.8, 1, 1.2, 1.5, 0.6])
  population = phi_of([ratios * 0.48, np.full(5, 0.2)])  # p(z) = .65 * .2 + .35
  signals = one_record(0.9, [0.5], population=population)
  options = {"target": 0, "mode": "offline", "a": 0.3}
  ratio = np.exp(rmia(signals, score="ratio", **options))
  assert ratio[0] == pytest.approx(1.333333, abs=5e-7)
  assert rmia(signals, gamma=1, **options)[0] == pytest.approx(0.8)
  assert rmia(signals, gamma=2, **options)[0] == pytest.approx(0.2)


def test_golden_base():
  signals = one_record(0.9, [0.5, 0.6, 0.4])
  assert base(signals, target=0)[0] == pytest.approx(0.587787, abs=5e-7)
  offline = base(signals, target=0, mode="offline", s=0.33)
  assert offline[0] == pytest.approx(0.123378, abs=5e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_pitfall_36_sorted_population_equals_the_dense_matrix(mode, gamma):
  phi, members, unseen = draw()
  signals = Signals.from_phi(phi, members, population=unseen)
  scores = rmia(signals, target=3, mode=mode, a=0.2, gamma=gamma)
  nobody = np.zeros(unseen.shape[:2], bool)
  z = [naive_ratio(unseen[..., 0], nobody, j, 3, mode, 0.2) for j in range(40)]
  for i in range(30):
    r = naive_ratio(phi[..., 0], members, i, 3, mode, 0.2)
    assert scores[i] == np.mean([r / other >= gamma for other in z])
  assert 0 < scores.mean() < 1


@pytest.mark.parametrize("mode", MODES)
def test_pitfall_35_rmia_coarsens_its_ratio(mode):
  phi, members, unseen = draw(models=24, records=200)
  signals = Signals.from_phi(phi, members, population=unseen)
  ratio = rmia(signals, target=0, mode=mode, score="ratio")
  scores = rmia(signals, target=0, mode=mode)
  by_ratio = scores[np.argsort(ratio)]
  assert (np.diff(by_ratio) >= 0).all()
  assert 1 < len(np.unique(scores)) < len(np.unique(ratio))


@pytest.mark.parametrize("mode", MODES)
def test_pitfall_32_population_and_records_share_one_rule(mode):
  _, _, unseen = draw()
  twice = np.concatenate([unseen, unseen], 1)  # once, it would be the population
  members = np.zeros(twice.shape[:2], bool)
  signals = Signals.from_phi(twice, members, population=unseen)
  scores = rmia(signals, target=0, mode=mode, gamma=1.0)
  np.testing.assert_allclose(np.sort(scores), np.repeat(np.arange(1, 41) / 40, 2))


def test_pitfall_34_averages_divide_by_the_models_of_the_record():
  phi, members, _ = draw(models=12, records=40)
  out = (~members)[1:].sum(0)
  assert len(np.unique(out)) > 3
  scores = rmia(
    Signals.from_phi(phi, members), target=0, mode="offline", a=0.4, score="ratio"
  )
  for i in range(40):
    assert np.exp(scores[i]) == pytest.approx(
      naive_ratio(phi[..., 0], members, i, 0, "offline", 0.4)
    )


def test_pitfall_37_base_works_with_bernoulli_counts():
  phi, members, _ = draw(models=7, records=5, queries=2)
  signals = Signals.from_phi(phi, members)
  online = base(signals, target=2)
  offline = base(signals, target=2, mode="offline", s=0.5)
  for i in range(5):
    expected = {"online": 0.0, "offline": 0.0}
    for q in range(2):
      p = {k: confidence_of(phi[k, i, q]) for k in range(7)}
      every = [p[k] for k in range(7) if k != 2]
      out = [p[k] for k in range(7) if k != 2 and not members[k, i]]
      expected["online"] += (np.log(p[2]) - np.log(np.mean(every))) / 2
      expected["offline"] += (np.log(p[2]) - 0.5 * np.log(np.mean(out))) / 2
    assert online[i] == pytest.approx(expected["online"])
    assert offline[i] == pytest.approx(expected["offline"])


def test_base_is_rmia_at_one_setting():
  phi, members, _ = draw(queries=2)
  signals = Signals.from_phi(phi, members)
  online = rmia(signals, target=0, score="ratio")
  np.testing.assert_allclose(base(signals, target=0), online)
  offline = rmia(signals, target=0, mode="offline", a=1.0, score="ratio")
  np.testing.assert_allclose(base(signals, target=0, mode="offline", s=1.0), offline)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attack", [rmia, base])
def test_a_record_that_no_reference_is_without_has_no_score(attack, mode):
  phi, members, unseen = draw()
  members[1:, 4] = True
  members[1:, 5] = False
  signals = Signals.from_phi(phi, members, population=unseen)
  scores = attack(signals, target=0, mode=mode)
  assert np.isnan(scores[4])
  assert np.isfinite(np.delete(scores, 4)).all()


def test_one_model_has_no_references():
  signals = one_record(0.9, [], population=[[0.0, 1.0]])
  for mode in MODES:
    for attack in (rmia, base):
      with pytest.raises(Unavailable, match=r"needs reference models.*one model"):
        attack(signals, target=0, mode=mode)


def test_pitfall_14_views_are_averaged_in_any_order():
  phi, members, unseen = draw(queries=3)
  signals = Signals.from_phi(phi, members, population=unseen)
  turned = Signals.from_phi(
    phi[..., [2, 0, 1]], members, population=unseen[..., [2, 0, 1]]
  )
  np.testing.assert_array_equal(rmia(signals, target=0), rmia(turned, target=0))
  single = [
    rmia(Signals.from_phi(phi[..., q], members), target=0, score="ratio")
    for q in range(3)
  ]
  together = rmia(signals, target=0, score="ratio")
  np.testing.assert_allclose(together, np.mean(single, axis=0))


@pytest.mark.parametrize("mode", MODES)
def test_pitfall_07_huge_losses_keep_their_order(mode):
  phi, members, unseen = draw(records=5)
  members[:, :] = False
  phi[0, :, 0] = [-5e3, -4e3, -1e3, 1e3, 4e3]
  phi[1:] = -3e3
  signals = Signals.from_phi(phi, members, population=1e3 * unseen)
  ratio = rmia(signals, target=0, mode=mode, score="ratio")
  assert np.isfinite(ratio).all()
  assert (np.diff(ratio)[:3] > 0).all()
  assert np.isfinite(rmia(signals, target=0, mode=mode)).all()
  expected = signals.loss[1, 0, 0] - signals.loss[0, :, 0]
  np.testing.assert_allclose(base(signals, target=0), expected)


def test_saturated_references_are_averaged_without_rounding():
  loss = np.array([1e-25, 3e-25, 5e-25])[:, None, None]
  got = confidences(loss, np.ones((3, 1), bool)).log_mean()
  assert got[0, 0] == pytest.approx(-3e-25, rel=1e-12)
  loss = np.array([900.0, 1000.0])[:, None, None]
  got = confidences(loss, np.ones((2, 1), bool)).log_mean()
  assert got[0, 0] == pytest.approx(-900 - np.log(2), rel=1e-14)


def test_pitfall_33_a_is_tuned_on_the_pseudo_target_alone():
  phi, members, _ = draw(models=20, records=400)
  areas, others = {}, np.delete(np.arange(20), 2)
  for a in np.linspace(0, 1, 11):
    ratio = [
      naive_ratio(phi[others, :, 0], members[others], i, 4, "offline", a)
      for i in range(400)
    ]
    areas[a] = auc(ratio, members[5])
  assert min(areas.values()) < max(areas.values())
  best = tune_offline_a(Signals.from_phi(phi, members), target=2, pseudo_target=5)
  assert best == max(areas, key=areas.get)


def test_pitfall_41_tuning_reads_nothing_of_the_target():
  phi, members, unseen = draw(models=20, records=400)
  best = tune_offline_a(Signals.from_phi(phi, members), target=2)
  changed, other = phi.copy(), members.copy()
  changed[2] = 50 * np.random.default_rng(1).normal(size=changed[2].shape)
  other[2] = ~other[2]
  signals = Signals.from_phi(changed, other, population=3 * unseen)
  assert tune_offline_a(signals, target=2) == best
  assert tune_offline_a(signals, target=2, pseudo_target=3) == best


def test_pitfall_31_a_population_that_was_trained_on_is_refused():
  phi, members, unseen = draw()
  trained = np.zeros(unseen.shape[:2], bool)
  trained[3, 7] = True
  with pytest.raises(ValueError, match="trained on a record of the population"):
    Signals(
      phi=phi, members=members, population=Signals.from_phi(unseen[..., 0], trained)
    )


def test_rmia_says_what_it_lacks():
  phi, members, _ = draw()
  signals = Signals.from_phi(phi, members)
  with pytest.raises(Unavailable, match=r"pass population=.*score='ratio'"):
    rmia(signals, target=0)


@pytest.mark.parametrize(
  ("attack", "options"),
  [
    (rmia, {"mode": "both"}),
    (rmia, {"a": 1.5}),
    (rmia, {"gamma": 0.0}),
    (rmia, {"score": "log"}),
    (base, {"mode": "both"}),
    (base, {"s": -1.0}),
    (tune_offline_a, {"pseudo_target": 0}),
    (tune_offline_a, {"grid": [2.0]}),
    (tune_offline_a, {"grid": []}),
  ],
)
def test_unusable_options_are_refused(attack, options):
  phi, members, unseen = draw()
  signals = Signals.from_phi(phi, members, population=unseen)
  with pytest.raises(ValueError, match=next(iter(options))):
    attack(signals, target=0, **options)


@pytest.mark.parametrize("mode", MODES)
def test_scores_of_several_targets_share_a_scale(mode):
  phi, members, unseen = draw(records=400, population=400)
  sharp = np.linspace(0.5, 1.5, len(phi))[:, None, None]
  signals = Signals.from_phi(sharp * phi, members, population=sharp * unseen)
  scores = leave_one_out(rmia, signals, mode=mode)
  assert auc(scores, members) > 0.6
