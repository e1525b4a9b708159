import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import (
  LEARNER,
  RECORDS,
  SIZES,
  Dropped,
  Linear,
  halves,
  records,
  same,
  train,
)

from mixdef.learners.classifier import classifier
from mixdef.training import fit, fit_many, shadows
from mixdef.training import strategy as choosing
from mixdef.training.programs import STRATEGIES

DROPPED = classifier(Dropped(), optax.sgd(0.2))
KEEP = halves(5)


@pytest.fixture(scope="module")
def traces():
  return []


@pytest.fixture(scope="module")
def learner(traces):
  """Return a learner that notes each time its step is traced."""

  def step(*args):
    traces.append(1)
    return DROPPED.step(*args)

  return DROPPED._replace(step=step)


@pytest.fixture(scope="module")
def ensembles(learner, traces):
  made = {}
  for strategy in STRATEGIES:
    traces.clear()
    made[strategy] = train(learner, members=KEEP, strategy=strategy)
    # The metrics' shapes and the loop body: once each, for all models and epochs. The
    # shapes for `processes` are those that were traced for `loop`.
    times = 1 if strategy == "processes" else 2
    assert len(traces) == times, f"pitfall 153: {strategy} traced {len(traces)} times"
  return made


@pytest.mark.parametrize("strategy", ["scan", "loop"])
def test_pitfall_154_strategies_give_equal_parameters(ensembles, strategy):
  vmapped = ensembles["vmap"]
  assert same(vmapped.states.params, ensembles[strategy].states.params, atol=1e-5)
  x = vmapped.data.x
  np.testing.assert_allclose(
    vmapped.log_probs(x), ensembles[strategy].log_probs(x), atol=1e-5
  )


def test_auto_takes_a_strategy_that_gives_the_same_models(ensembles, learner):
  chosen = train(learner, members=KEEP, strategy="auto")
  assert chosen.strategy in STRATEGIES
  assert same(chosen.states.params, ensembles[chosen.strategy].states.params, atol=1e-5)


@pytest.mark.parametrize(("share", "timed"), [(0.9, 1), (1.1, 3)])
def test_only_a_long_training_is_worth_timing_again(monkeypatch, caplog, share, timed):
  """Against timing the first strategy, which takes 10 s here."""
  caplog.set_level(logging.INFO, logger="absl")
  training = types.SimpleNamespace(
    count=5, plan=types.SimpleNamespace(steps_per_epoch=2, epochs=3), streamed=False
  )
  clock, found = [0.0], []

  def seconds_per_model(training, strategy, size, best):
    clock[0] += 10
    found.append(strategy)
    return 10 * share / (5 * 2 * 3)

  monkeypatch.setattr(choosing.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(choosing, "_seconds_per_model", seconds_per_model)
  monkeypatch.setattr(choosing, "models_at_once", lambda *_: (5, 0.0))
  assert choosing.choose(training, 1e9, 5) == "vmap"
  assert len(found) == timed
  said = "takes about 9 s, less than timing another" in caplog.text
  assert said == (timed == 1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chunks_equal_the_whole(ensembles, learner, strategy, monkeypatch):
  monkeypatch.setattr(choosing, "models_at_once", lambda *_: (2, 0.0))
  chunked = train(learner, members=KEEP, strategy=strategy)
  # XLA may lower a batched product of 2 models unlike one of 5; else it is bit by bit.
  atol = 1e-6 if strategy == "vmap" else 0.0
  assert same(chunked.states, ensembles[strategy].states, atol=atol)
  assert {row["models"] for row in chunked.history} == {
    f"models-{first:05d}" for first in (0, 2, 4)
  }


def test_chunks_by_a_tiny_memory_equal_the_whole(ensembles, learner):
  chunked = train(learner, members=KEEP, strategy="loop", memory_gb=1e-9)
  assert same(chunked.states, ensembles["loop"].states)
  assert len(chunked.history) == len(KEEP) * SIZES["epochs"]


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_progress_ends_at_its_total_with_a_padded_last_chunk(
  monkeypatch, caplog, strategy
):
  caplog.set_level(logging.INFO, logger="absl")
  progress = []
  monkeypatch.setattr(choosing, "models_at_once", lambda *_: (2, 0.0))
  monkeypatch.setattr(shadows, "Progress", _recorder(progress))
  train(members=KEEP, strategy=strategy)
  total, *done = progress
  assert sum(done) == total
  filled = caplog.text.count("1 of 2 places repeat model 4 ")
  assert filled == (strategy == "vmap")


def _recorder(progress):
  class Recorder:
    def __init__(self, total, *, unit, shown):
      progress.append(total)

    def advance(self, units, **metrics):
      progress.append(units)

    resume = advance

    def close(self):
      progress.append(0)

  return Recorder


def test_a_model_does_not_depend_on_how_many_come_after_it(ensembles, learner):
  for strategy, atol in (("loop", 0.0), ("vmap", 1e-6)):
    first = train(learner, members=KEEP[:2], strategy=strategy)
    assert first.plan == ensembles[strategy].plan
    states = jax.tree.map(lambda leaf: leaf[:2], ensembles[strategy].states)
    assert same(first.states, states, atol=atol)


def test_models_of_an_ensemble_differ_even_on_equal_members():
  ensemble = train(members=np.repeat(halves(1), 2, 0))
  (one, other) = ensemble.log_probs(ensemble.data.x)
  assert not np.array_equal(one, other)


def test_fit_is_the_first_model_of_fit_many():
  sizes = {key: SIZES[key] for key in ("epochs", "batch_size")}
  members = halves(2)
  run = fit(LEARNER, records(), members[0], **sizes)
  assert same(
    run.state, jax.tree.map(lambda leaf: leaf[0], train(members=members).states)
  )


def test_pitfall_153_more_training_compiles_nothing(ensembles, learner, traces):
  traces.clear()
  for strategy in STRATEGIES:
    train(learner, members=KEEP, strategy=strategy, seed=5)
  assert not traces


def test_pitfall_84_two_runs_in_one_process_are_identical():
  assert same(train().states, train().states)
  assert not same(train().states, train(seed=1).states)


def test_over_equals_models_trained_with_each_value():
  def make(rate):
    return classifier(Linear(), optax.sgd(rate))

  members = halves(3)
  swept = train(make, members=members, sweep={"rate": [0.1, 0.4, 0.4]}, strategy="vmap")
  alone = train(make(0.4), members=members)
  expected = alone.log_probs(alone.data.x)
  given = swept.log_probs(swept.data.x)
  np.testing.assert_allclose(given[1:], expected[1:], atol=1e-5)
  assert np.abs(given[0] - expected[0]).max() > 0.01
  np.testing.assert_allclose(swept[2].log_probs(swept.data.x), given[2], atol=1e-5)


def test_models_of_one_id_are_paired(ensembles, learner):
  model_ids = [2, 0, 2]
  chosen = train(learner, members=KEEP[model_ids], model_ids=model_ids, strategy="loop")
  states = jax.tree.map(
    lambda leaf: leaf[jnp.array(model_ids)], ensembles["loop"].states
  )
  assert same(chosen.states, states)


def test_some_models_of_an_ensemble_answer_as_before(ensembles):
  whole = ensembles["vmap"]
  part = whole.select(slice(1, 3))
  assert len(part) == 2
  np.testing.assert_array_equal(part.members, whole.members[1:3])
  x = whole.data.x
  np.testing.assert_allclose(part.log_probs(x), whole.log_probs(x)[1:3], atol=1e-6)


def test_pitfall_158_training_stays_float32_under_x64():
  with jax.enable_x64():
    ensemble = train()
    outputs = ensemble.log_probs(ensemble.data.x)
  leaves = jax.tree.leaves((ensemble.states.params, ensemble.states.stats))
  assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
  assert outputs.dtype == np.float32


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"epochs": 0}, "epochs=0; pass at least 1"),
    ({"batch_size": 0}, "batch_size=0; pass at least 1"),
    ({"epochs": 2.0}, r"epochs=2\.0; pass an integer of at least 1"),
    ({"epochs": None}, "epochs=None; pass an integer"),
    ({"batch_size": True}, "batch_size=True; pass an integer"),
    ({"num_members": "9"}, "num_members='9'; pass an integer"),
    ({"num_members": -3}, "num_members=-3; pass at least 1"),
    ({"num_members": 0}, "num_members=0; pass at least 1"),
    ({"epochs": 10**12}, "exceed the maximum of 2147483647 steps"),
    (
      {"strategy": "fast"},
      "'fast' is unknown; choose one of vmap, scan, loop, processes, auto",
    ),
    ({"memory_gb": 0}, "memory_gb=0 must be positive"),
    ({"model_ids": [0]}, r"model_ids have shape \(1,\): give one for each of 2"),
    ({"sweep": {"rate": [1.0]}}, r"one value for each of the 2 models"),
    ({"members": np.ones((2, 3), bool)}, r"members has shape \(2, 3\)"),
    ({"members": np.ones((2, RECORDS))}, "members has type float64"),
    ({"members": np.zeros((2, RECORDS), bool)}, r"members\[0\] selects 0 records"),
  ],
)
def test_mistakes_are_one_line(wrong, message):
  options = {"members": halves(2), **SIZES, **wrong}
  with pytest.raises(ValueError, match=message) as raised:
    fit_many(LEARNER, records(), options.pop("members"), **options)
  assert "\n" not in str(raised.value)


def test_an_ensemble_is_a_sequence_of_runs():
  ensemble = train(members=halves(2))
  assert len(ensemble) == len(list(ensemble)) == 2
  np.testing.assert_array_equal(ensemble[-1].members, ensemble.members[1])
  with pytest.raises(IndexError, match="model 2 of an ensemble of 2"):
    ensemble[2]
