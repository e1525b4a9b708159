"""The pool of worker processes: who computes what, and what ends with whom."""

import atexit
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from mixdef.kernels import onednn
from mixdef.training.hosts import Stopped
from mixdef.training.workers import script
from mixdef.training.workers.script import ALIGNMENT, Memory, layout, views

# Everything else that changes a result is written into the exported program.
_CONFIG = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_min_entry_size_bytes",
)
_REMEMBERED = 32  # programs a worker keeps: a sweep compiles some for each defense


class Program(NamedTuple):
  """A function of one model, exported; `number` is its name among the workers.

  `calls` are the functions of our own that it calls, beside XLA's.
  `own`, `shared` and `outputs` are the arrays of one call; `tree` and `kinds`, of
  random keys, make the outputs what the function returns.
  """

  number: int
  blob: bytes
  calls: Sequence[str]
  own: Sequence[Any]
  shared: Sequence[Any]
  outputs: Sequence[Any]
  tree: Any
  kinds: list


class _Worker:
  """One worker process: its pipes, its memory and what it has been told."""

  def __init__(self, name: str, core: int | None, shared: Memory):
    self._name, self._known = name, []
    self._memory = Memory(_nameless_file())
    self._stderr = _nameless_file()
    settings = {
      "core": core,
      "own": self._memory.descriptor,
      "shared": shared.descriptor,
      "config": {option: getattr(jax.config, option) for option in _CONFIG},
    }
    self._process: Any = subprocess.Popen(
      # As a script, for importing the whole library would double the time to start.
      [sys.executable, "-P", script.__file__, json.dumps(settings)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._stderr,
      pass_fds=(self._memory.descriptor, shared.descriptor),
      process_group=0,  # an interrupt from the keyboard is for the parent
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      text=True,
    )

  def run(self, program: Program, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Compute one model; the outputs are valid until the next call."""
    if program.number not in self._known:
      while len(self._known) >= _REMEMBERED:
        self._ask("forget", self._known.pop(0))
      blob = np.frombuffer(program.blob, np.uint8)
      self._memory.write([blob])
      if program.calls:
        self._ask("register", str(onednn.library()), program.calls)
      self._ask("load", program.number, len(blob), len(program.shared))
      self._known.append(program.number)
    _, behind = layout(program.own)
    self._memory.reserve(layout(program.outputs, behind)[1])
    self._memory.write(inputs)
    self._ask("run", program.number)
    return self._memory.views(program.outputs, behind)

  def kill(self) -> None:
    """End the process at once, whatever it computes."""
    self._process.kill()

  def stop(self) -> None:
    """End the process and free its memory."""
    self.kill()
    self._process.communicate()
    os.close(self._stderr)
    os.close(self._memory.descriptor)

  def _ask(self, *task):
    try:
      self._process.stdin.write(json.dumps(task) + "\n")
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    if not answer:
      raise Stopped(self._end())
    error = json.loads(answer)
    if error:
      raise Stopped(f"{self._name} failed: {error}")

  def _end(self):
    code = self._process.wait()
    size = os.fstat(self._stderr).st_size
    text = os.pread(self._stderr, size, 0).decode(errors="replace").strip()
    how = f"ended with exit code {code}"
    if text:
      logging.error("%s wrote:\n%s", self._name, text)
      how += f" ({text.splitlines()[-1]})"
    if code < 0:
      how = f"was killed by {signal.Signals(-code).name}"
      if code == -signal.SIGKILL:
        how += ", perhaps for lack of memory"
    return f"{self._name} {how}: run the same command again, it resumes"


class Workers:
  """Workers that start when there is work for them, one per core."""

  def __init__(self, cores: Sequence[int | None]):
    self._cores, self._workers, self._turn = cores, [], threading.Lock()
    self._shared: Any = None
    self._written = []

  def run(self, program: Program, own: list, shared: list) -> list[jax.Array]:
    """Compute every model; arrays lead with the axis S, but for `shared`."""
    with self._turn:
      try:
        return self._run(program, [np.asarray(leaf) for leaf in own], shared)
      except BaseException:
        self.stop()
        raise

  def stop(self) -> None:
    """End all workers; the next call starts fresh ones."""
    for one in self._workers:
      one.stop()
    if self._shared:
      os.close(self._shared.descriptor)
    self._workers, self._shared, self._written = [], None, []

  def _run(self, program, own, shared):
    count = len(own[0])
    self._start(min(count, len(self._cores)))
    self._share(shared)
    stacked = [
      jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype) for leaf in program.outputs
    ]
    # One block, aligned: jax takes the arrays as they lie.
    block = np.empty(layout(stacked)[1] + ALIGNMENT, np.uint8)
    results = views(block, stacked, -block.ctypes.data % ALIGNMENT)
    free = queue.SimpleQueue()
    for one in self._workers:
      free.put(one)

    def compute(model):
      one = free.get()
      try:
        outputs = one.run(program, [leaf[model] for leaf in own])
        for place, output in zip(results, outputs, strict=True):
          place[model] = output
      finally:
        free.put(one)

    with ThreadPoolExecutor(len(self._workers)) as threads:
      try:
        jobs = [threads.submit(compute, model) for model in range(count)]
        for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
          job.result()
      except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        for one in self._workers:
          one.kill()  # so that the threads that wait for it end
        raise
    return [jax.device_put(leaf) for leaf in results]

  def _start(self, count):
    if not self._shared:
      self._shared = Memory(_nameless_file())
    for number in range(len(self._workers), count):
      core = self._cores[number]
      where = "" if core is None else f" (core {core})"
      self._workers.append(_Worker(f"worker {number}{where}", core, self._shared))

  def _share(self, leaves):
    """Write what all models read, but for the leading arrays that are there already."""
    same = 0
    for leaf, earlier in zip(leaves, self._written, strict=False):
      if leaf is not earlier():
        break
      same += 1
    self._shared.write(leaves, skip=same)
    # Records are not kept alive here, and of what can change nothing is remembered.
    self._written = [
      weakref.ref(leaf) if isinstance(leaf, jax.Array) else lambda: None
      for leaf in leaves
    ]


def _nameless_file() -> int:
  """Open a file in memory that vanishes with the last process that has it open."""
  if hasattr(os, "memfd_create"):
    return os.memfd_create("mixdef")
  with tempfile.TemporaryFile() as file:
    return os.dup(file.fileno())


def num_workers() -> int:
  """Return how many workers there can be: one a core of a CPU, else none."""
  return len(_cores()) if jax.default_backend() == "cpu" else 0


@functools.cache
def pool() -> Workers:
  """Return the workers of this process."""
  workers = Workers(_cores())
  atexit.register(workers.stop)
  return workers


def _cores():
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return [None] * (os.cpu_count() or 1)
