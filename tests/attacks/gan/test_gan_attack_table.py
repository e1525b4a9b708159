"""One table over every attack on GANs of the catalogue."""

import functools

import numpy as np
import pytest
from gan_attack_cases import made_up, some_records, with_model

from mixdef.attacks import gan, leave_one_out
from mixdef.data import subsets
from mixdef.learners import wgan_gp
from mixdef.metrics import auc
from mixdef.models import table_networks

LEARNER = wgan_gp(table_networks(5, 2, hidden=4, latent=2))
QUICK = {
  "logan_black_box": {"learner": LEARNER, "num_samples": 16, "epochs": 1},
  "gan_leaks_white_box": {"steps": 3},
  "gan_leaks_partial_black_box": {"steps": 2},
}


def of_name(name):
  attack = gan.CATALOGUE[name]
  if name in gan.ATTACKS.on_signals:
    return attack
  return functools.partial(attack, **QUICK.get(name, {"num_samples": 64}))


@pytest.fixture(params=sorted(gan.ATTACKS.on_signals))
def on_signals(request):
  return of_name(request.param)


@pytest.fixture(params=sorted(gan.ATTACKS.on_models))
def on_models(request):
  return of_name(request.param)


def arrays(gain=1.5, *, models=24, records=200, seed=0):
  """Losses of critics and of reconstructions, which fall by `gain` for members."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  gained = gain * members[:, :, None]
  hardness = 0.3 * rng.normal(size=(records, 1))
  stacks = {
    "phi": gained + rng.normal(size=(models, records, 1)) + hardness,
    "critic": gained[..., None] + rng.normal(size=(models, records, 1, 3)),
    "reconstruction": rng.normal(size=(models, records, 1)) - gained,
  }
  return members, stacks


def signals_of(members, stacks, **options):
  return gan.GanSignals(members=members, **stacks, **options)


def test_larger_means_member(on_signals):
  members, stacks = arrays()
  scores = leave_one_out(on_signals, signals_of(members, stacks))
  assert scores.dtype == np.float64
  assert auc(scores, members) > 0.7


def test_a_random_membership_is_not_found_in_signals(on_signals):
  members, stacks = arrays(0.0, records=3000, models=8)
  scores = on_signals(signals_of(members, stacks), target=0)
  assert abs(auc(scores, members[0]) - 0.5) < 0.053  # five standard errors


def test_permuting_records_permutes_their_scores(on_signals):
  members, stacks = arrays()
  order = np.random.default_rng(1).permutation(members.shape[1])
  moved = {name: values[:, order] for name, values in stacks.items()}
  np.testing.assert_allclose(
    on_signals(signals_of(members[:, order], moved), target=0),
    on_signals(signals_of(members, stacks), target=0)[order],
    rtol=1e-10,
  )


def test_equal_signals_get_equal_scores(on_signals):
  members, stacks = arrays()
  for values in (members, *stacks.values()):
    values[:, -1] = values[:, 0]
  scores = on_signals(signals_of(members, stacks), target=0)
  assert scores[-1] == scores[0]


def test_own_membership_never_enters_a_score(on_signals):
  members, stacks = arrays()
  other = members.copy()
  other[2] = ~other[2]
  np.testing.assert_array_equal(
    *(on_signals(signals_of(each, stacks), target=2) for each in (members, other))
  )


def test_own_losses_never_enter_the_fit_of_another_record(on_signals):
  members, stacks = arrays()
  changed = {name: values.copy() for name, values in stacks.items()}
  for values in changed.values():
    change = np.random.default_rng(4).normal(size=values[2, 1:].shape)
    values[2, 1:] += 3 * (change - change.mean(0))  # LOGAN is centred at the mean
  first, second = (
    on_signals(signals_of(members, each), target=2) for each in (stacks, changed)
  )
  assert first[0] == pytest.approx(second[0], abs=1e-12)
  assert not np.array_equal(first[1:], second[1:])


def test_records_that_are_not_audited_have_no_score_and_do_not_matter(on_signals):
  members, stacks = arrays()
  audited = np.arange(members.shape[1]) >= 40
  plain = on_signals(signals_of(members, stacks, audited=audited), target=0)
  for values in stacks.values():
    values[:, :40] *= 7
  again = on_signals(signals_of(members, stacks, audited=audited), target=0)
  assert np.isnan(plain[:40]).all()
  assert np.isfinite(plain[40:]).all()
  np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize("target", [-1, 24])
def test_an_unknown_target_of_signals_is_refused(on_signals, target):
  with pytest.raises(ValueError, match="target"):
    on_signals(signals_of(*arrays()), target=target)


def test_nan_is_refused():
  members, stacks = arrays()
  stacks["phi"][3, 5] = np.nan
  with pytest.raises(ValueError, match="NaN"):
    signals_of(members, stacks)


@functools.cache
def gans():
  """Three GANs on records of which the last is a copy of the first."""
  data = some_records(test=some_records(30, seed=5))
  x, y = data.x.copy(), data.y.copy()
  x[-1], y[-1] = x[0], y[0]
  data = type(data)(x, y, data.num_classes, test=data.test)
  members = subsets(data, 3, seed=1)
  members[:, -1] = members[:, 0]
  members[0], members[1] = (
    True,
    False,
  )  # the attack on the first has a reference for all
  return made_up(3, 1, data=data, members=members)


@functools.cache
def scores_of(name):
  return of_name(name)(gans(), target=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(gan.ATTACKS.on_models))
def test_models_are_asked_for_one_score_a_record(name):
  scores = scores_of(name)
  assert scores.shape == (12,)
  assert scores.dtype == np.float64
  assert np.isfinite(scores).all()
  assert scores[-1] == scores[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(gan.ATTACKS.on_models))
def test_records_may_be_asked_about_in_any_order_and_number(name):
  some = of_name(name)(gans(), target=0, records=[7, 2])
  np.testing.assert_allclose(some[[7, 2]], scores_of(name)[[7, 2]], rtol=1e-5)
  assert np.isnan(np.delete(some, [7, 2])).all()


def test_unknown_targets_and_records_are_refused(on_models):
  with pytest.raises(ValueError, match="target=3"):
    on_models(gans(), target=3)
  with pytest.raises(ValueError, match="records hold 12"):
    on_models(gans(), target=0, records=[12])


@pytest.mark.slow
def test_a_target_that_diverged_is_refused(on_models):
  broken = with_model(gans(), 0, lambda leaf: leaf * np.nan)
  with pytest.raises(ValueError, match=r"NaN|finite"):
    on_models(broken, target=0)


def test_names_families_and_kinds_of_source_agree():
  for name, attack in gan.CATALOGUE.items():
    assert gan.ATTACKS.resolve(name) is attack
    assert attack in gan.ATTACKS.families[gan.ATTACKS.family(name)]
  assert set(gan.ATTACKS.families["reference"]) <= set(gan.ATTACKS.on_signals.values())
  assert set(gan.ATTACKS.families["generator"]) <= set(gan.ATTACKS.on_models.values())
  assert gan.ATTACKS.costly("logan_black_box")
  assert not gan.ATTACKS.costly("logan")
