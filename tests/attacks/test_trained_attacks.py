import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals
from mixdef.attacks._attack_net import AttackNet, fit_attack_net
from mixdef.attacks._shadows import several_shadows
from mixdef.attacks.trained import salem_1, salem_2, salem_3, shokri
from mixdef.metrics import auc


def make(boost=3.0, *, models=6, records=400, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  labels, members = (
    rng.integers(0, classes, records),
    rng.random((models, records)) < 0.5,
  )
  logits = rng.normal(size=(models, records, classes))
  logits += boost * np.eye(classes)[labels] * members[:, :, None]
  return logits, labels, members


SOURCE = Signals.from_logits(*make(seed=9, classes=7))


def from_another_data_set(signals, *, target, **options):
  return salem_2(signals, target=target, source=SOURCE, **options)


LEARNING = [shokri, salem_1, from_another_data_set]
ALL = [*LEARNING, salem_3]


@pytest.mark.parametrize("attack", ALL)
def test_members_are_found_in_every_target(attack):
  signals = Signals.from_logits(*make())
  scores = attacks.leave_one_out(attack, signals)
  assert scores.dtype == np.float64
  assert auc(scores, signals.members) > 0.7


@pytest.mark.parametrize("attack", LEARNING)
@pytest.mark.parametrize("n_hidden", [0, 8])
def test_smaller_attack_models_find_members_too(attack, n_hidden):
  signals = Signals.from_logits(*make())
  scores = attack(signals, target=0, n_hidden=n_hidden)
  assert auc(scores, signals.members[0]) > 0.7


@pytest.mark.parametrize("attack", [shokri, salem_1])
def test_pitfall_43_attack_models_learn_from_the_shadow_and_judge_the_target(attack):
  """Model 0 is surer of non-members; models 1 to 5 are surer of members."""
  logits, labels, members = make()
  turned = members.copy()
  turned[0] = ~members[0]
  signals = Signals.from_logits(logits, labels, turned)
  scores = attack(signals, target=0)
  # A model learnt on the target would find its members; one learnt on the shadows
  # calls its sure outputs members.
  assert auc(scores, members[0]) > 0.7
  # And the target's membership is never asked for.
  plain = attack(Signals.from_logits(logits, labels, members), target=0)
  np.testing.assert_array_equal(scores, plain)


@pytest.mark.parametrize("attack", [shokri, salem_1])
def test_pitfall_41_own_outputs_never_enter_the_fit(attack):
  logits, labels, members = make()
  changed = logits.copy()
  changed[2, 1:] *= 3
  first, second = (
    attack(Signals.from_logits(part, labels, members), target=2)
    for part in (logits, changed)
  )
  assert first[0] == second[0]
  assert not np.array_equal(first[1:], second[1:])


@pytest.mark.parametrize("n_hidden", [0, 1, 8, 64])
def test_pitfall_44_hidden_units_are_effective(n_hidden):
  rng = np.random.default_rng(0)
  x, member = rng.random((50, 3)), np.arange(50) % 2 == 0
  net = fit_attack_net(x, member, n_hidden=n_hidden, most=100)
  expected = 3 * n_hidden + n_hidden + n_hidden + 1 if n_hidden else 3 + 1
  assert net.num_parameters == expected


@pytest.mark.parametrize("attack", LEARNING)
def test_pitfall_44_hidden_units_reach_the_attack(attack):
  signals = Signals.from_logits(*make())
  assert not np.array_equal(
    attack(signals, target=0, n_hidden=4), attack(signals, target=0, n_hidden=5)
  )


def test_log_odds_are_products_of_the_layers():
  rng = np.random.default_rng(0)
  net = AttackNet(
    (rng.normal(size=(3, 5)), rng.normal(size=(5, 1))), (rng.normal(size=5), [0.5])
  )
  x = rng.normal(size=(20, 3))
  expected = np.maximum(x @ net.weights[0] + net.biases[0], 0) @ net.weights[1] + 0.5
  np.testing.assert_allclose(net.log_odds(x), expected[:, 0], rtol=1e-12)


def test_attack_net_learns_what_a_line_cannot():
  x = np.linspace(-1, 1, 400)[:, None]
  member = np.abs(x[:, 0]) < 0.5
  curved, straight = (
    fit_attack_net(x, member, n_hidden=n, most=10_000).log_odds(x) for n in (64, 0)
  )
  assert auc(curved, member) > 0.99
  assert auc(straight, member) < 0.6


def test_fit_does_not_depend_on_the_order_of_examples():
  rng = np.random.default_rng(0)
  x, member = rng.random((500, 3)).round(1), rng.random(500) < 0.5
  order = rng.permutation(500)
  first = fit_attack_net(x, member, n_hidden=8, most=200)
  second = fit_attack_net(x[order], member[order], n_hidden=8, most=200)
  for one, other in zip(first.weights, second.weights, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("attack", ALL)
def test_permuting_records_permutes_scores(attack):
  logits, labels, members = make()
  logits[:, 7], labels[7], members[:, 7] = logits[:, 3], labels[3], members[:, 3]
  order = np.random.default_rng(1).permutation(len(labels))
  plain = attack(Signals.from_logits(logits, labels, members), target=0)
  moved = attack(
    Signals.from_logits(logits[:, order], labels[order], members[:, order]), target=0
  )
  np.testing.assert_array_equal(moved, plain[order])
  assert plain[3] == plain[7]


def test_pitfall_29_shadows_are_chosen_by_content():
  logits, labels, members = make(models=9)
  order = [0, *np.random.default_rng(0).permutation(np.arange(1, 9))]
  plain = several_shadows(Signals.from_logits(logits, labels, members), 0, 3)
  moved = several_shadows(
    Signals.from_logits(logits[order], labels, members[order]), 0, 3
  )
  assert plain.any(1).sum() == 3
  assert not plain[0].any()
  np.testing.assert_array_equal(moved, plain[order])


def test_the_complement_of_the_target_is_no_shadow():
  logits, labels, members = make()
  members[1] = ~members[0]
  signals = Signals.from_logits(logits, labels, members)
  assert several_shadows(signals, 0, 10).any(1).tolist() == [False] * 2 + [True] * 4
  changed = logits.copy()
  changed[1] = 0
  for attack in (shokri, salem_1):
    np.testing.assert_array_equal(
      attack(signals, target=0),
      attack(Signals.from_logits(changed, labels, members), target=0),
    )


@pytest.mark.parametrize("attack", ALL)
def test_pitfall_49_rare_and_missing_classes_get_the_pooled_attack_model(attack):
  logits, labels, members = make(classes=5)
  labels = np.where(labels == 4, 0, labels)  # class 4 is never a label
  labels[0] = 4  # but for one record
  scores = attack(Signals.from_logits(logits, labels, members), target=0)
  assert np.isfinite(scores).all()


def test_shokri_has_an_attack_model_of_each_class():
  """Members of class 0 are surer, members of class 1 less sure, than non-members."""
  logits, labels, members = make(0.0, classes=2)
  sure = members == (labels == 0)
  logits += 3 * np.eye(2)[labels] * sure[:, :, None]
  signals = Signals.from_logits(logits, labels, members)
  assert auc(shokri(signals, target=0), members[0]) > 0.8
  assert abs(auc(salem_1(signals, target=0), members[0]) - 0.5) < 0.25


def test_salem_reads_the_three_largest_posteriors_whatever_their_classes():
  logits, labels, members = make(classes=6)
  shuffled = np.random.default_rng(0).permuted(logits, axis=-1)
  plain, other = (
    salem_1(Signals.from_logits(part, labels, members), target=0)
    for part in (logits, shuffled)
  )
  np.testing.assert_allclose(plain, other, rtol=1e-4, atol=1e-4)


def test_salem_2_crosses_between_two_classes_and_many():
  two = Signals.from_logits(*make(classes=2))
  assert auc(salem_2(two, target=0, source=SOURCE), two.members[0]) > 0.7
  assert auc(salem_2(SOURCE, target=0, source=two), SOURCE.members[0]) > 0.7


def test_salem_2_reads_nothing_of_the_other_models():
  logits, labels, members = make()
  plain = from_another_data_set(Signals.from_logits(logits, labels, members), target=0)
  alone = Signals.from_logits(logits[:1], labels, members[:1])
  np.testing.assert_array_equal(from_another_data_set(alone, target=0), plain)


def test_salem_3_ranks_as_the_largest_posterior_without_ties():
  logits, labels, members = make(0.0)
  signals = Signals.from_logits(logits, labels, members)
  largest = np.exp(signals.log_probs[0]).max(-1)
  scores = salem_3(signals, target=0)
  np.testing.assert_allclose(1 / (1 + np.exp(-scores)), largest, rtol=1e-6)
  sure = Signals.from_logits([[[60.0, 0], [50.0, 0]]], [0, 1], [[True, False]])
  first, second = salem_3(sure, target=0)
  assert first > second


@pytest.mark.parametrize("attack", ALL)
def test_extreme_logits_and_reference_rows(attack):
  logits, labels, members = make()
  audited = np.arange(len(labels)) >= 40
  plain = attack(
    Signals.from_logits(1e3 * logits, labels, members, audited=audited), target=0
  )
  assert np.isfinite(plain[40:]).all()
  assert np.isnan(plain[:40]).all()
  logits[:, :40], members[:, :40] = 0, False
  other = attack(
    Signals.from_logits(1e3 * logits, labels, members, audited=audited), target=0
  )
  np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda s: salem_2(s, target=0), "pass source"),
    (lambda s: salem_2(s, target=0, source=s), "use salem_1"),
    (lambda s: salem_2(s, target=0, source=SOURCE, source_model=9), "source_model=9"),
    (lambda s: salem_1(s, target=0, shadow=0), "shadow=0 is the target"),
    (lambda s: salem_1(s, target=0, n_hidden=-1), "n_hidden is -1"),
    (lambda s: shokri(s, target=0, shadows=0), "shadows is 0"),
  ],
)
def test_unusable_options_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(Signals.from_logits(*make()))


@pytest.mark.parametrize("attack", ALL)
def test_missing_inputs_are_unavailable(attack):
  logits, labels, members = make()
  phi = Signals.from_logits(logits, labels, members).phi
  with pytest.raises(attacks.Unavailable, match="no log_probs"):
    attack(Signals.from_phi(phi, members, labels=labels), target=0)


@pytest.mark.parametrize("attack", [shokri, salem_1])
def test_a_single_model_has_no_shadow(attack):
  logits, labels, members = make(models=1)
  with pytest.raises(attacks.Unavailable, match="train more models"):
    attack(Signals.from_logits(logits, labels, members), target=0)
