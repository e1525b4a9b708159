"""The learners of several networks in the one train loop."""

import numpy as np
import optax
import pytest
from learner_cases import records, same

import mixdef
from mixdef import models
from mixdef.data.synthetic import synthetic_memorize
from mixdef.learners import ban_mpr, model_stacking
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit, fit_many
from mixdef.training import loop as loop_module
from mixdef.training.progress import Progress

NAMES = ("model_stacking", "ban_mpr")
SIZES = {"epochs": 4, "batch_size": 6, "num_members": 12}


class Killed(BaseException):
  """Ends a run as a kill does, without a chance to save anything."""


def make(name, optimizer, num_classes, width=16):
  one = models.mlp(width, num_classes=num_classes)
  if name == "ban_mpr":
    return ban_mpr(one, optimizer, experimental=True)
  if name == "model_stacking":
    other = models.mlp(width, width, num_classes=num_classes)
    return model_stacking((one, other), optimizer)
  return classifier(one, optimizer)


@pytest.fixture(scope="module")
def small():
  """Return three looped models of each learner on a tiny problem, and their subsets."""
  data = records()
  members = mixdef.subsets(data, 3, seed=0)
  learners = {name: make(name, optax.sgd(0.2, momentum=0.9), 3, 4) for name in NAMES}
  looped = {
    name: fit_many(learner, data, members, strategy="loop", **SIZES)
    for name, learner in learners.items()
  }
  return data, members, learners, looped


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pitfall_154_vmapped_equals_looped(small, name):
  data, members, learners, looped = small
  vmapped = fit_many(learners[name], data, members, strategy="vmap", **SIZES)
  assert same(vmapped.states.params, looped[name].states.params, atol=1e-5)
  np.testing.assert_allclose(
    vmapped.log_probs(data.x), looped[name].log_probs(data.x), atol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_like_an_unbroken_one(
  small, name, tmp_path, monkeypatch
):
  data, members, learners, looped = small
  monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", -1.0)
  epochs, trained, one_epoch = [], [], loop_module._one_epoch

  def advance(self, units, **metrics):
    epochs.append(units)
    if len(epochs) == 3:
      raise Killed

  def counted(program, training, states, epoch, real):
    trained.append(epoch)
    return one_epoch(program, training, states, epoch, real)

  def run():
    return fit_many(
      learners[name], data, members, strategy="loop", out=tmp_path, **SIZES
    )

  with monkeypatch.context() as patch:
    patch.setattr(Progress, "advance", advance)
    with pytest.raises(Killed):
      run()
  monkeypatch.setattr(loop_module, "_one_epoch", counted)
  resumed = run()
  assert trained == [2, 3]
  assert same(resumed.states.params, looped[name].states.params)
  assert same(resumed.states.stats, looped[name].states.stats)
  trained.clear()
  loaded = run()
  assert not trained
  np.testing.assert_array_equal(loaded.log_probs(data.x), resumed.log_probs(data.x))


@pytest.mark.slow
def test_pitfall_86_another_learner_in_the_folder_is_refused(small, tmp_path):
  data, members, learners, _ = small
  fit_many(learners["ban_mpr"], data, members[:1], out=tmp_path, **SIZES)
  with pytest.raises(ValueError, match=r"learner was .*ban_mpr.*model_stacking"):
    fit_many(learners["model_stacking"], data, members[:1], out=tmp_path, **SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pitfall_60_out_records_change_nothing(small, name):
  data, members, learners, _ = small
  x = data.x.copy()
  x[~members[0]] += 1e3
  other = mixdef.Dataset(x, data.y, data.num_classes)
  # Of one program, and so to the bit: another number of models is another program.
  plain, moved = (
    fit_many(learners[name], each, members[:1], strategy="loop", **SIZES)
    for each in (data, other)
  )
  assert same(moved[0].state.params, plain[0].state.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_digits(name):
  data = mixdef.load("digits").hold_out(0.2, seed=0)
  learner = make(name, optax.adam(1e-2), data.num_classes, 32)
  run = fit(learner, data, epochs=9, batch_size=64)
  # Chance is 0.1; every network has a third of the records and of the epochs.
  assert run.accuracy(data.test.x, data.test.y) > 0.8
  assert run.guarantee == {"epsilon": None, "delta": None}


@pytest.mark.slow
def test_signals_and_attacks_work_unchanged(small):
  _, members, _, looped = small
  for ensemble in looped.values():
    signals = ensemble.signals()
    scores = mixdef.attacks.loss_threshold(signals, target=0)
    assert scores.shape == members[0].shape
    assert np.isfinite(scores).all()
    norms = mixdef.attacks.gradient_norm(ensemble, target=0)
    assert len(np.unique(norms[np.isfinite(norms)])) > 1


@pytest.mark.slow
def test_stacking_hides_what_an_undefended_model_leaks():
  data = synthetic_memorize(240, num_classes=4, num_test=240)
  members = mixdef.subsets(data, 4, seed=0)
  areas = {}
  for name in ("classifier", "model_stacking"):
    learner = make(name, optax.adam(1e-2), 4, 32)
    ensemble = fit_many(
      learner, data, members, epochs=45, batch_size=32, strategy="vmap"
    )
    own = ensemble.log_probs(data.x)[:, np.arange(len(data)), data.y]
    areas[name] = auc(own, members)
  # The control: labels are random, so what is known about members is memory.
  assert areas["classifier"] > 0.9
  assert areas["model_stacking"] < areas["classifier"] - 0.1
