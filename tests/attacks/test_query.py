import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from mixdef.attacks import Signals
from mixdef.attacks.views import identity, mirror
from mixdef.data import Dataset
from mixdef.defenses.averaging import ema
from mixdef.defenses.release import MASKED, confidence_masking
from mixdef.learners.classifier import classifier
from mixdef.training import fit_many

RECORDS, MODELS, CLASSES = 300, 3, 3  # a block of 256 and a partial one
STATISTICS = ("phi", "hinge", "loss", "correct")


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(CLASSES, kernel_init=nn.initializers.zeros)(x)


def train(defense=None):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(RECORDS, 2, 4, 1)).astype(np.float32)
  data = Dataset.from_arrays(x, rng.integers(CLASSES, size=RECORDS)).with_auxiliary(7)
  members = (rng.random((MODELS, RECORDS)) < 0.5) & data.audited
  learner = classifier(Linear(), optax.sgd(1.0), defense)
  return fit_many(learner, data, members, epochs=1, batch_size=50, strategy="loop")


@pytest.fixture(scope="module")
def ensemble():
  return train()


def equal(one, other):
  return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in STATISTICS)


@pytest.mark.slow
def test_signals_are_those_of_all_outputs(ensemble):
  data = ensemble.data
  outputs = ensemble.log_probs(data.x)
  expected = Signals.from_logits(
    outputs, data.y, ensemble.members, audited=~data.auxiliary
  )
  asked = ensemble.signals()
  assert asked.phi.shape == (MODELS, RECORDS, 1)
  assert equal(asked, expected)
  np.testing.assert_array_equal(asked.log_probs, outputs)
  assert ensemble.signals(log_probs=False).log_probs is None
  for name in ("members", "labels", "audited"):
    np.testing.assert_array_equal(getattr(asked, name), getattr(expected, name))
  assert asked.audited.sum() == RECORDS - 7


def test_pitfall_158_statistics_are_float64(ensemble):
  asked = ensemble.signals()
  dtypes = {getattr(asked, name).dtype for name in ("phi", "hinge", "loss")}
  assert dtypes == {np.dtype(np.float64)}


def test_the_population_is_asked_with_the_same_views(ensemble):
  rng = np.random.default_rng(5)
  x = rng.normal(size=(20, 2, 4, 1)).astype(np.float32)
  others = Dataset.from_arrays(x, rng.integers(CLASSES, size=20))
  asked = ensemble.signals(views=mirror, population=others)
  assert asked.population.phi.shape == (MODELS, 20, 2)
  assert asked.population.log_probs is None
  expected = Signals.from_logits(
    ensemble.log_probs(x[:, :, ::-1]), others.y, np.zeros((MODELS, 20), bool)
  )
  np.testing.assert_array_equal(asked.population.phi[..., 1], expected.phi[..., 0])
  with pytest.raises(ValueError, match="preprocess both in the same way"):
    ensemble.signals(population=Dataset.from_arrays(x[:, :1], others.y))


def test_an_answer_does_not_depend_on_the_others_asked_about(ensemble):
  x = ensemble.data.x
  together = ensemble.log_probs(x)
  assert together.shape == (MODELS, RECORDS, CLASSES)
  for row in (0, 100, 255, 256, RECORDS - 1):
    alone = ensemble.log_probs(x[row : row + 1])
    np.testing.assert_array_equal(alone[:, 0], together[:, row])
  backwards = ensemble.log_probs(x[::-1])[:, ::-1]
  np.testing.assert_array_equal(backwards, together)
  np.testing.assert_array_equal(ensemble[1].log_probs(x), together[1])


def test_pitfall_13_view_0_of_a_mirrored_query_is_the_record(ensemble):
  asked = ensemble.signals(views=mirror)
  assert asked.phi.shape == (MODELS, RECORDS, 2)
  data = ensemble.data
  for view, x in enumerate((data.x, data.x[:, :, ::-1])):
    expected = Signals.from_logits(ensemble.log_probs(x), data.y, ensemble.members)
    for name in STATISTICS:
      np.testing.assert_array_equal(
        getattr(asked, name)[..., view], getattr(expected, name)[..., 0]
      )


def test_pitfall_12_all_models_see_the_same_views(ensemble):
  rng, seen = np.random.default_rng(0), []

  def noisy(x):
    views = np.stack([x, x + rng.normal(size=x.shape).astype(x.dtype)], 1)
    seen.append(views)
    return views

  asked = ensemble.signals(views=noisy)
  views = np.concatenate(seen)
  assert views.shape == (RECORDS, 2, 2, 4, 1)  # made once, not once a model
  for s in range(MODELS):
    outputs = ensemble[s].log_probs(views[:, 1])
    expected = Signals.from_logits(
      outputs[None], ensemble.data.y, ensemble.members[s, None]
    )
    np.testing.assert_array_equal(asked.phi[s, :, 1], expected.phi[0, :, 0])


def test_pitfall_15_release_hooks_act_on_every_query():
  masked = train(confidence_masking())
  asked = masked.signals(views=mirror)
  np.testing.assert_allclose(np.abs(asked.hinge), -MASKED, rtol=1e-3)
  x = masked.data.x
  bare = masked.log_probs(x, raw=True)
  assert bare.min() > MASKED
  np.testing.assert_array_equal(bare.argmax(-1), masked.log_probs(x).argmax(-1))


def test_a_model_that_diverged_is_named(ensemble):
  def spoil(leaf):
    return leaf.at[1].set(np.nan)

  params = jax.tree.map(spoil, ensemble.states.params)
  states = ensemble.states._replace(params=params)
  with pytest.raises(ValueError, match=r"models \[1\] output NaN") as raised:
    dataclasses.replace(ensemble, held=states).signals()
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "queries",
  [lambda x: x, lambda x: x[:1, None], lambda x: x[:, None, :, :3]],
  ids=["no view axis", "fewer records", "another shape"],
)
def test_views_of_another_shape_are_refused(ensemble, queries):
  with pytest.raises(ValueError, match=r"return \[B,Q,\.\.\.\]"):
    ensemble.signals(views=queries)


def test_a_population_or_views_of_another_kind_are_one_line(ensemble):
  pair = ensemble.data.x, ensemble.data.y
  with pytest.raises(ValueError, match="population is a tuple; pass a Dataset"):
    ensemble.signals(population=pair)
  with pytest.raises(ValueError, match="views='shifts' is not a function; pass one"):
    ensemble.signals(views="shifts")


def test_identity_is_one_view():
  x = np.zeros((5, 4))
  assert identity(x).shape == (5, 1, 4)


def test_pitfall_03_averaged_weights_are_what_is_attacked(ensemble):
  averaged = train(ema(0.9))
  weights = (averaged.states.params, ensemble.states.params)
  jax.tree.map(np.testing.assert_array_equal, *weights)  # trained to the same end
  asked = averaged.signals()
  assert not equal(asked, ensemble.signals())
  average = averaged.states.defense["ema"]["params"]["Dense_0"]
  x = averaged.data.x.reshape(RECORDS, -1)
  logits = x @ np.asarray(average["kernel"]) + np.asarray(average["bias"])[:, None]
  expected = Signals.from_logits(logits, averaged.data.y, averaged.members)
  np.testing.assert_allclose(asked.phi, expected.phi, atol=1e-5)


def test_pitfall_09_labels_are_the_data_sets_own(ensemble):
  data = ensemble.data
  shifted = dataclasses.replace(data, y=(data.y + 1) % CLASSES)
  other = dataclasses.replace(ensemble, data=shifted).signals()
  expected = Signals.from_logits(
    ensemble.log_probs(data.x), shifted.y, ensemble.members
  )
  assert equal(other, expected)
  assert not equal(other, ensemble.signals())


def test_pitfall_150_scores_of_two_selections_join_by_id(ensemble):
  order = np.random.default_rng(1).permutation(RECORDS)
  shuffled = dataclasses.replace(
    ensemble, data=ensemble.data.select(order), members=ensemble.members[:, order]
  )
  one, other = ensemble.signals(), shuffled.signals()
  back = np.argsort(shuffled.data.ids)
  np.testing.assert_array_equal(one.phi, other.phi[:, back])
  np.testing.assert_array_equal(one.members, other.members[:, back])


def test_models_may_be_asked_in_chunks_and_from_the_host(ensemble):
  def to_host(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)

  states = jax.tree.map(to_host, ensemble.states)
  chunked = dataclasses.replace(ensemble, held=states, models_at_once=2)
  assert [models for models, _ in chunked.chunks()] == [slice(0, 2), slice(2, 4)]
  assert equal(chunked.signals(), ensemble.signals())
  x = ensemble.data.x[:5]
  np.testing.assert_array_equal(chunked.log_probs(x), ensemble.log_probs(x))
