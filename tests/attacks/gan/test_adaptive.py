"""Attacks that know of mixup: mixed queries and defended references."""

import dataclasses

import numpy as np
import pytest
from gan_attack_cases import (
  CLASSES,
  leaky,
  log_ratio,
  losses_by_hand,
  made_up,
  some_records,
  with_model,
)

from mixdef.attacks import Unavailable, gan, leave_one_out
from mixdef.data import subsets
from mixdef.metrics import auc, summarize

CELLS = {"single/natural", "single/mixup", "mixed/natural", "mixed/mixup"}


def pairs_of(contributors, phi, **options):
  return gan.PairSignals(
    phi=phi[..., None],
    members=contributors.all(-1),
    contributors=contributors,
    **options,
  )


def random_pairs(models=40, pairs=30, gap=0.0, seed=0, design="bernoulli"):
  """Losses of pairs, lower where a model trained on both records."""
  rng = np.random.default_rng(seed)
  members = subsets(2 * pairs, models, seed=seed, design=design)
  contributors = members.reshape(models, pairs, 2)
  phi = rng.normal(size=(models, pairs)) + gap * contributors.all(-1)
  return pairs_of(contributors, phi, design=design)


def mixtures_by_hand(gans, pairs, num_fakes):
  """Mean over the three mixtures of the smallest loss of the critics, [S,P]."""
  x, y = gans.data.x, np.eye(CLASSES)[gans.data.y]
  found = []
  for lam in (0.2, 0.5, 0.8):
    mixed = [lam * v[pairs[:, 0]] + (1 - lam) * v[pairs[:, 1]] for v in (x, y)]
    found.append(losses_by_hand(gans, *mixed, num_fakes)[1].min(-1))
  return np.mean(found, 0)


def find_pairs(gans, signals, num_fakes):
  """Tell which records each pair is of, from what is known of the losses."""
  count = len(gans.data)
  every = np.array([(i, j) for i in range(count) for j in range(count) if i != j])
  losses = mixtures_by_hand(gans, every, num_fakes)
  gaps = np.abs(losses[:, None] + signals.phi).max(0)
  assert gaps.min(1).max() < 1e-5
  return every[gaps.argmin(1)]


@pytest.mark.slow
def test_a_pair_is_asked_by_three_mixtures_of_records_and_conditions():
  gans = made_up(critics=2)
  signals = gan.pair_signals(gans, num_fakes=4)
  pairs = find_pairs(gans, signals, 4)
  assert sorted(pairs.reshape(-1)) == list(range(12))
  # The three lambdas are symmetric: which record is the first does not show.
  np.testing.assert_array_equal(
    np.sort(signals.contributors), np.sort(gans.members[:, pairs])
  )
  np.testing.assert_array_equal(signals.members, gans.members[:, pairs].all(-1))


@pytest.mark.slow
def test_pairs_are_of_audited_records_drawn_by_the_seed():
  data = dataclasses.replace(some_records(), auxiliary=np.arange(12) < 3)
  gans = made_up(data=data, critics=2)
  signals = gan.pair_signals(gans, num_fakes=4, num_pairs=4, seed=3)
  pairs = find_pairs(gans, signals, 4)
  assert pairs.shape == (4, 2)
  assert pairs.min() >= 3
  again = gan.pair_signals(gans, num_fakes=4, num_pairs=4, seed=3)
  other = gan.pair_signals(gans, num_fakes=4, num_pairs=4, seed=4)
  np.testing.assert_array_equal(again.phi, signals.phi)
  assert not np.array_equal(other.phi, signals.phi)
  with pytest.raises(ValueError, match="num_pairs=5 of 9"):
    gan.pair_signals(gans, num_pairs=5)


def test_lambdas_that_mix_nothing_are_refused():
  with pytest.raises(ValueError, match=r"1\.0, which does not mix"):
    gan.pair_signals(made_up(), lambdas=(0.5, 1.0))
  with pytest.raises(ValueError, match="empty"):
    gan.pair_signals(made_up(), lambdas=())


def test_a_pair_is_judged_by_models_with_both_records_and_with_neither():
  signals = random_pairs(gap=1.0)
  scores = gan.lira_gan_mixed_query(signals, target=5)
  both = signals.contributors.all(-1)
  neither = ~signals.contributors.any(-1)
  others = np.arange(40) != 5
  losses = -signals.phi[:, :, 0]
  for p in range(30):
    if not (both | neither)[5, p]:
      assert np.isnan(scores[p])
      continue
    sides = (losses[others & side[:, p], p] for side in (both, neither))
    assert scores[p] == pytest.approx(log_ratio(losses[5, p], *sides))


def test_the_official_fit_holds_the_target_for_pairs_it_has_neither_of():
  signals = random_pairs(gap=1.0)
  scores = gan.lira_gan_mixed_query(signals, target=5, official=True)
  plain = gan.lira_gan_mixed_query(signals, target=5)
  both = signals.contributors.all(-1)
  neither = ~signals.contributors.any(-1)
  others = np.arange(40) != 5
  losses = -signals.phi[:, :, 0]
  np.testing.assert_array_equal(scores[both[5]], plain[both[5]])
  for p in np.flatnonzero(neither[5]):
    sides = losses[others & both[:, p], p], losses[neither[:, p], p]
    assert scores[p] == pytest.approx(log_ratio(losses[5, p], *sides))


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_pairs_that_say_nothing_are_not_found_whatever_the_design(design):
  signals = random_pairs(models=16, pairs=1500, design=design)
  scores = leave_one_out(gan.lira_gan_mixed_query, signals)
  assert abs(auc(scores, signals.members) - 0.5) < 0.025


def test_a_mixed_query_needs_pairs():
  with pytest.raises(Unavailable, match="pair_signals"):
    gan.lira_gan_mixed_query(made_up().signals(), target=0)


@pytest.fixture
def three():
  """Attacked, undefended and mixup-trained GANs of one members matrix."""
  data = some_records(40)
  members = subsets(40, 20, seed=0)
  return [made_up(20, data=data, members=members, seed=seed) for seed in (1, 2, 3)]


HOW = {"targets": [4, 2], "num_fakes": 2}


def same(cell, other):
  return np.array_equal(cell.scores, other.scores, equal_nan=True)


@pytest.mark.slow
def test_pitfall_115_the_attacked_network_is_asked_in_every_cell(three):
  defended, undefended, mixup = three
  plain = gan.adaptive_grid(defended, undefended, mixup, **HOW)
  other = with_model(defended, 4, lambda leaf: leaf + 0.5)
  moved = gan.adaptive_grid(other, undefended, mixup, **HOW)
  assert set(plain) == CELLS
  for name, cell in plain.items():
    finite = np.isfinite(cell.scores)
    assert (cell.scores != moved[name].scores)[0][finite[0]].all(), name
    np.testing.assert_array_equal(cell.scores[1], moved[name].scores[1])


def test_pitfall_115_official_scripts_never_ask_it_with_mixed_queries(three):
  defended, undefended, mixup = three
  other = with_model(defended, 4, lambda leaf: leaf + 0.5)
  first, second = (
    gan.adaptive_grid(gans, undefended, mixup, official=True, **HOW)
    for gans in (defended, other)
  )
  for name in CELLS:
    assert same(first[name], second[name]) == name.startswith("mixed")


def test_neither_the_target_nor_its_twins_are_references(three):
  defended, undefended, mixup = three
  plain = gan.adaptive_grid(defended, undefended, mixup, **HOW)
  twins = [with_model(gans, 4, lambda leaf: leaf + 0.5) for gans in (undefended, mixup)]
  moved = gan.adaptive_grid(defended, *twins, **HOW)
  for name in CELLS:
    np.testing.assert_array_equal(plain[name].scores[0], moved[name].scores[0])
    assert not np.array_equal(
      plain[name].scores[1], moved[name].scores[1], equal_nan=True
    )


def test_without_mixup_references_the_attacked_models_judge_each_other(three):
  defended, undefended, _ = three
  without = gan.adaptive_grid(defended, undefended, **HOW)
  with_them = gan.adaptive_grid(defended, undefended, defended, **HOW)
  for name in CELLS:
    assert same(without[name], with_them[name])


def test_cells_say_who_was_a_member_and_what_had_no_fit_of_its_own(three):
  defended, undefended, mixup = three
  cells = gan.adaptive_grid(defended, undefended, mixup, **HOW)
  single, mixed = cells["single/natural"], cells["mixed/natural"]
  np.testing.assert_array_equal(single.members, defended.members[[4, 2]])
  assert mixed.scores.shape == mixed.members.shape == (2, 20)
  assert mixed.coverage["pooled_in"] > 0
  assert np.isnan(mixed.scores).sum() >= mixed.coverage["excluded"]
  summary = summarize(mixed.scores, mixed.members)
  assert 0 <= summary.auc_ci[0] <= summary.auc <= summary.auc_ci[1] <= 1


def test_other_subsets_are_refused(three):
  defended, undefended, _ = three
  undefended = dataclasses.replace(undefended, members=~undefended.members)
  with pytest.raises(ValueError, match="members matrix"):
    gan.adaptive_grid(defended, undefended)


@pytest.mark.slow
def test_an_undefended_gan_is_found_by_single_and_by_mixed_queries():
  gans = leaky()
  for name, cell in gan.adaptive_grid(gans, gans).items():
    assert auc(cell.scores, cell.members) > 0.7, name
