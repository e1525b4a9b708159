"""Run folders: what a kill leaves behind is taken up, and never mixed."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from training_cases import (
  LEARNER,
  Linear,
  halves,
  perturbed,
  records,
  same,
  train,
)

from mixdef.core.chaining import from_optax
from mixdef.core.hooks import Defense, Stage
from mixdef.defenses.labels import label_smoothing
from mixdef.learners.classifier import classifier
from mixdef.training import loop as loop_module
from mixdef.training import strategy
from mixdef.training.progress import Progress
from mixdef.training.store import Store

EPOCHS = 4
KEEP = halves(3)


def keyed():
  """Carry a random key and a count in the state, and hand a table over."""

  def init(key, spec):
    return {"key": key, "table": spec.table, "seen": jax.numpy.int32(0)}

  def update(state, ctx):
    return {**state, "seen": state["seen"] + 1}

  stage = Stage(
    rows=lambda key, members, reference: members[None],
    table=lambda key, log_probs, rows, members: log_probs[0],
  )
  return Defense("keyed", init=init, update=update, stages=(stage,))


STAGED = classifier(Linear(), optax.adam(0.1), keyed())


class Killed(BaseException):
  """Ends a run as a kill does, without a chance to save anything."""


def run(learner=LEARNER, **options):
  options = {"members": KEEP, "epochs": EPOCHS, **options}
  return train(learner, options.pop("data", None), options.pop("members"), **options)


@pytest.fixture(scope="module")
def unbroken():
  return {learner: run(learner) for learner in (LEARNER, STAGED)}


@pytest.fixture
def interrupt(monkeypatch):
  """Return a function that trains and is killed in the n-th epoch, checkpoints on."""
  monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", -1.0)

  def stop(n, learner=LEARNER, **options):
    epochs = []

    def advance(self, units, **metrics):
      epochs.append(units)
      if len(epochs) == n:
        raise Killed

    with monkeypatch.context() as patch:
      patch.setattr(Progress, "advance", advance)
      with pytest.raises(Killed):
        run(learner, **options)

  return stop


@pytest.fixture
def trained(monkeypatch):
  """Count the epochs that are trained."""
  epochs, one_epoch = [], loop_module._one_epoch

  def counted(program, training, states, epoch, real):
    epochs.append(epoch)
    return one_epoch(program, training, states, epoch, real)

  monkeypatch.setattr(loop_module, "_one_epoch", counted)
  return epochs


def epochs_in(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [(row["models"], row["epoch"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("stopped_in", [1, 3, 4])
def test_an_interrupted_run_ends_like_an_unbroken_one(
  tmp_path, interrupt, trained, unbroken, stopped_in
):
  interrupt(stopped_in, out=tmp_path)
  trained.clear()
  resumed = run(out=tmp_path)
  assert trained == list(range(stopped_in - 1, EPOCHS))
  assert same(resumed.states, unbroken[LEARNER].states)
  assert epochs_in(tmp_path) == [("models-00000", epoch) for epoch in range(EPOCHS)]
  losses = [row["loss"] for row in unbroken[LEARNER].history]
  assert [row["loss"] for row in resumed.history] == losses


def test_a_kill_without_a_checkpoint_starts_over(tmp_path, monkeypatch, unbroken):
  def advance(self, units, **metrics):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(Progress, "advance", advance)
    with pytest.raises(Killed):
      run(out=tmp_path)
  assert same(run(out=tmp_path).states, unbroken[LEARNER].states)
  assert epochs_in(tmp_path) == [("models-00000", epoch) for epoch in range(EPOCHS)]


@pytest.mark.parametrize("stopped_in", [1, 3])
def test_an_interrupt_writes_a_checkpoint(
  tmp_path, monkeypatch, trained, unbroken, caplog, stopped_in
):
  def advance(self, units, **figures):
    if len(trained) == stopped_in:
      raise KeyboardInterrupt

  caplog.set_level("INFO", logger="absl")
  with monkeypatch.context() as patch:
    patch.setattr(Progress, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
      run(out=tmp_path)
  told = [line for line in caplog.messages if "wrote a checkpoint" in line]
  assert told == [f"wrote a checkpoint of models 0 to 2 after epoch {stopped_in} of 4"]
  trained.clear()
  resumed = run(out=tmp_path)
  assert trained == list(range(stopped_in, EPOCHS))
  assert same(resumed.states, unbroken[LEARNER].states)
  assert epochs_in(tmp_path) == [("models-00000", epoch) for epoch in range(EPOCHS)]


def test_a_finished_run_is_loaded(tmp_path, trained, unbroken):
  first = run(out=tmp_path)
  trained.clear()
  again = run(out=tmp_path)
  assert not trained
  assert same(again.states, first.states)
  assert same(again.states, unbroken[LEARNER].states)
  assert again.history == first.history
  x = records().x
  np.testing.assert_array_equal(again.log_probs(x), first.log_probs(x))
  assert not Store(tmp_path).has("unfinished")


def test_finished_chunks_are_skipped(
  tmp_path, interrupt, trained, unbroken, monkeypatch
):
  monkeypatch.setattr(strategy, "models_at_once", lambda *_: (2, 0.0))
  interrupt(EPOCHS + 2, out=tmp_path)
  trained.clear()
  # The folder decides.
  monkeypatch.setattr(strategy, "models_at_once", lambda *_: (3, 0.0))
  resumed = run(out=tmp_path)
  assert trained == [1, 2, 3]
  assert same(resumed.states, unbroken[LEARNER].states)
  assert epochs_in(tmp_path) == [
    (f"models-0000{chunk}", epoch) for chunk in (0, 2) for epoch in range(EPOCHS)
  ]


@pytest.mark.slow
@pytest.mark.parametrize("stopped_in", [2, EPOCHS + 1, EPOCHS + 3])
def test_stages_and_random_keys_survive(
  tmp_path, interrupt, trained, unbroken, stopped_in
):
  interrupt(stopped_in, STAGED, out=tmp_path)
  trained.clear()
  resumed = run(STAGED, out=tmp_path)
  assert len(trained) == 2 * EPOCHS + 1 - stopped_in
  assert same(resumed.states, unbroken[STAGED].states)
  key = resumed.states.defense["keyed"]["key"]
  assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
  assert epochs_in(tmp_path) == [
    (name, epoch)
    for name in ("teachers-00000", "models-00000")
    for epoch in range(EPOCHS)
  ]
  trained.clear()
  assert same(run(STAGED, out=tmp_path).states, resumed.states)
  assert not trained


@pytest.mark.parametrize(
  ("change", "field"),
  [
    ({"seed": 1}, "seed was 0, now 1"),
    ({"epochs": 3}, "epochs was 4, now 3"),
    ({"batch_size": 7}, "batch_size was 6, now 7"),
    ({"members": halves(3, seed=1)}, "members was"),
    ({"data": perturbed(records(), 3, 1e-3)}, "records was"),
    (
      {"learner": classifier(Linear(), optax.sgd(0.5), label_smoothing(0.1))},
      r"learner was 'Linear\(\)\|none', now .*label_smoothing",
    ),
  ],
  ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_pitfall_86_another_run_in_the_folder_is_refused(finished, change, field):
  with pytest.raises(ValueError, match=field) as raised:
    run(out=finished, **change)
  assert "Choose another out folder" in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  run(out=folder)
  return folder


OTHER = classifier(Linear(), optax.sgd(0.5, momentum=0.9), label_smoothing(0.2))


@pytest.mark.parametrize("text", [None, "", "{", "[]", b"\xff"])
def test_pitfall_86_models_are_those_of_the_call_without_a_signature(
  tmp_path, finished, trained, text
):
  folder = shutil.copytree(finished, tmp_path / "copy")
  signature = folder / "signature.json"
  whole = signature.read_text()
  signature.unlink()
  if text is not None:
    signature.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(
    ValueError, match=r"models/00000 belongs to another run: .*learner"
  ):
    run(OTHER, out=folder)
  run(out=folder)
  assert not trained
  assert signature.read_text() == whole


@pytest.mark.parametrize("learner", [LEARNER, STAGED], ids=["plain", "staged"])
def test_pitfall_86_work_in_progress_of_another_run_is_refused(
  tmp_path, interrupt, trained, learner
):
  interrupt(2, learner, out=tmp_path)
  other = KEEP.copy()
  other[1] = other[1][::-1]
  trained.clear()
  with pytest.raises(ValueError, match=r"epoch-1 belongs to another run: model \d was"):
    run(learner, members=other, out=tmp_path)
  (tmp_path / "signature.json").unlink()
  with pytest.raises(ValueError, match=r"epoch-1 belongs to another run: learner was"):
    run(OTHER, out=tmp_path)
  assert not trained
  run(learner, out=tmp_path)
  assert trained[0] == 1


def test_rows_that_a_killed_run_of_something_else_left_do_not_count(tmp_path):
  row = {"models": "models-00007", "count": 1, "epoch": 0, "seconds": 1e6}
  Store(tmp_path).write_chunk([row])
  assert run(out=tmp_path, members=KEEP[:1]).seconds < 1e5


def test_auto_takes_the_strategy_of_the_folder(finished, trained):
  assert run(out=finished, strategy="auto").strategy == "loop"
  assert not trained


def test_pitfall_86_swept_values_are_part_of_a_run(tmp_path):
  def make(rate):
    return classifier(Linear(), optax.sgd(rate))

  run(make, members=KEEP[:1], sweep={"rate": [0.1]}, out=tmp_path)
  with pytest.raises(ValueError, match="hyper_parameters was"):
    run(make, members=KEEP[:1], sweep={"rate": [0.2]}, out=tmp_path)


@pytest.mark.slow
def test_pitfall_86_what_has_no_text_is_part_of_a_run(tmp_path):
  def learner(bound, rate=0.5):
    part = from_optax("clip", optax.clip(bound))
    return classifier(Linear(), optax.sgd(rate), part)

  first = run(learner(0.1), out=tmp_path)
  assert same(run(learner(0.1), out=tmp_path).states, first.states)
  for other in (learner(0.2), learner(0.1, rate=0.4)):
    with pytest.raises(ValueError, match="program was"):
      run(other, out=tmp_path)


@pytest.mark.slow
def test_pitfall_86_what_teachers_hand_over_is_part_of_a_run(tmp_path):
  def learner(*, models=1, scale=1.0):
    stage = Stage(
      rows=lambda key, members, reference: members[None].repeat(models, 0),
      table=lambda key, log_probs, rows, members: scale * log_probs.mean(0),
      models=models,
    )
    part = Defense("handed", stages=(stage,))
    return classifier(Linear(), optax.sgd(0.1), part)

  run(learner(), members=KEEP[:1], out=tmp_path)
  for other in (learner(scale=0.5), learner(models=2)):
    with pytest.raises(ValueError, match="program was"):
      run(other, members=KEEP[:1], out=tmp_path)


def test_pitfall_86_swept_names_are_part_of_a_run(tmp_path):
  def make(rate=0.1, momentum=0.1):
    return classifier(Linear(), optax.sgd(rate, momentum))

  run(make, members=KEEP[:1], sweep={"rate": [0.1]}, out=tmp_path)
  with pytest.raises(ValueError, match="hyper_parameters was"):
    run(make, members=KEEP[:1], sweep={"momentum": [0.1]}, out=tmp_path)


def test_rows_of_chunks_replace_earlier_ones_and_are_merged(tmp_path):
  store = Store(tmp_path)
  rows = [
    {"models": f"models-{chunk:05d}", "count": 2, "epoch": epoch, "loss": loss}
    for chunk, epoch, loss in ((0, 0, 3.0), (0, 1, 2.0), (2, 0, 1.0))
  ]
  store.write_metrics([{**rows[0], "loss": 9.0}])
  store.write_chunk(rows[:1])
  store.write_chunk(rows[:2])
  store.write_chunk(rows[2:])
  assert len(list((tmp_path / "metrics").iterdir())) == 2
  assert store.read_metrics() == rows
  store.gather_metrics()
  assert not (tmp_path / "metrics").exists()
  assert store.read_metrics() == rows


@pytest.mark.slow
def test_pitfall_86_what_only_the_start_reads_is_part_of_a_run(tmp_path):
  def learner(rate):
    return classifier(Linear(), optax.inject_hyperparams(optax.sgd)(rate))

  run(learner(0.1), out=tmp_path)
  with pytest.raises(ValueError, match="program was"):
    run(learner(0.5), out=tmp_path)


def test_a_finished_chunk_drops_the_checkpoints_a_kill_left(tmp_path, unbroken):
  run(out=tmp_path)
  store = Store(tmp_path)
  store.save("unfinished/models-00000-epoch-2", unbroken[LEARNER].states)
  run(out=tmp_path)
  assert not store.has("unfinished")


def test_fewer_models_of_a_folder_are_its_first(finished, trained, unbroken):
  first = run(members=KEEP[:2], out=finished)
  assert not trained
  states = jax.tree.map(lambda leaf: leaf[:2], unbroken[LEARNER].states)
  assert same(first.states, states)


@pytest.mark.slow
def test_a_run_goes_on_with_another_strategy_or_memory(
  tmp_path, interrupt, trained, unbroken
):
  interrupt(EPOCHS - 1, out=tmp_path)
  trained.clear()
  resumed = run(out=tmp_path, strategy="vmap", memory_gb=1e-9)
  assert resumed.models_at_once == 1
  assert trained == 3 * [EPOCHS - 2, EPOCHS - 1]
  assert same(resumed.states, unbroken[LEARNER].states, atol=1e-6)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"strategy": "loop"}', b"\xff"])
def test_damaged_notes_on_how_models_share_a_machine_are_made_again(
  tmp_path, trained, unbroken, caplog, text
):
  run(out=tmp_path)
  trained.clear()
  path = tmp_path / "strategy.json"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  again = run(out=tmp_path)
  assert not trained
  assert same(again.states, unbroken[LEARNER].states)
  (told,) = [line for line in caplog.messages if "strategy.json is damaged" in line]
  assert told.endswith("the strategy is chosen again")
  assert json.loads(path.read_text())["strategy"] == "loop"
