"""A pool of pinned worker processes: scheduling, failure handling and shutdown."""

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
from mixdef.training.devices import Stopped
from mixdef.training.workers import script
from mixdef.training.workers.script import ALIGNMENT, Memory, layout, views

# All other options that affect results are part of the exported program.
_CONFIG = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_min_entry_size_bytes",
)
_REMEMBERED = 32  # programs kept per worker; a sweep compiles several per defense


class Program(NamedTuple):
  """An exported function of one model; `number` identifies it among the workers.

  `calls` are this package's custom calls that it uses, in addition to XLA's own.
  `own`, `shared` and `outputs` are the arrays of one call; `tree` and `kinds` (of
  random keys) restore the function's return value from the outputs.
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
  """One worker process, with its pipes, its memory and its programs."""

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
      # Run as a script, because importing the library would double the startup time.
      [sys.executable, "-P", script.__file__, json.dumps(settings)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._stderr,
      pass_fds=(self._memory.descriptor, shared.descriptor),
      process_group=0,  # only the parent handles keyboard interrupts
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      text=True,
    )

  def run(self, program: Program, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Run the program on one model; the outputs are valid until the next call."""
    if program.number not in self._known:
      while len(self._known) >= _REMEMBERED:
        self._send("forget", self._known.pop(0))
      blob = np.frombuffer(program.blob, np.uint8)
      self._memory.write([blob])
      if program.calls:
        self._send("register", str(onednn.library()), program.calls)
      self._send("load", program.number, len(blob), len(program.shared))
      self._known.append(program.number)
    _, behind = layout(program.own)
    self._memory.reserve(layout(program.outputs, behind)[1])
    self._memory.write(inputs)
    self._send("run", program.number)
    return self._memory.views(program.outputs, behind)

  def kill(self) -> None:
    """Kill the process immediately."""
    self._process.kill()

  def stop(self) -> None:
    """Kill the process and free its memory."""
    self.kill()
    self._process.communicate()
    os.close(self._stderr)
    os.close(self._memory.descriptor)

  def _send(self, *task):
    try:
      self._process.stdin.write(json.dumps(task) + "\n")
      self._process.stdin.flush()
      reply = self._process.stdout.readline()
    except BrokenPipeError:
      reply = ""
    if not reply:
      raise Stopped(self._end())
    error = json.loads(reply)
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
        how += ", perhaps because of a lack of memory"
    return f"{self._name} {how}: run the same command again to resume"


class Workers:
  """Worker processes, one per core, started on demand."""

  def __init__(self, cores: Sequence[int | None]):
    self._cores, self._workers, self._turn = cores, [], threading.Lock()
    self._shared: Any = None
    self._written = []

  def run(self, program: Program, own: list, shared: list) -> list[jax.Array]:
    """Run the program on every model; all arrays but `shared` have a leading axis S."""
    with self._turn:
      try:
        return self._run(program, [np.asarray(leaf) for leaf in own], shared)
      except BaseException:
        self.stop()
        raise

  def stop(self) -> None:
    """Stop all workers; the next call starts new ones."""
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
    # One aligned block, so that JAX uses the arrays without a copy.
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
          one.kill()  # ends the threads that wait for it
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
    """Write arrays shared by all models, skipping leading arrays already written."""
    same = 0
    for leaf, earlier in zip(leaves, self._written, strict=False):
      if leaf is not earlier():
        break
      same += 1
    self._shared.write(leaves, skip=same)
    # Weak references, so that records can be freed; mutable arrays are never skipped.
    self._written = [
      weakref.ref(leaf) if isinstance(leaf, jax.Array) else lambda: None
      for leaf in leaves
    ]


def _nameless_file() -> int:
  """Open an in-memory file, freed when the last process closes it."""
  if hasattr(os, "memfd_create"):
    return os.memfd_create("mixdef")
  with tempfile.TemporaryFile() as file:
    return os.dup(file.fileno())


def num_workers() -> int:
  """Return the maximal number of workers: one per CPU core, 0 on other backends."""
  return len(_cores()) if jax.default_backend() == "cpu" else 0


@functools.cache
def pool() -> Workers:
  """Return the pool of this process."""
  workers = Workers(_cores())
  atexit.register(workers.stop)
  return workers


def _cores():
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return [None] * (os.cpu_count() or 1)
