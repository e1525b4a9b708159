"""One table over every attack of the catalogue."""

import functools

import numpy as np
import pytest

from mixdef import attacks
from mixdef.metrics import auc

KNOWS_MEMBERS = {"threshold_known"}  # of the target itself, by definition
NO_FIT = {"gap", "loss_threshold", "lira_global", "attack_p", "salem_2", "salem_3"}
NO_FIT |= KNOWS_MEMBERS
TRAINED = {"shokri", "salem_1", "salem_2"}  # slow: they fit networks


def make_logits(boost, *, models=24, records=300, queries=2, classes=4, seed=0):
  """Outputs in which members gain `boost` on the true class, and a population's."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, records)
  members = rng.random((models, records)) < 0.5
  logits = rng.normal(size=(models, records, queries, classes))
  truth = np.eye(classes)[labels][:, None]
  hardness = 0.3 * rng.normal(size=(records, 1, 1))
  logits += truth * (hardness + boost * members[:, :, None, None])
  others = rng.integers(0, classes, 400)
  outputs = rng.normal(size=(models, 400, queries, classes))
  outputs += np.eye(classes)[others][:, None] * 0.3 * rng.normal(size=(400, 1, 1))
  return logits, labels, members, (outputs, others)


def signals_of(logits, labels, members, population, **options):
  return attacks.Signals.from_logits(
    logits, labels, members, population=population, **options
  )


@pytest.fixture(scope="module")
def leaky():
  return make_logits(3.0)


@pytest.fixture(scope="module")
def signals(leaky):
  """Made once for all attacks, none of which writes to them."""
  return signals_of(*leaky)


def of_name(name):
  """The attack; the one that transfers brings its own other data set."""
  attack = attacks.CATALOGUE[name]
  if name != "salem_2":
    return attack
  logits, labels, members, _ = make_logits(3.0, models=2, seed=9)
  source = attacks.Signals.from_logits(logits, labels, members)
  return functools.update_wrapper(functools.partial(attack, source=source), attack)


@pytest.fixture(
  params=[
    pytest.param(name, marks=pytest.mark.slow) if name in TRAINED else name
    for name in sorted(attacks.ATTACKS.on_signals)
  ]
)
def attack(request):
  return of_name(request.param)


@pytest.fixture(scope="module")
def scores_of(signals):
  """Return `attack -> its scores of every model` [S, N], computed once an attack."""
  return functools.cache(lambda name: attacks.leave_one_out(of_name(name), signals))


@pytest.fixture
def without_secrets(attack):
  """Skip what an attack that is told memberships of the target cannot hold."""
  if attack.__name__ in KNOWS_MEMBERS:
    pytest.skip("it is told 200 memberships, and those records have no score")


@pytest.mark.usefixtures("without_secrets")
def test_scores_are_finite_float64_per_record(attack, signals):
  scores = attack(signals, target=1)
  assert scores.shape == (300,)
  assert scores.dtype == np.float64
  assert np.isfinite(scores).all()


def test_pitfall_06_larger_means_member(attack, leaky, scores_of):
  assert auc(scores_of(attack.__name__), leaky[2]) > 0.7


def test_a_random_membership_is_not_found(attack):
  logits, labels, members, population = make_logits(0.0, records=4000, models=8)
  scores = attack(signals_of(logits, labels, members, population), target=0)
  scored = ~np.isnan(scores)
  member = members[0, scored]
  n1, n0 = member.sum(), (~member).sum()
  error = np.sqrt((n1 + n0 + 1) / (12 * n1 * n0))
  assert abs(auc(scores[scored], member) - 0.5) < 5 * error


def test_permuting_records_permutes_scores(attack, leaky, signals):
  logits, labels, members, population = leaky
  order = np.random.default_rng(1).permutation(len(labels))
  plain = attack(signals, target=0)
  moved = attack(
    signals_of(logits[:, order], labels[order], members[:, order], population), target=0
  )
  np.testing.assert_allclose(moved, plain[order], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("without_secrets")
def test_pitfall_11_equal_rows_get_equal_scores(attack, leaky):
  logits, labels, members = (np.array(part) for part in leaky[:3])
  for part in (logits, members):
    part[:, -1] = part[:, 0]
  labels[-1] = labels[0]
  scores = attack(signals_of(logits, labels, members, leaky[3]), target=0)
  assert scores[0] == scores[-1]


@pytest.mark.usefixtures("without_secrets")
def test_pitfall_24_own_membership_never_enters(attack, leaky, signals):
  logits, labels, members, population = leaky
  other = members.copy()
  other[2] = ~other[2]
  first = attack(signals, target=2)
  second = attack(signals_of(logits, labels, other, population), target=2)
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", sorted(set(attacks.ATTACKS.on_signals) - NO_FIT))
def test_pitfall_24_own_outputs_never_enter_the_fit(name, leaky):
  logits, labels, members, population = leaky
  changed = logits.copy()
  changed[2, 1:] += 3 * np.random.default_rng(4).normal(size=changed[2, 1:].shape)
  first, second = (
    of_name(name)(signals_of(part, labels, members, population), target=2)
    for part in (logits, changed)
  )
  assert first[0] == second[0]
  assert not np.array_equal(first[1:], second[1:])


def test_pitfall_29_order_of_models_does_not_matter(attack, leaky, signals):
  logits, labels, members, (outputs, others) = leaky
  order = [0, 1, *np.random.default_rng(0).permutation(np.arange(2, 24))]
  plain = attack(signals, target=0)
  moved = attack(
    signals_of(logits[order], labels, members[order], (outputs[order], others)),
    target=0,
  )
  np.testing.assert_allclose(moved, plain, rtol=1e-10, atol=1e-10)


def test_reference_rows_are_not_scored_and_do_not_matter(attack, leaky):
  logits, labels, members = (np.array(part) for part in leaky[:3])
  audited = np.arange(len(labels)) >= 40
  plain = attack(
    signals_of(logits, labels, members, leaky[3], audited=audited), target=0
  )
  logits[:, :40] += 7 * np.random.default_rng(3).normal(size=logits[:, :40].shape)
  members[:, :40] = False
  changed = attack(
    signals_of(logits, labels, members, leaky[3], audited=audited), target=0
  )
  assert np.isnan(plain[:40]).all()
  np.testing.assert_array_equal(plain, changed)


@pytest.mark.usefixtures("without_secrets")
def test_pitfall_07_extreme_logits_stay_finite(attack, leaky):
  logits, labels, members, (outputs, others) = leaky
  signals = signals_of(1e3 * logits, labels, members, (1e3 * outputs, others))
  assert np.isfinite(attack(signals, target=0)).all()


def test_inputs_are_never_written_to(attack, leaky):
  signals = signals_of(*leaky)
  fields = ("phi", "hinge", "correct", "members", "labels", "audited", "log_probs")
  before = {name: getattr(signals, name).copy() for name in fields}
  attack(signals, target=0)
  for name, values in before.items():
    np.testing.assert_array_equal(getattr(signals, name), values)


@pytest.mark.parametrize("target", [-1, 24])
def test_unknown_target_is_refused(attack, signals, target):
  with pytest.raises(ValueError, match="target"):
    attack(signals, target=target)


def test_leave_one_out_attacks_every_model(attack, signals, scores_of):
  scores = scores_of(attack.__name__)
  assert scores.shape == signals.members.shape
  np.testing.assert_array_equal(scores[5], attack(signals, target=5))


def test_aliases_resolve_and_unknown_names_say_what_is_near():
  assert attacks.ATTACKS.resolve("yeom") is attacks.loss_threshold
  for name, attack in attacks.CATALOGUE.items():
    assert attacks.ATTACKS.resolve(name) is attack
    assert attack.__name__ == attacks.ATTACKS.plain_name(name) == name
    assert name in {
      a.__name__ for a in attacks.ATTACKS.families[attacks.ATTACKS.family(name)]
    }
  with pytest.raises(ValueError, match=r"there is no attack 'rmja'.*rmia"):
    attacks.ATTACKS.resolve("rmja")


def test_an_attack_is_named_with_its_arguments(signals):
  attack = attacks.ATTACKS.resolve("lira_online(score='hinge')")
  expected = attacks.lira_online(signals, target=1, score="hinge")
  np.testing.assert_array_equal(attack(signals, target=1), expected)
  with pytest.raises(ValueError, match=r"rmia\(gama=1\).*gama"):
    attacks.ATTACKS.resolve("rmia(gama=1)")


def test_an_attack_without_its_input_says_what_is_missing():
  members = [[True, False], [False, True]] * 2
  signals = attacks.Signals.from_phi([[0.0, 1.0]] * 4, members)
  for name in ("rmia", "attack_p", "quantile"):
    with pytest.raises(attacks.Unavailable, match="population"):
      attacks.CATALOGUE[name](signals, target=0)
  for name in ("entropy", "mentr", "shokri", "salem_1", "salem_3"):
    with pytest.raises(attacks.Unavailable, match=r"labels|log"):
      attacks.CATALOGUE[name](signals, target=0)
  with pytest.raises(attacks.Unavailable, match="source"):
    attacks.CATALOGUE["salem_2"](signals, target=0)
