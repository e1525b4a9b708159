"""Likelihood-ratio attacks on GANs."""

import dataclasses

import numpy as np
import pytest
from gan_attack_cases import leaky, log_ratio, made_up, some_records

from mixdef.attacks import Signals, Unavailable, gan, leave_one_out, lira_online
from mixdef.data import subsets
from mixdef.metrics import auc

GOLDEN = [(-7, 0.432270), (-3, -0.700919), (5, -2.869434)]


def golden_signals(loss, scale=1.0):
  """Means and deviations of the paper's fits: in -7.60, 3.92, out -3.30, 3.86."""
  inside, outside = [-7.60 - 3.92, -7.60 + 3.92], [-3.30 - 3.86, -3.30 + 3.86]
  losses = scale * np.array([loss, *inside, *outside])
  members = np.array([False, True, True, False, False])
  return Signals.from_phi(-losses[:, None], members[:, None])


def noise(models=24, records=40, gap=0.0, seed=0, **design):
  rng = np.random.default_rng(seed)
  members = subsets(records, models, seed=seed, **design)
  losses = rng.normal(size=members.shape) + rng.normal(size=records) - gap * members
  return Signals.from_phi(-losses, members)


def fits_by_hand(signals, target, include_target=False):
  """Log ratios of the loss, record by record."""
  losses, members = -signals.phi[:, :, 0], signals.members
  others = np.arange(len(members)) != target
  scores = []
  for i in range(members.shape[1]):
    fitted = np.ones(len(members), bool) if include_target else others
    inside, outside = (
      losses[fitted & side, i] for side in (members[:, i], ~members[:, i])
    )
    scores.append(log_ratio(losses[target, i], inside, outside))
  return np.array(scores)


@pytest.mark.parametrize(("loss", "expected"), GOLDEN)
def test_pitfall_114_golden_values(loss, expected):
  score = gan.lira_gan_discriminator(golden_signals(loss), target=0)
  assert score[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("include_target", [False, True])
def test_scores_are_the_log_ratio_of_fits_of_maximum_likelihood(include_target):
  signals = noise(gap=1.0)
  scores = gan.lira_gan_discriminator(signals, target=3, include_target=include_target)
  np.testing.assert_allclose(scores, fits_by_hand(signals, 3, include_target))


def test_pitfall_114_rare_losses_neither_vanish_nor_tie():
  """Both densities are 0 in floating point there; their ratio is not."""
  signals = [golden_signals(loss, scale=1e4) for loss in (40, 60, 80)]
  scores = [gan.lira_gan_discriminator(s, target=0)[0] for s in signals]
  assert np.isfinite(scores).all()
  assert scores[0] > scores[1] > scores[2]


def test_decision_9_a_target_in_its_own_fit_is_found_though_nothing_leaks():
  signals = noise(models=10, records=2000)

  def attack(include_target):
    scores = leave_one_out(
      gan.lira_gan_discriminator, signals, include_target=include_target
    )
    return auc(scores, signals.members)

  assert attack(True) > 0.6
  assert abs(attack(False) - 0.5) < 0.02


def test_a_balanced_design_is_no_leak_either():
  signals = noise(models=10, records=2000, design="balanced")
  scores = leave_one_out(gan.lira_gan_discriminator, signals)
  assert abs(auc(scores, signals.members) - 0.5) < 0.02


def test_the_variants_take_one_variance_a_side_or_one_side():
  signals = noise(gap=1.0)
  losses, members, target = -signals.phi[:, :, 0], signals.members, 2
  others = np.arange(len(members)) != target
  means, variances = [], []
  for side in (members, ~members):
    kept = [losses[others & side[:, i], i] for i in range(members.shape[1])]
    means.append([np.mean(one) for one in kept])
    variances.append([np.var(one) for one in kept])
  z = (losses[target] - np.array(means)) ** 2 / np.mean(variances, 1)[:, None]
  fixed = (z[1] - z[0] + np.log(np.mean(variances[1]) / np.mean(variances[0]))) / 2
  np.testing.assert_allclose(
    gan.lira_gan_discriminator_fixed(signals, target=target), fixed
  )
  np.testing.assert_allclose(
    gan.lira_gan_discriminator_offline(signals, target=target),
    (means[1] - losses[target]) / np.sqrt(variances[1]),
  )


@pytest.mark.slow
def test_members_of_gans_that_know_them_by_heart_are_found():
  signals = leaky().signals()
  for name in gan.ATTACKS.on_signals:
    if name == "lira_gan_reconstruction":
      continue
    scores = leave_one_out(gan.CATALOGUE[name], signals)
    assert auc(scores, signals.members) > 0.7, name


def test_undefended_references_never_include_the_twin_of_the_target():
  undefended, defended = noise(seed=1), noise(seed=2)
  defended = dataclasses.replace(defended, members=undefended.members)
  joined = gan.with_references(undefended, defended, 4)
  moved = undefended.phi.copy()
  moved[4] += 100
  again = dataclasses.replace(undefended, phi=moved)
  scores = [
    gan.lira_gan_discriminator(each, target=4)
    for each in (joined, gan.with_references(again, defended, 4))
  ]
  np.testing.assert_array_equal(*scores)


def test_reconstructions_are_judged_as_losses_are_and_the_rest_has_no_score():
  signals = noise(gap=1.0)
  losses = -signals.phi.copy()
  losses[:, [0, 7]] = np.nan
  remade = gan.GanSignals(
    phi=np.zeros_like(losses), members=signals.members, reconstruction=losses
  )
  expected = lira_online(signals, target=1, ddof=0)
  expected[[0, 7]] = np.nan
  scores = gan.lira_gan_reconstruction(remade, target=1)
  np.testing.assert_allclose(scores, expected)
  with pytest.raises(Unavailable, match="with_reconstructions"):
    gan.lira_gan_reconstruction(signals, target=1)


@pytest.mark.slow
def test_every_model_remakes_the_records_once_for_all_targets():
  data = dataclasses.replace(some_records(), auxiliary=np.arange(12) == 3)
  gans = made_up(3, data=data)
  signals = gans.signals(num_fakes=2)
  remade = gan.with_reconstructions(signals, gans, [8, 2], steps=3)
  expected = gan.reconstruction_losses(gans, [8, 2], steps=3)
  np.testing.assert_array_equal(remade.reconstruction[:, [8, 2], 0], expected)
  assert np.isnan(np.delete(remade.reconstruction, [8, 2], 1)).all()
  scores = gan.lira_gan_reconstruction(remade, target=0)
  assert np.isnan(np.delete(scores, [8, 2])).all()
  with pytest.raises(ValueError, match="are not the 2 of the ensemble"):
    gan.with_reconstructions(signals, gans.select(np.array([0, 1])))
