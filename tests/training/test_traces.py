"""Traces of losses: what is kept, and that keeping them changes nothing."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import mixdef
from mixdef import models
from mixdef.attacks import lt_iqr, trace_losses
from mixdef.core.learner import Learner
from mixdef.data.synthetic import synthetic_memorize
from mixdef.training import fit
from mixdef.training.sampling import Plan
from mixdef.training.traces import default_every

OPTIONS = {"epochs": 5, "batch_size": 32}
MEMBERS = np.arange(200) < 120


class Net(nn.Module):
  """Has BatchNorm and dropout, which behave differently in training."""

  num_classes: int = 4

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    mask = None if weight is None else weight[:, None] > 0
    x = nn.Dense(16)(x)
    x = nn.BatchNorm(use_running_average=not train)(x, mask=mask)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.num_classes)(x)


@pytest.fixture(scope="module")
def data():
  return synthetic_memorize(200, seed=0)


@pytest.fixture(scope="module")
def learner():
  return mixdef.classifier(Net(), optax.adam(5e-3), "mixup")


@pytest.fixture(scope="module")
def plain(learner, data):
  return fit(learner, data, MEMBERS, **OPTIONS)


def same(left, right):
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_model_is_bit_identical_and_the_losses_are_its_own(learner, data, plain):
  traced = fit(learner, data, MEMBERS, trace="loss", every=2, **OPTIONS)
  same(plain.state, traced.state)
  assert plain.trace is None
  assert traced.trace.epochs.tolist() == [0, 2, 4, 5]
  assert traced.trace.losses.shape == (4, 200)
  log_probs = plain.log_probs(data.x)
  expected = -log_probs[np.arange(200), data.y]
  np.testing.assert_allclose(traced.trace.losses[-1], expected, rtol=1e-5, atol=1e-6)
  by_hand = trace_losses(plain.log_probs, data.x, data.y)
  np.testing.assert_allclose(traced.trace.losses[-1], by_hand, rtol=1e-4, atol=1e-6)
  assert traced.trace.losses[-1][MEMBERS].mean() < traced.trace.losses[0].mean()
  assert lt_iqr(traced.trace.losses).shape == (200,)


@pytest.mark.slow
def test_more_records_to_log_change_nothing(learner, data, plain):
  fewer = data.select(np.arange(150))
  short = fit(learner, fewer, MEMBERS[:150], trace="loss", every=5, **OPTIONS)
  long = fit(learner, data, MEMBERS, trace="loss", every=5, **OPTIONS)
  same(short.state.stats, plain.state.stats)
  np.testing.assert_allclose(
    short.trace.losses, long.trace.losses[:, :150], rtol=1e-5, atol=1e-6
  )


def test_a_run_folder_keeps_the_trace_and_says_that_it_is_private(
  learner, data, tmp_path
):
  first = fit(learner, data, MEMBERS, trace="loss", every=2, out=tmp_path, **OPTIONS)
  assert "private" in (tmp_path / "traces" / "README.txt").read_text()
  again = fit(learner, data, MEMBERS, trace="loss", every=2, out=tmp_path, **OPTIONS)
  np.testing.assert_array_equal(first.trace.losses, again.trace.losses)
  assert fit(learner, data, MEMBERS, out=tmp_path, **OPTIONS).trace is None
  with pytest.raises(ValueError, match="without this trace"):
    fit(learner, data, MEMBERS, trace="loss", every=3, out=tmp_path, **OPTIONS)


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_training_has_the_same_trace(
  learner, data, tmp_path, monkeypatch, kept
):
  from mixdef.training import loop

  whole = fit(learner, data, MEMBERS, trace="loss", every=2, **OPTIONS)
  one_epoch, stop = loop._one_epoch, {"after": 3}

  def interrupted(*args):
    if stop["after"] == 0:
      raise KeyboardInterrupt
    stop["after"] -= 1
    return one_epoch(*args)

  monkeypatch.setattr(loop, "_one_epoch", interrupted)
  options = {"trace": "loss", "every": 2, "out": tmp_path, **OPTIONS}
  first = options if kept else {**OPTIONS, "out": tmp_path}
  with pytest.raises(KeyboardInterrupt):
    fit(learner, data, MEMBERS, **first)
  stop["after"] = 2 if kept else 5  # anew, unless the first losses were kept
  resumed = fit(learner, data, MEMBERS, **options)
  assert stop["after"] == 0
  np.testing.assert_array_equal(resumed.trace.losses, whole.trace.losses)
  same(resumed.state, whole.state)


def plan(epochs, records, members):
  return Plan(
    *(records, members, 10, 128, 8, epochs, 128, 0), poisson=False, platform="cpu"
  )


def test_the_default_step_costs_five_percent_or_has_four_points():
  for epochs, records in ((100, 1000), (200, 2000), (400, 1000), (1000, 3000)):
    every = default_every(plan(epochs, records, 1000))
    points = len({*range(0, epochs, every), epochs})
    assert points * 0.7 * records / 1000 <= 0.05 * epochs
    assert points >= 4
  assert default_every(plan(50, 1000, 1000)) == 17
  assert default_every(plan(1, 1000, 1000)) == 1


def test_arguments_that_make_no_sense_are_refused(learner, data):
  for options, match in (
    ({"trace": "accuracy"}, "trace is 'accuracy'"),
    ({"every": 2}, "pass trace='loss'"),
    ({"trace": "loss", "every": 0}, "every is 0"),
  ):
    with pytest.raises(ValueError, match=match):
      fit(learner, data, MEMBERS, **OPTIONS, **options)
  gan = Learner(*[None] * 5, generate=lambda: None)
  with pytest.raises(ValueError, match="needs a classifier"):
    fit(gan, data, MEMBERS, trace="loss", **OPTIONS)


def test_trace_losses_asks_in_blocks():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(10, 3)), rng.integers(0, 3, 10)
  sizes = []

  def predict(rows):
    sizes.append(len(rows))
    return 5 * rows

  losses = trace_losses(predict, x, y, block=4)
  assert sizes == [4, 4, 2]
  expected = np.log(np.exp(5 * x).sum(1)) - 5 * x[np.arange(10), y]
  np.testing.assert_allclose(losses, expected)
  with pytest.raises(ValueError, match="return logits"):
    trace_losses(lambda rows: rows[:, 0], x, y)


@pytest.mark.slow
def test_the_trace_ranks_mislabelled_members_first():
  data = mixdef.load("digits").select(np.arange(600))
  wrong = np.arange(600) < 30
  data = dataclasses.replace(data, y=np.where(wrong, (data.y + 3) % 10, data.y))
  learner = mixdef.classifier(models.mlp(128), optax.adam(3e-3))
  run = fit(learner, data, epochs=60, batch_size=32, trace="loss", every=3)
  scores = lt_iqr(run.trace.losses)
  assert mixdef.metrics.auc(scores, wrong) > 0.7
