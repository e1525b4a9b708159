"""What a stated epsilon rests on: the seed of its noise, public sizes and moments."""

import json

import jax
import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.auditing import plant
from mixdef.auditing.facts import epsilon_remark
from mixdef.core import Defense, chain
from mixdef.data import Dataset
from mixdef.defenses import dp_sgd
from mixdef.learners import classifier
from mixdef.training import fit, fit_many
from mixdef.training.signature import AnotherRun

RNG = np.random.default_rng(0)
DATA = Dataset.from_arrays(5 * RNG.normal(size=(30, 4)), RNG.integers(0, 2, 30))
KEEP = np.arange(30) < np.array([[20], [20]])
LEARNER = classifier(
  models.mlp(4, num_classes=2), optax.sgd(0.1), dp_sgd(2.0, delta=1e-3)
)
SIZES = {"epochs": 1, "batch_size": 10, "num_members": 20}


def train(learner=LEARNER, data=DATA, **options):
  return fit_many(learner, data, KEEP, **{"strategy": "loop", **SIZES, **options})


def weights(ensemble):
  leaves = jax.tree.leaves(ensemble.states.params)
  return np.concatenate([np.reshape(leaf, (2, -1)) for leaf in leaves], 1)


@pytest.fixture(scope="module")
def drawn():
  return train(seed=0)


@pytest.mark.slow
def test_the_noise_does_not_follow_from_the_seed(drawn):
  again = train(seed=0)
  assert np.abs(weights(drawn) - weights(again)).max() > 1e-3
  assert drawn[0].guarantee["noise_seed"] == "drawn from the operating system"
  assert np.abs(np.diff(weights(drawn), axis=0)).max() > 1e-3


@pytest.mark.slow
def test_a_seed_of_the_noise_repeats_it_by_every_strategy():
  loop, vmap = train(noise_seed=2**40), train(noise_seed=2**40, strategy="vmap")
  np.testing.assert_allclose(weights(loop), weights(vmap), atol=1e-5)
  assert loop[0].guarantee["noise_seed"] == "given"
  other = train(noise_seed=0)  # the same but for its high bits
  assert np.abs(weights(loop) - weights(other)).max() > 1e-3


@pytest.mark.slow
def test_where_no_epsilon_is_stated_the_seed_alone_decides():
  for defense in (dp_sgd(2.0, guarantee=False), dp_sgd(0.0)):
    learner = classifier(models.mlp(4, num_classes=2), optax.sgd(0.1), defense)
    one, two = (train(learner, noise_seed=seed) for seed in (None, 3))
    np.testing.assert_array_equal(weights(one), weights(two))
    assert one[0].guarantee == {"epsilon": None, "delta": None}


@pytest.mark.slow
def test_a_resumed_run_has_the_noise_it_began_with(tmp_path):
  whole = train(out=tmp_path)
  secret = tmp_path / "noise.json"
  assert secret.stat().st_mode & 0o077 == 0, "its owner alone may read it"
  (tmp_path / "models" / "00001.npz").unlink()
  np.testing.assert_array_equal(weights(train(out=tmp_path)), weights(whole))
  with pytest.raises(AnotherRun, match="noise_seed was 'drawn from the operating sys"):
    train(out=tmp_path, noise_seed=5)
  secret.write_text(secret.read_text()[:-9])
  with pytest.raises(ValueError, match=r"noise\.json is damaged.*another out folder"):
    train(out=tmp_path)
  secret.unlink()
  with pytest.raises(AnotherRun, match="key was"):
    train(out=tmp_path)


@pytest.mark.slow
def test_a_given_seed_of_the_noise_is_noted_in_the_folder(tmp_path):
  train(out=tmp_path, noise_seed=7)
  assert json.loads((tmp_path / "signature.json").read_text())["noise_seed"] == 7
  assert not (tmp_path / "noise.json").exists()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "a"])
def test_a_seed_of_the_noise_is_checked(seed):
  with pytest.raises(ValueError, match="noise_seed"):
    train(noise_seed=seed)


@pytest.mark.slow
def test_a_size_read_off_the_membership_is_marked(drawn):
  assert drawn[0].guarantee["num_members"] == "given"
  assert epsilon_remark(drawn[0].guarantee) == ""
  sizes = {**SIZES, "num_members": None}
  run = fit(LEARNER, DATA, KEEP[0], **sizes, noise_seed=0)
  assert run.guarantee["num_members"] == "read off the membership"
  assert run.guarantee["epsilon"] == drawn[0].guarantee["epsilon"]
  known = run.guarantee["accounting"]
  assert (known["sampling"], known["sampling_probability"]) == ("Poisson", 0.5)
  assert (known["steps"], known["noise_multiplier"]) == (2, 2.0)
  assert run.guarantee["epsilon"] == min(known["pld"], known["rdp"])
  assert epsilon_remark(run.guarantee) == (
    " (number of members read off the membership, seed of the noise given)"
  )


def test_parts_that_couple_rows_are_refused_in_a_sweep_before_work_starts(tmp_path):
  def learner(scale):
    centred = Defense("mine", loss=lambda losses, *rest: scale * losses.mean() + losses)
    network = models.mlp(4, num_classes=2)
    return classifier(network, optax.sgd(0.1), chain(centred, dp_sgd(delta=1e-3)))

  with pytest.raises(
    ValueError, match="mine makes the loss of a row depend on the other"
  ):
    train(learner, sweep={"scale": np.ones(2)}, out=tmp_path / "run")
  assert not (tmp_path / "run").exists()


STANDARD = DATA.hold_out(0.2).standardize()


@pytest.mark.parametrize(
  "data",
  [
    STANDARD,
    STANDARD.select(range(20)),
    STANDARD.with_auxiliary(3),
    DATA.standardize().hold_out(0.2),
    plant(STANDARD, "mislabelled", 2),
    Dataset.from_arrays(STANDARD.x, STANDARD.y, test=STANDARD.test),
  ],
  ids=["itself", "select", "reference", "split", "plant", "arrays"],
)
def test_records_standardised_by_their_own_moments_are_refused(data):
  with pytest.raises(ValueError, match=r"standardized by the moments of its own"):
    fit(LEARNER, data, epochs=1, batch_size=10)


def test_public_moments_cost_no_guarantee():
  public = DATA.select(range(20, 30))
  data = DATA.standardize(public)
  np.testing.assert_allclose(data.x[20:].mean(0), 0, atol=1e-6)
  assert not data.standardized
  assert data.standardize().standardized
  train(data=data)
  with pytest.raises(ValueError, match="preprocess both in the same way"):
    DATA.standardize(STANDARD.select([0, 1]).__class__(np.zeros((2, 3)), [0, 1], 2))


@pytest.mark.slow
def test_no_other_part_can_state_less_than_was_spent(drawn):
  modest = Defense(
    "a", text="a", init=lambda key, spec: {"epsilon": 1e-3, "delta": 1e-9}
  )
  network = models.mlp(4, num_classes=2)
  alone = classifier(network, optax.sgd(0.1), modest)
  beside = classifier(network, optax.sgd(0.1), chain(modest, dp_sgd(2.0, delta=1e-3)))
  said = [train(learner, noise_seed=0)[0].guarantee for learner in (alone, beside)]
  assert said[0] == {"epsilon": None, "delta": None}
  honest = drawn[0].guarantee
  assert (said[1]["epsilon"], said[1]["delta"]) == (honest["epsilon"], honest["delta"])
