import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import Dropped, Linear, halves, same, train

from mixdef.learners.classifier import classifier
from mixdef.training.programs import over_models
from mixdef.training.workers import exported, pool, script

MODELS = 3  # no multiple of two workers
COMPUTING = 300  # more ticks of two workers than they need to start and compile
LEARNER = classifier(Dropped(), optax.adam(1e-2))
FOREVER = """
import jax, jax.numpy as jnp
from mixdef.training.programs import over_models
def forever(start, step):
  return jax.lax.while_loop(lambda x: x > 0, lambda x: x * 1.0 + step, start)
over_models(forever, "processes", shared=1)(jnp.ones(2), jnp.float32(0))
"""


@pytest.fixture(scope="module", autouse=True)
def workers():
  """Return the workers that all these tests share."""
  yield pool.pool()
  pool.pool().stop()
  assert not children(os.getpid()), "stopped workers are gone, not zombies"


def children(parent):
  """Return the process ids of a process's workers."""
  found = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      owner = (entry / "stat").read_text().rpartition(")")[2].split()[1]
      if int(owner) == parent and script.__file__ in (entry / "cmdline").read_text():
        found.append(int(entry.name))
    except OSError:
      continue  # it ended meanwhile
  return found


def ticks(processes):
  """Return the hundredths of seconds some processes have computed for."""
  found = 0
  for one in processes:
    stat = (pathlib.Path("/proc") / str(one) / "stat").read_text()
    found += int(stat.rpartition(")")[2].split()[11])
  return found


def alive(process):
  stat = pathlib.Path("/proc") / str(process) / "stat"
  return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds=300.0):
  """Return how long a condition took to hold."""
  start = time.monotonic()
  while not condition():
    assert time.monotonic() < start + seconds, "waited in vain"
    time.sleep(0.02)
  return time.monotonic() - start


def scatter(model, places, data, scale):
  """Use everything a program may: trees, keys, gathers, types, shared arrays."""
  noise = scale * jax.random.normal(model["key"], (4,))
  fresh = {"key": jax.random.split(model["key"])[0], "x": model["x"] + data[places]}
  return fresh, noise.astype(jnp.bfloat16), (places > 1, jnp.zeros((0, 2)))


def scattered(models=MODELS, seed=0):
  """Return arguments of `scatter` for some models, and the shared ones."""
  keys = jax.random.split(jax.random.key(seed), models)
  places = jnp.arange(4 * models).reshape(models, 4) % 5
  own = {"key": keys, "x": jnp.ones((models, 4))}, places
  return *own, jnp.arange(5.0) + seed, jnp.float32(0.5)


@pytest.mark.slow
def test_models_equal_those_of_the_loop_and_of_a_second_run():
  members = halves(MODELS)
  looped = train(LEARNER, members=members)
  first = train(LEARNER, members=members, strategy="processes")
  assert same(looped.states, first.states, atol=1e-5)
  for row, expected in zip(first.history, looped.history, strict=True):
    assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
  x = first.data.x
  np.testing.assert_allclose(first.log_probs(x), looped.log_probs(x), atol=1e-5)
  again = train(LEARNER, members=members, strategy="processes")
  assert same(first.states, again.states)


@pytest.mark.slow
def test_hyper_parameters_reach_their_models():
  def make(rate):
    return classifier(Linear(), optax.sgd(rate))

  options = {"members": halves(MODELS), "sweep": {"rate": [0.1, 0.4, 0.2]}}
  looped = train(make, **options)
  spread = train(make, strategy="processes", **options)
  assert same(looped.states, spread.states, atol=1e-5)


def test_keys_types_and_shared_arrays_arrive_whatever_was_sent_before():
  there = over_models(scatter, "processes", shared=2)
  here = over_models(scatter, "loop", shared=2)
  first, second = scattered(), scattered(seed=1)
  mixed = *first[:2], second[2], first[3]
  for args in (first, first, mixed, second, first, scattered(models=1)):
    given, expected = there(*args), here(*args)
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    assert same(given, expected, atol=1e-6)
  shorter = *first[:2], first[2][:4], first[3]  # other shapes: another program
  assert same(there(*shorter), here(*shorter), atol=1e-6)
  assert same(there(*first), here(*first), atol=1e-6)


@pytest.mark.slow
def test_double_precision_stays_double():
  def third(x, divisor):
    return x / divisor

  with jax.enable_x64():
    args = jnp.ones(2), jnp.asarray(3.0)
    given = over_models(third, "processes", shared=1)(*args)
    assert given.dtype == np.float64
    assert same(given, over_models(third, "loop", shared=1)(*args))


@pytest.mark.slow
def test_programs_that_workers_forgot_are_sent_again(monkeypatch):
  monkeypatch.setattr(pool, "_REMEMBERED", 1)
  one, other = (over_models(scatter, "processes", shared=2) for _ in range(2))
  first = one(*scattered())
  for again in (other, one, other):
    assert same(again(*scattered()), first)


def test_results_outlive_later_calls():
  there = over_models(scatter, "processes", shared=2)
  first = there(*scattered())
  kept = jax.tree.map(lambda leaf: leaf.copy(), first)
  there(*scattered(seed=1))
  assert same(first, kept)


def test_shapes_are_found_without_workers(monkeypatch):
  monkeypatch.setattr(exported, "pool", None)
  args = scattered()
  shapes = jax.eval_shape(over_models(scatter, "processes", shared=2), *args)
  expected = jax.eval_shape(over_models(scatter, "loop", shared=2), *args)
  assert jax.tree.map(str, shapes) == jax.tree.map(str, expected)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs affinity")
def test_each_worker_has_a_core_of_its_own():
  over_models(scatter, "processes", shared=2)(*scattered())
  cores = [os.sched_getaffinity(one) for one in children(os.getpid())]
  assert len(cores) == min(MODELS, len(os.sched_getaffinity(0)))
  assert {len(own) for own in cores} == {1}
  assert len(set.union(*cores)) == len(cores)


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_the_next_call_starts_afresh():
  there = over_models(scatter, "processes", shared=2)
  args = scattered()
  expected = there(*args)
  os.kill(children(os.getpid())[0], signal.SIGKILL)
  with pytest.raises(RuntimeError, match=r"killed by SIGKILL.* to resume") as raised:
    there(*args)
  assert "\n" not in str(raised.value)
  assert not children(os.getpid())
  assert same(there(*args), expected)


@pytest.mark.slow
def test_what_a_worker_refuses_is_one_line():
  def huge(x, shared):
    return jnp.sort(jnp.arange(1 << 42) * x + shared).sum()

  with pytest.raises(RuntimeError, match=r"worker . .*failed: .*emory") as raised:
    over_models(huge, "processes", shared=1)(jnp.ones(2), jnp.float32(1))
  assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_an_interrupt_stops_workers_that_compute(request):
  # Started in the background, a process ignores interrupts and hands that on.
  usual = signal.signal(signal.SIGINT, signal.default_int_handler)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
  before = ticks(children(os.getpid()))

  def interrupt():
    try:
      wait_for(lambda: ticks(children(os.getpid())) > before + COMPUTING)
    finally:
      os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  with pytest.raises(KeyboardInterrupt):
    exec(FOREVER, {})
  assert not children(os.getpid())


@pytest.mark.slow
def test_workers_of_a_killed_parent_go_too():
  parent = subprocess.Popen([sys.executable, "-c", FOREVER])
  wait_for(lambda: ticks(children(parent.pid)) > COMPUTING)
  own = children(parent.pid)
  parent.kill()
  parent.wait()
  try:
    wait_for(lambda: not any(map(alive, own)), seconds=5)
  finally:
    for one in filter(alive, own):
      os.kill(one, signal.SIGKILL)


def test_what_calls_back_into_python_is_refused():
  def calls_back(x, shared):
    return jax.pure_callback(np.asarray, x, x) + shared

  message = "cannot send 'calls_back' to other processes .*use --strategy=loop"
  with pytest.raises(ValueError, match=message) as raised:
    over_models(calls_back, "processes", shared=1)(jnp.ones(2), jnp.float32(0))
  assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_other_backends_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  with pytest.raises(ValueError, match="processes' is for CPUs, but jax runs on 'tpu'"):
    over_models(scatter, "processes", shared=2)
