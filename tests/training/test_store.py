"""The shadow store: what it holds is used again if it is whole and of this run."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from training_cases import LEARNER, SIZES, Linear, halves, records, same, train

import mixdef
from mixdef.attacks.views import identity
from mixdef.learners.classifier import classifier
from mixdef.training import ensemble as ensemble_module
from mixdef.training import entry, strategy
from mixdef.training import loop as loop_module
from mixdef.training.devices import Stopped
from mixdef.training.lock import locked
from mixdef.training.store import Store

KEEP = halves(5)


def run(models=5, **options):
  return train(members=KEEP[:models], **options)


def query(models=5, learner=LEARNER, *, views=None, out=None, **options):
  """Train and query, chunk by chunk if there is a folder; the ensemble and signals."""
  options = {"strategy": "loop", **SIZES, **options}
  queries = {"population": records(count=10, seed=1), "views": views}
  kept = queries if out else None
  trained = mixdef.fit_many(
    learner, records(), KEEP[:models], signals=kept, out=out, **options
  )
  return trained, trained.converged().signals(**queries)


@pytest.fixture(scope="module")
def unbroken():
  return run()


@pytest.fixture
def trained(monkeypatch):
  """Note the models of each chunk that is trained."""
  chunks, whole = [], loop_module.Loop.run

  def noted(self, training, strategy, models, **options):
    chunks.append(list(models))
    return whole(self, training, strategy, models, **options)

  monkeypatch.setattr(loop_module.Loop, "run", noted)
  return chunks


@pytest.mark.slow
def test_models_are_added_to_a_store(tmp_path, trained, unbroken):
  first = run(3, out=tmp_path)
  grown = run(out=tmp_path)
  assert trained == [[0, 1, 2], [3, 4]]
  assert same(grown.states, unbroken.states)
  assert same(first.states, jax.tree.map(lambda leaf: leaf[:3], unbroken.states))
  assert len(grown.history) == 2 * SIZES["epochs"]


@pytest.mark.slow
def test_models_are_added_to_a_vmapped_store(tmp_path, trained):
  whole = run(strategy="vmap")
  run(3, strategy="vmap", out=tmp_path)
  grown = run(strategy="vmap", out=tmp_path)
  # Chunks of three, as the first run decided.
  assert trained[1:] == [[0, 1, 2], [3, 4]]
  assert same(grown.states, whole.states, atol=1e-6)


@pytest.mark.slow
def test_larger_subsets_may_join_a_store(tmp_path, trained):
  larger = KEEP.copy()
  larger[4] = True
  data = records()
  train(data=data, members=larger[:4], out=tmp_path)
  grown = train(data=data, members=larger, out=tmp_path)
  assert trained == [[0, 1, 2, 3], [4]]
  assert same(jax.tree.map(lambda leaf: leaf[:4], grown.states), run(4).states)


def cut_short(path):
  os.truncate(path, 300)


def alter(path):
  content = bytearray(path.read_bytes())
  place = content.index(b"NUMPY") + 128  # beyond the header of the first array
  content[place] ^= 255
  path.write_bytes(content)


def rewrite(path, change):
  with np.load(path) as arrays:
    np.savez(path, **change(dict(arrays)))


def replace_an_array(path):
  def change(arrays):
    first = next(iter(arrays))
    return arrays | {first: arrays[first] + 1}

  rewrite(path, change)


def lose_the_notes(path):
  rewrite(path, lambda arrays: {n: a for n, a in arrays.items() if n != "notes.json"})


def alter_the_notes(path):
  def change(arrays):
    text = arrays["notes.json"].tobytes().replace(b"false", b"true ")
    return arrays | {"notes.json": np.frombuffer(text, np.uint8)}

  rewrite(path, change)


DAMAGES = [cut_short, alter, replace_an_array, lose_the_notes, alter_the_notes]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_alone_is_trained_again(
  tmp_path, trained, unbroken, caplog, damage
):
  run(out=tmp_path)
  trained.clear()
  damage(tmp_path / "models" / "00003.npz")
  again = run(out=tmp_path)
  assert trained == [[3]]
  assert same(again.states, unbroken.states)
  (told,) = {m for m in caplog.messages if "cannot be read" in m}
  assert "models/00003" in told
  assert "created again" in told


def test_pitfall_86_the_model_and_the_field_that_differ_are_named(tmp_path):
  run(out=tmp_path)
  other = KEEP.copy()
  other[2] = KEEP[3]
  with pytest.raises(
    ValueError, match=r"models/00002 belongs to another run: members was"
  ):
    train(members=other, out=tmp_path)


def test_a_version_is_part_of_a_run(tmp_path, monkeypatch):
  run(1, out=tmp_path)
  monkeypatch.setattr("mixdef.training.agreement.metadata.version", lambda _: "9.9")
  with pytest.raises(ValueError, match=r"mixdef was '0.1.0', now '9.9'"):
    run(1, out=tmp_path)


_HOLD = """
import pathlib, sys
from mixdef.training.lock import locked
with locked(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.mark.slow
def test_a_folder_has_one_writer(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLD, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with holder:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"by process {holder.pid} on") as raised:
      run(1, out=tmp_path)
    assert "choose another out folder" in str(raised.value)
    holder.kill()
  run(1, out=tmp_path)  # the lock went with its process
  with locked(tmp_path):
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, trained, unbroken):
  saved, save = [], np.savez

  def full(file, **arrays):
    saved.append(file)
    if len(saved) == SIZES["epochs"] + 3:  # a checkpoint an epoch, then models 0, 1, 2
      file.write(b"half of an entry")
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save(file, **arrays)

  monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", -1.0)
  with monkeypatch.context() as patch:
    patch.setattr(entry.np, "savez", full)
    with pytest.raises(
      OSError, match="No space left on device: nothing was changed there"
    ):
      run(out=tmp_path)
  trained.clear()
  resumed = run(out=tmp_path)
  assert same(resumed.states, unbroken.states)
  assert trained == [[2, 3, 4]]
  # From the checkpoint of all five, not from the start.
  assert {row["models"] for row in resumed.history} == {"models-00000"}
  assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
    f"{model:05d}.npz" for model in range(5)
  ]


def test_random_keys_and_small_floats_come_back(tmp_path):
  tree = {
    "key": jax.random.split(jax.random.key(3), 2),
    "small": jax.numpy.arange(3, dtype=jax.numpy.bfloat16),
    "flag": np.array([True, False]),
  }
  store = Store(tmp_path)
  store.save("one", tree, about="a tree")
  assert same(store.load("one", tree), tree)
  assert store.notes("one")["about"] == "a tree"
  assert store.load("one", {**tree, "flag": np.zeros(3, bool)}) is None
  assert not store.has("one")


def test_outputs_are_stored_without_the_models(tmp_path, trained, monkeypatch):
  monkeypatch.setattr(strategy, "models_at_once", lambda *_: (2, 0.0))
  _, expected = query()
  trained.clear()
  _, first = query(3, keep_params=False, out=tmp_path)
  grown, outputs = query(keep_params=False, out=tmp_path)
  assert trained == [[0, 1], [2], [3], [4]]
  np.testing.assert_array_equal(outputs.phi, expected.phi)
  np.testing.assert_array_equal(first.phi, expected.phi[:3])
  assert not grown.diverged.any()
  assert grown.guarantee == {"epsilon": None, "delta": None}
  with pytest.raises(Stopped, match=r"lacks the parameters of model 0: .*keep_params"):
    grown[0]
  # Parameters that are wanted later are trained again, and the outputs stay.
  trained.clear()
  whole, outputs = query(3, out=tmp_path)
  assert trained == [[0, 1], [2]]
  np.testing.assert_array_equal(outputs.phi, expected.phi[:3])
  assert same(whole.states, run(3).states)


def test_an_ensemble_in_a_folder_holds_one_chunk(tmp_path, monkeypatch, unbroken):
  monkeypatch.setattr(strategy, "models_at_once", lambda *_: (2, 0.0))
  ensemble = run(out=tmp_path)
  reads, load = [], Store.load

  def noted(store, name, template):
    reads.append(name)
    return load(store, name, template)

  monkeypatch.setattr(Store, "load", noted)
  x = records().x
  np.testing.assert_array_equal(ensemble.log_probs(x), unbroken.log_probs(x))
  assert reads == [f"models/{model:05d}" for model in range(5)]
  assert len(ensemble.held.recent) == 2
  reads.clear()
  assert same(ensemble[2].state, unbroken[2].state)
  assert same(ensemble[-1].state, unbroken[4].state)
  assert reads[-1] == "models/00004"


def test_models_that_vanish_are_one_line(tmp_path):
  ensemble = run(2, out=tmp_path)
  (tmp_path / "models" / "00001.npz").unlink()
  with pytest.raises(Stopped, match="lacks the parameters of model 1: train again"):
    ensemble[1]
  with pytest.raises(Stopped, match="lacks model 1: train again"):
    _ = ensemble.diverged


def test_outputs_to_keep_need_a_folder_and_a_query(tmp_path):
  with pytest.raises(ValueError, match="signals are kept in a run folder: pass out"):
    run(2, signals={})
  with pytest.raises(ValueError, match=r"pass signals=\{\}"):
    run(2, keep_params=False, out=tmp_path)


def test_other_queries_are_made_of_stored_models(tmp_path, trained):
  query(out=tmp_path)
  trained.clear()
  _, twice = query(out=tmp_path, views=lambda x: np.repeat(identity(x), 2, 1))
  assert not trained
  assert twice.phi.shape == (5, 40, 2)


def test_damaged_outputs_are_queried_again(tmp_path, trained):
  _, first = query(out=tmp_path)
  (outputs,) = tmp_path.glob("signals-*")
  cut_short(outputs / "00001.npz")
  trained.clear()
  _, again = query(out=tmp_path)
  assert not trained
  np.testing.assert_array_equal(again.phi, first.phi)


def test_pitfall_86_outputs_without_models_are_those_of_the_call(tmp_path, trained):
  query(2, keep_params=False, out=tmp_path)
  (tmp_path / "signature.json").unlink()
  shutil.rmtree(tmp_path / "models")
  with pytest.raises(
    ValueError, match=r"signals-\w+/00000 belongs to another run: program"
  ):
    query(2, make(0.4), keep_params=False, out=tmp_path)


def test_arrays_under_exchanged_names_are_damage(tmp_path, caplog):
  tree = {"scale": np.ones(3), "shift": np.zeros(3)}
  store = Store(tmp_path)
  store.save("one", tree)
  exchanged = {"scale": "shift", "shift": "scale", "notes.json": "notes.json"}
  rewrite(tmp_path / "one.npz", lambda a: {exchanged[n]: a[n] for n in a})
  assert store.load("one", tree) is None
  (told,) = caplog.messages
  assert "its arrays are not those that were written; it is created again" in told


def test_a_folder_in_the_place_of_an_entry_is_damage(tmp_path):
  store = Store(tmp_path)
  (tmp_path / "one.npz").mkdir()
  assert store.notes("one") is None
  store.save("one", {"a": np.ones(3)})
  assert same(store.load_arrays("one"), {"a": np.ones(3)})


@pytest.mark.parametrize(
  "lines",
  [b"{}", b"3", b"\xff\xfe", b'{"models": [], "count": 1, "epoch": 0}', b"[" * 9999],
)
def test_damaged_rows_of_metrics_are_left_out(tmp_path, lines, caplog):
  store = Store(tmp_path)
  rows = [{"models": "models-00000", "count": 1, "epoch": e} for e in (0, 1)]
  store.write_metrics(rows[:1])
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(lines + b"\n")
  store.write_chunk(rows[1:])
  assert store.read_metrics() == rows
  (told,) = caplog.messages
  assert told.endswith("metrics.jsonl: 1 rows are damaged and ignored")


def make(rate):
  return classifier(Linear(), optax.sgd(rate))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_a_model_that_diverges_harms_no_other(tmp_path, strategy, caplog):
  over = {"rate": np.array([0.5, np.nan, 0.5], np.float32)}
  options = {"learner": make, "sweep": over, "strategy": strategy, "out": tmp_path}
  whole, found = query(3, **options)
  assert whole.diverged.tolist() == [False, True, False]
  assert "model 1 diverged: its parameters are not finite" in caplog.messages
  np.testing.assert_array_equal(found.members, KEEP[[0, 2]])
  _, alone = query(3, make(0.5), strategy=strategy)
  np.testing.assert_allclose(found.phi, alone.phi[[0, 2]], atol=1e-5)
  scores = mixdef.attacks.leave_one_out(mixdef.attacks.lira_global, found)
  metrics = mixdef.metrics.summarize(scores, found.members)
  assert metrics.num_members == KEEP[[0, 2]].sum()
  rows = Store(tmp_path).read_metrics()
  assert all(row["diverged"] == [1] and np.isfinite(row["loss"]) for row in rows[1:])
  again, outputs = query(3, **options)
  assert again.diverged.tolist() == [False, True, False]
  np.testing.assert_array_equal(outputs.phi, found.phi)


def test_all_models_diverging_is_one_line():
  over = {"rate": np.full(2, np.nan, np.float32)}
  with pytest.raises(ValueError, match="all models diverged: train with a lower"):
    query(2, make, sweep=over)
  with pytest.raises(ValueError, match="all models diverged"):
    train(make, members=KEEP[:2], sweep=over).converged()


def test_a_model_that_answers_nan_with_finite_parameters_diverged(unbroken):
  huge = np.float32(3e38)

  def second(leaf):
    leaf = np.array(leaf)
    leaf[1] = np.where(leaf[1] < 0, -huge, huge)
    return leaf

  params = jax.tree.map(second, unbroken.states.params)
  broken = dataclasses.replace(unbroken, held=unbroken.states._replace(params=params))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  np.testing.assert_array_equal(broken.diverged, [False, True, False, False, False])
  assert len(broken.converged()) == 4


def test_questions_are_told_apart_by_every_view(tmp_path):
  def capped(top):
    return lambda x: np.stack([x, np.minimum(x, top)], 1)

  highest = float(records().x.max())
  assert (records().x[:4] < highest - 0.1).all()
  plain, cut = (
    query(2, out=tmp_path, views=capped(highest - d))[1] for d in (0.0, 0.1)
  )
  assert (plain.phi != cut.phi).any()


def test_models_a_minute_are_those_that_were_trained(tmp_path):
  first = run(out=tmp_path)
  trained = 5 / (first.seconds / 60)
  assert first.per_minute == pytest.approx(trained)
  cut_short(tmp_path / "models" / "00000.npz")
  again = run(out=tmp_path)
  assert again.per_minute == pytest.approx(6 / (again.seconds / 60))


def test_clutter_of_desktops_is_no_entry(tmp_path):
  store = Store(tmp_path)
  store.save("models/00001", {"a": np.arange(3)})
  for folder in (tmp_path, tmp_path / "models"):
    for name in (".DS_Store", "._00001.npz", "Thumbs.db", "desktop.ini", "Icon\r"):
      (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "__MACOSX").mkdir()
  assert store.names("models/*") == ["models/00001"]
  assert store.load("models/00001", {"a": np.zeros(3, int)})["a"].tolist() == [0, 1, 2]


def test_signals_are_kept_beside_the_models(tmp_path, monkeypatch):
  others = records(count=10, seed=1)
  ensemble = run(out=tmp_path, models=3)
  expected = run(models=3).signals(population=others)
  first = ensemble.signals(population=others)
  np.testing.assert_array_equal(first.phi, expected.phi)

  def never(*_, **__):
    raise AssertionError("a model was queried again")

  with monkeypatch.context() as patched:
    patched.setattr(ensemble_module, "predict_in_blocks", never)
    again = run(out=tmp_path, models=3).signals(population=others)
    part = ensemble.select([2, 0]).signals(population=others)
  for name in ("phi", "hinge", "correct", "log_probs", "members", "audited"):
    np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))
    if name != "audited":
      stack = getattr(expected, name)[[2, 0]]
      np.testing.assert_array_equal(getattr(part, name), stack)
  np.testing.assert_array_equal(again.population.phi, expected.population.phi)
  # Other views, and the same views of replaced weights, are queried anew.
  mirrored = ensemble.signals(views=lambda x: np.stack([x, -x], 1))
  assert mirrored.phi.shape[2] == 2
  halved = jax.tree.map(lambda leaf: leaf / 2, ensemble.states.params)
  states = ensemble.states._replace(params=halved)
  replaced = dataclasses.replace(ensemble, held=states)
  assert (replaced.signals(population=others).phi != expected.phi).any()
  _, found = query(3, out=tmp_path)
  np.testing.assert_array_equal(found.phi, expected.phi)


def test_views_are_made_once_for_the_name_and_once_for_each_chunk(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(strategy, "models_at_once", lambda *_: (2, 0.0))
  made = []

  def views(x):
    made.append(len(x))
    return x[:, None]

  query(4, out=tmp_path, views=views)
  # Of the records and of the population: in training for the name and for two chunks,
  # afterwards for the name alone.
  assert len(made) == 2 * (1 + 2 + 1)
