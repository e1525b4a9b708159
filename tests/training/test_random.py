"""What is random in a training depends on its seed, not on the surroundings."""

import json

import jax
import numpy as np
import optax
import pytest
from training_cases import CLASSES, Dropped, halves, records, same, train

import mixdef
from mixdef.learners.classifier import classifier

# An initialisation, dropout, a mixing defense and two models: every kind of draw.
LEARNER = classifier(Dropped(), optax.sgd(0.1), mixdef.mixup(1.0))


@pytest.fixture(scope="module")
def plain():
  return train(LEARNER, members=halves(2), strategy="vmap")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_another_default_of_random_keys_changes_no_model(plain, strategy, tmp_path):
  with jax.default_prng_impl("rbg"):
    again = train(LEARNER, members=halves(2), strategy=strategy, out=tmp_path)
    kept = train(LEARNER, members=halves(2), strategy=strategy, out=tmp_path)
  assert same(again.states, plain.states, atol=1e-5)
  assert same(kept.states, again.states)
  signature = json.loads((tmp_path / "signature.json").read_text())
  assert signature["random_keys"] == "threefry2x32"
  # A folder of one setting goes on under another: what is random is fixed.
  assert same(train(LEARNER, members=halves(2), out=tmp_path).states, again.states)


@pytest.mark.slow
def test_models_do_not_depend_on_who_is_trained_beside_them(plain):
  with jax.default_prng_impl("rbg"):
    second = train(LEARNER, members=halves(2)[1:], model_ids=[1], strategy="vmap")
  assert same(second[0].state, plain[1].state, atol=1e-5)


@pytest.mark.slow
def test_seeds_that_agree_in_their_low_bits_train_other_models(plain):
  high = train(LEARNER, members=halves(2), strategy="vmap", seed=2**32)
  assert not same(high.states.params, plain.states.params, atol=1e-3)
  assert same(
    train(LEARNER, members=halves(2), strategy="vmap", seed=np.int64(0)).states,
    plain.states,
  )


@pytest.mark.parametrize(
  "model_ids", [[0.5, 1.0], [0, 2**32], [-1, 0], [True, False], [0]]
)
def test_ids_that_are_no_streams_are_refused(model_ids):
  with pytest.raises(ValueError, match="model_ids"):
    train(LEARNER, records(), halves(2), model_ids=np.array(model_ids))


def test_the_last_id_is_a_stream():
  assert (
    train(members=halves(1), model_ids=[2**32 - 1]).log_probs(records().x).shape[2]
    == CLASSES
  )
