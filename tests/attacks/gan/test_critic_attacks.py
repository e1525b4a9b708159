"""LOGAN, the signals that attacks on critics read, and the distance of histograms."""

import dataclasses

import numpy as np
import pytest
from gan_attack_cases import (
  CLASSES,
  coin_flips,
  leaky,
  losses_by_hand,
  made_up,
  some_records,
  with_model,
)
from generator_cases import ensemble_of

from mixdef.attacks import Signals, Unavailable, gan, leave_one_out
from mixdef.learners import wgan_gp
from mixdef.metrics import auc
from mixdef.models import table_networks


def one_hot(labels):
  return np.eye(CLASSES)[labels]


@pytest.mark.parametrize("critics", [1, 3])
def test_signals_are_the_scores_and_the_smallest_loss_of_the_critics(critics):
  gans = made_up(critics=critics)
  data = gans.data
  scores, losses = losses_by_hand(gans, data.x, one_hot(data.y), 5)
  signals = gans.signals(num_fakes=5)
  np.testing.assert_allclose(signals.critic[:, :, 0], scores, atol=1e-5)
  np.testing.assert_allclose(signals.phi[:, :, 0], -losses.min(-1), atol=1e-5)
  np.testing.assert_array_equal(signals.members, gans.members)
  np.testing.assert_array_equal(signals.labels, data.y)


@pytest.mark.slow
def test_signals_hold_the_loss_that_training_with_relaxloss_looks_at():
  from mixdef.defenses.critic import critic_losses

  gans = leaky()
  few = gans.data.x[:9], gans.data.y[:9]

  def ask(learner, state, x, y):
    return critic_losses(learner, state, x, y, num_fakes=4)

  signals = gans.signals(num_fakes=4)
  expected = gans.query(ask, *few)[..., 0]
  np.testing.assert_allclose(-signals.phi[:, :9, 0], expected, atol=1e-4)


def test_pitfall_116_target_and_references_get_the_same_fakes():
  gans = made_up()
  together = gans.signals(num_fakes=3).phi
  alone = [gans.select(np.array([s])).signals(num_fakes=3).phi[0] for s in range(6)]
  np.testing.assert_allclose(together, alone, atol=1e-6)
  with pytest.raises(ValueError, match="num_fakes=0"):
    gans.signals(num_fakes=0)


def test_a_population_is_asked_as_the_records_are():
  held_out = some_records(7, seed=3)
  gans = made_up(data=some_records(test=held_out))
  others = gans.signals(num_fakes=3, population=held_out).population
  _, losses = losses_by_hand(gans, held_out.x, one_hot(held_out.y), 3)
  np.testing.assert_allclose(others.phi[:, :, 0], -losses.min(-1), atol=1e-5)
  assert not others.members.any()


def test_pictures_of_bytes_are_asked_as_the_network_reads_them():
  data = coin_flips(12, 5)
  bytes_ = dataclasses.replace(data, x=(255 * data.x).astype(np.uint8))
  phi = [made_up(data=each).signals().phi for each in (data, bytes_)]
  np.testing.assert_array_equal(*phi)


def test_models_that_diverged_are_named():
  gans = with_model(made_up(), 4, lambda leaf: leaf * np.nan)
  with pytest.raises(ValueError, match=r"models \[4\] output NaN"):
    gans.signals()


def test_part_of_the_models_and_the_records_alone_keep_their_scores():
  signals = made_up(critics=3).signals(num_fakes=2)
  part = signals.first_models(4).first_view()
  assert part.critic.shape == (4, 12, 1, 3)
  np.testing.assert_array_equal(gan.logan(part, target=1), gan.logan(signals, target=1))


def test_shapes_that_disagree_are_refused():
  signals = made_up().signals(num_fakes=2)
  with pytest.raises(ValueError, match="critic has shape"):
    dataclasses.replace(signals, critic=signals.critic[:2])


def test_a_defended_model_takes_the_place_of_its_undefended_twin():
  undefended, defended = (made_up(seed=s).signals() for s in (1, 2))
  joined = gan.with_references(undefended, defended, 3)
  others = np.arange(6) != 3
  for name in ("phi", "critic"):
    rows = [getattr(each, name) for each in (joined, undefended, defended)]
    np.testing.assert_array_equal(rows[0][others], rows[1][others])
    np.testing.assert_array_equal(rows[0][3], rows[2][3])


def test_references_of_fewer_critics_still_serve_but_give_logan_nothing():
  undefended = made_up(critics=1).signals()
  defended = made_up(critics=2).signals()
  joined = gan.with_references(undefended, defended, 0)
  np.testing.assert_array_equal(joined.phi[0], defended.phi[0])
  with pytest.raises(Unavailable, match=r"ensemble\.signals\(\)"):
    gan.logan(joined, target=0)


def test_references_of_other_subsets_or_questions_are_refused():
  undefended = made_up().signals()
  with pytest.raises(ValueError, match="members matrix"):
    gan.with_references(
      undefended, dataclasses.replace(undefended, members=~undefended.members), 0
    )
  views = Signals.from_phi(np.zeros((6, 12, 2)), undefended.members)
  with pytest.raises(ValueError, match="same records and views"):
    gan.with_references(undefended, views, 0)


def test_logan_reads_the_critic_and_takes_the_best_or_the_mean_of_several():
  critic = np.float32([[[[1.0, 4.0]], [[3.0, 3.0]], [[9.0, 0.0]]]])
  signals = gan.GanSignals(
    phi=np.zeros((1, 3, 1)),
    members=np.array([[True, False, False]]),
    audited=np.array([True, True, False]),
    critic=critic,
  )
  # Above the critics' means of 2 and 3.5 over the audited records.
  np.testing.assert_array_equal(gan.logan(signals, target=0), [0.5, 1, np.nan])
  mean = gan.logan(signals, target=0, over="mean")
  np.testing.assert_array_equal(mean, [-0.25, 0.25, np.nan])
  with pytest.raises(ValueError, match="median"):
    gan.logan(signals, target=0, over="median")
  with pytest.raises(Unavailable, match=r"ensemble\.signals\(\)"):
    gan.logan(Signals.from_phi(np.zeros((1, 3)), signals.members), target=0)


@pytest.mark.slow
def test_pitfall_109_members_are_the_records_that_the_gan_was_trained_on():
  gans = leaky()
  signals = gans.signals()
  for target in range(len(gans)):
    assert auc(gan.logan(signals, target=target), gans.members[target]) > 0.7


@pytest.mark.slow
def test_the_free_constants_of_critics_hide_no_member_from_logan():
  signals = leaky().signals()
  # Critics 0 and 1 of a target saw half of the members each.
  chunk = np.arange(64) % 2 == 0
  gains = [signals.members & chunk, signals.members & ~chunk]
  noise = np.random.default_rng(0).normal(size=(8, 64, 2))
  critic = (np.stack(gains, -1) * 6 + noise)[:, :, None]
  free = critic + 50 * np.random.default_rng(1).normal(size=(8, 1, 1, 2))
  scores = [
    leave_one_out(gan.logan, dataclasses.replace(signals, critic=each))
    for each in (critic, free)
  ]
  np.testing.assert_allclose(*scores, atol=1e-9)
  assert auc(scores[1], signals.members) > 0.95


@pytest.mark.slow
def test_logan_black_box_learns_from_samples_that_repeat_members():
  data = coin_flips(48)
  members = np.arange(48) % 2 == np.arange(2)[:, None]
  gans = ensemble_of(
    data, members, np.stack([data.x[row] for row in members]), sharp=1e3
  )
  learner = wgan_gp(table_networks(32, CLASSES, hidden=32, latent=4))
  how = {"target": 1, "learner": learner, "num_samples": 256, "epochs": 25}
  scores = gan.logan_black_box(gans, **how)
  assert auc(scores, members[1]) > 0.7
  some = gan.logan_black_box(gans, records=[5, 2], **how)
  np.testing.assert_allclose(some[[5, 2]], scores[[5, 2]], rtol=1e-6)
  assert np.isnan(np.delete(some, [5, 2])).all()


def histogram_distance(scores, members, bins):
  edges = np.linspace(scores.min(), scores.max(), bins + 1)
  shares = [
    np.histogram(scores[side], edges)[0] / side.sum() for side in (members, ~members)
  ]
  return np.abs(shares[0] - shares[1]).sum() / 2


def test_tvd_is_the_distance_of_histograms_with_its_null():
  rng = np.random.default_rng(0)
  members = rng.random(90) < 0.4
  scores = rng.normal(size=90) + members
  found = gan.tvd(scores, members, bins=10)
  assert found["tvd"] == pytest.approx(histogram_distance(scores, members, 10))
  null = [histogram_distance(scores, rng.permutation(members), 10) for _ in range(1000)]
  assert found["null_mean"] == pytest.approx(np.mean(null), abs=0.01)
  assert found["null_high"] == pytest.approx(np.quantile(null, 0.95), abs=0.03)
  assert found["p_value"] < 0.05


def test_tvd_of_scores_that_say_nothing_is_within_its_null_however_few_they_are():
  rng = np.random.default_rng(1)
  found = {}
  for count in (40, 4000):
    scores, members = rng.normal(size=count), np.arange(count) % 2 == 0
    found[count] = gan.tvd(scores, members)
    assert found[count]["p_value"] > 0.05
  assert found[40]["null_mean"] > 3 * found[4000]["null_mean"]


def test_tvd_leaves_out_records_without_a_score_and_needs_both_kinds():
  members = np.array([True, True, False, False])
  found = gan.tvd([0.0, np.nan, 1.0, 1.0], members, bins=2)
  assert found["tvd"] == 1
  with pytest.raises(ValueError, match="0 members"):
    gan.tvd([np.nan, np.nan, 1.0, 1.0], members)
  with pytest.raises(ValueError, match="one target"):
    gan.tvd(np.zeros((2, 4)), members)


@pytest.mark.slow
def test_the_leak_shows_in_the_histograms_of_one_target():
  gans = leaky()
  scores = leave_one_out(gan.logan, gans.signals(), targets=[0])[0]
  assert gan.tvd(scores, gans.members[0], bins=10)["p_value"] < 0.01
