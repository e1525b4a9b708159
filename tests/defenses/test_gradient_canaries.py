"""Canaries of `dp_sgd`: where they are, what a step keeps of them, what they change."""

import jax
import numpy as np
import optax
import pytest
from canary_cases import PARAMS, B, spec_of, trained
from gan_cases import KEEP, NETWORKS, SGD, train

import mixdef
from mixdef.defenses import gradient_canaries
from mixdef.defenses.privacy import dp_sgd
from mixdef.learners import wgan_gp

CLIP = 0.5


def private(noise, **options):
  return dp_sgd(noise, CLIP, estimator="microbatch", **options)


def coordinates(count):
  """Return the canaries' positions among all parameters [m]."""
  sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
  first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
  where = gradient_canaries.places(PARAMS, count)
  return np.concatenate([at + own for at, own in zip(first, where, strict=True)])


def test_places_are_distinct_stratified_and_shared_by_the_arrays():
  where = gradient_canaries.places(PARAMS, 100)
  sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
  assert sum(map(len, where)) == 100
  for own, size in zip(where, sizes, strict=True):
    assert len(own) >= 8
    assert len(np.unique(own)) == len(own)
    assert own.max() < size
    np.testing.assert_array_equal(own[:8], np.arange(8))
  assert abs(len(where[0]) - len(where[2])) <= 1, "equal arrays have equal shares"
  assert len(np.intersect1d(where[0], where[2])) >= 8
  assert sum(map(len, gradient_canaries.places(PARAMS, 5))) == 5


def test_observed_is_participation_without_noise():
  """Every canary that is in is clipped from 10 C to C, and none that is out is seen."""
  state, _ = trained(private(0.0, canaries=100), steps=100)
  seen = np.asarray(state["canaries"].observed)
  inside = np.asarray(state["canaries"].members)
  assert 30 < inside.sum() < 70
  np.testing.assert_allclose(seen[:, ~inside], 0, atol=1e-5)
  assert np.isclose(seen, np.round(seen), atol=1e-5).all()
  rate = np.round(seen[:, inside]).mean()
  assert abs(rate - 0.1) < 5 * np.sqrt(0.09 / seen[:, inside].size)


@pytest.mark.slow
def test_a_step_is_that_without_canaries_plus_what_is_kept_of_them():
  plain, before = trained(private(1.3), steps=20)
  state, after = trained(private(1.3, canaries=100), steps=20)
  assert "canaries" not in plain
  where, kept = coordinates(100), state["canaries"]
  noise = np.asarray(after - before)
  assert not np.delete(noise, where, axis=1).any(), "other coordinates are untouched"
  signs = np.asarray(kept.signs)
  took = noise[:, where] * signs * B / CLIP
  assert np.isclose(took, np.round(took), atol=1e-4).all()
  assert took.sum() > 0
  without = np.asarray(before) - np.asarray(trained(private(0.0), steps=20)[1])
  expected = took + without[:, where] * signs * B / CLIP
  np.testing.assert_allclose(kept.observed, expected, atol=1e-4)


@pytest.mark.slow
def test_a_canary_with_views_counts_once():
  part = private(0.0, multiplicity=3, canaries=100)
  state, _ = trained(part, steps=20, views=3)
  assert float(np.max(state["canaries"].observed)) == pytest.approx(1.0, abs=1e-4)


def test_canaries_are_refused_where_they_would_show_nothing():
  with pytest.raises(ValueError, match="at most canaries=400"):
    dp_sgd(canaries=401).init(jax.random.key(0), spec_of())
  with pytest.raises(ValueError, match="at least 4"):
    dp_sgd(canaries=3)
  with pytest.raises(ValueError, match="drop guarantee=False"):
    dp_sgd(canaries=100, guarantee=False)
  with pytest.raises(ValueError, match="finite clip"):
    dp_sgd(0.0, np.inf, canaries=100)


def test_models_have_their_own_coins_and_signs():
  part = dp_sgd(1.0, canaries=100)
  keys = jax.random.split(jax.random.key(0), 2)
  kept = jax.vmap(lambda key: part.init(key, spec_of())["canaries"])(keys)
  for own in (kept.members, kept.signs):
    assert 0.3 < np.mean(np.asarray(own[0]) == np.asarray(own[1])) < 0.7


def test_the_guarantee_is_that_without_canaries():
  plain = dp_sgd(2.0).init(jax.random.key(0), spec_of())
  audited = dp_sgd(2.0, canaries=100).init(jax.random.key(0), spec_of())
  assert {name: audited[name] for name in plain} == plain


@pytest.mark.slow
def test_a_run_audits_itself_through_fit_and_in_chains():
  data = mixdef.load("digits").hold_out(0.2)
  defense = "gaussian_noise(0.1)|dp_sgd(epsilon=8.0, multiplicity=2, canaries=400)"
  learner = mixdef.classifier(mixdef.models.mlp(64), optax.sgd(0.3), defense)
  how = {"epochs": 6, "batch_size": 128, "seed": 0, "noise_seed": 0}
  run = mixdef.fit(learner, data, **how)
  found = mixdef.self_audit(run)
  assert found.canaries == 400
  assert found.claimed == pytest.approx(run.guarantee["epsilon"], rel=1e-3)
  assert not found.failures
  assert found.epsilon_order_statistics > 1, "the canaries show something"
  plain = mixdef.fit(
    mixdef.classifier(mixdef.models.mlp(8), optax.sgd(0.3)), data, **how
  )
  with pytest.raises(ValueError, match="no canaries"):
    mixdef.self_audit(plain)


@pytest.mark.slow
def test_the_critic_of_a_gan_audits_itself():
  defense = dp_sgd(1.0, estimator="microbatch", delta=1e-3, canaries=8)
  learner = wgan_gp(NETWORKS, SGD, defense, critic_steps=1)
  run = train(learner, members=KEEP[:1], epochs=3)[0]
  found = mixdef.self_audit(run)
  assert found.canaries == 8
  assert not found.failures
