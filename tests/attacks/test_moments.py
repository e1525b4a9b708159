"""Sums over references by groups of models, which the attacks on all targets share."""

import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals, leave_one_out
from mixdef.attacks._moments import merged, moments
from mixdef.metrics import auc

GROUPED = [
  "lira_online",
  "lira_online_fixed",
  "lira_offline",
  "lira_calibrated(form='online')",
  "bavaria",
  "rmia(mode='online')",
  "rmia(mode='offline')",
  "base",
  "base(mode='offline')",
  "attack_r",
  "calibrated_loss",
]
MODELS = 70  # enough for groups


def drawn(seed=0, records=60, views=2):
  rng = np.random.default_rng(seed)
  members = rng.random((MODELS, records)) < 0.5
  members[-1] = ~members[3]  # a model that is no reference of model 3
  phi = rng.normal(size=(MODELS, records, views)) + members[..., None]
  phi += 5 * rng.normal(size=(records, 1))
  phi[9], members[9] = phi[8], members[8]  # a model that is listed twice
  return phi, members, rng.normal(size=(MODELS, 40, views))


def signals_of(phi, members, others):
  return Signals.from_phi(phi, members, population=others, design="bernoulli")


def test_a_complement_and_a_copy_are_in_no_group():
  signals = signals_of(*drawn())
  assert signals.excluded_models(3) == [3, 9, MODELS - 1]
  assert signals.excluded_models(5) == [5, 9]


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_models_give_the_scores_of_a_sum_over_all(name, monkeypatch):
  attack = attacks.ATTACKS.resolve(name)
  grouped = leave_one_out(attack, signals_of(*drawn()))
  monkeypatch.setattr(Signals, "excluded_models", lambda self, target: None)
  direct = leave_one_out(attack, signals_of(*drawn()))
  np.testing.assert_allclose(grouped, direct, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", GROUPED)
def test_own_membership_never_enters_a_group(name):
  attack = attacks.ATTACKS.resolve(name)
  phi, members, others = drawn()
  changed = members.copy()
  changed[5] = np.random.default_rng(1).permutation(members[5])
  first, second = (
    attack(signals_of(phi, known, others), target=5) for known in (members, changed)
  )
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", GROUPED)
def test_models_that_all_agree_reveal_nobody(name):
  """A sum that loses the target's output again would tell members by its last bit."""
  _, members, others = drawn()
  values = np.random.default_rng(2).normal(size=(members.shape[1], 1))
  phi = np.broadcast_to(values, (*members.shape, 1)).copy()
  signals = signals_of(phi, members, np.broadcast_to(others[:1, :, :1], (70, 40, 1)))
  attack = attacks.ATTACKS.resolve(name)
  scores = attack(signals, target=0)
  members[0] = ~members[0]
  np.testing.assert_array_equal(
    scores, attack(signals_of(phi, members, signals.population.phi), target=0)
  )


class _Half(Signals):
  """Signals of which every second model is a reference."""

  def references(self, target):
    return super().references(target) & (np.arange(MODELS) % 2 == 1)[:, None]


@pytest.mark.parametrize("name", ["lira_online", "attack_r"])
def test_references_of_a_subclass_are_those_that_are_read(name):
  phi, members, _ = drawn(views=1)
  attack = attacks.ATTACKS.resolve(name)
  found = attack(_Half(phi=phi, members=members, design="bernoulli"), target=0)
  half = [0, *(k for k in range(1, MODELS, 2) if k != 9)]  # 9 repeats model 8
  alone = Signals(phi=phi[half], members=members[half], design="bernoulli")
  np.testing.assert_allclose(found, attack(alone, target=0), rtol=1e-9)


def test_merged_moments_are_those_of_all_values():
  rng = np.random.default_rng(0)
  values = 1e6 + rng.normal(size=(30, 8, 3))
  chosen = rng.random((30, 8)) < 0.4
  chosen[:12, 0] = False  # a group without values
  chosen[:, 1] = False
  parts = [moments(values[k : k + 12], chosen[k : k + 12]) for k in range(0, 30, 12)]
  found = merged(parts)
  for record in range(8):
    own = values[chosen[:, record], record]
    assert found.count[record, 0] == len(own)
    if len(own):
      np.testing.assert_allclose(found.mean[record], own.mean(0), rtol=1e-15)
      around = ((own - own.mean(0)) ** 2).sum(0)
      np.testing.assert_allclose(found.squares[record], around, rtol=1e-8)
  assert not found.mean[1].any()
  assert not found.squares[1].any()


def test_a_member_is_found_with_groups():
  phi, members, others = drawn(records=400)
  scores = attacks.lira_online(signals_of(phi, members, others), target=0)
  assert auc(scores, members[0]) > 0.7
