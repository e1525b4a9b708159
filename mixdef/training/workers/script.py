"""A worker process, which runs exported programs on arrays in shared memory.

It is started as a script, `python script.py '<settings>'`, and depends only on JAX. It
reads lines of JSON from stdin and replies to each on stdout. Arrays are stored in two
shared files: `own` for the inputs and outputs of one model, `shared` for inputs common
to all models. When stdin is closed, the parent has exited, and the worker exits
immediately.
"""

import ctypes
import json
import mmap
import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

ALIGNMENT = 64  # arrays aligned to this many bytes are read without a copy


def layout(arrays: Sequence[Any], start: int = 0) -> tuple[list[int], int]:
  """Return the memory layout of consecutive arrays.

  Args:
    arrays: objects with a shape and a dtype.
    start: the first free byte.

  Returns:
    The offset of each array in bytes, and the first free byte after them.

  >>> layout([np.zeros(3, np.float32), np.zeros((), bool)])
  ([0, 64], 128)
  """
  offsets, end = [], start
  for array in arrays:
    offsets.append(end)
    size = int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
    end += -(-size // ALIGNMENT) * ALIGNMENT
  return offsets, end


def views(memory: Any, arrays: Sequence[Any], start: int = 0) -> list[np.ndarray]:
  """Return views into memory with these shapes and types, placed by `layout`."""
  offsets, _ = layout(arrays, start)
  return [
    np.ndarray(array.shape, array.dtype, memory, offset)
    for array, offset in zip(arrays, offsets, strict=True)
  ]


class Memory:
  """Memory shared by several processes, in an unnamed file that only grows."""

  def __init__(self, descriptor: int):
    self.descriptor = descriptor
    self._bytes: Any = b""

  def reserve(self, size: int) -> None:
    """Grow the memory to at least this many bytes."""
    if size > os.fstat(self.descriptor).st_size:
      os.ftruncate(self.descriptor, size)

  def views(self, arrays: Sequence[Any], start: int = 0) -> list[np.ndarray]:
    """Return writable arrays of these shapes and types, placed by `layout`."""
    size = os.fstat(self.descriptor).st_size
    if len(self._bytes) < size:
      self._bytes = mmap.mmap(self.descriptor, size)
    return views(self._bytes, arrays, start)

  def write(self, arrays: Sequence[Any], *, skip: int = 0) -> None:
    """Write arrays from the start of the memory, skipping the first `skip` arrays."""
    self.reserve(layout(arrays)[1])
    places = self.views(arrays)
    for place, array in zip(places[skip:], arrays[skip:], strict=True):
      place[...] = array


def register(library: str, names: Sequence[str]) -> None:
  """Register functions of a compiled library as XLA custom calls on CPU."""
  import jax

  functions = ctypes.CDLL(library)
  for name in names:
    capsule = jax.ffi.pycapsule(getattr(functions, name))
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


class _Programs:
  """The programs that a worker holds, by number."""

  def __init__(self, own: Memory, shared: Memory):
    self._own, self._shared, self._known = own, shared, {}

  def load(self, program: int, size: int, shared: int) -> None:
    """Load an exported program, `size` bytes at the start of `own`."""
    import jax
    from jax import export

    (blob,) = self._own.views([np.empty(size, np.uint8)])
    exported = export.deserialize(bytearray(blob))
    count = len(exported.in_avals) - shared
    own, rest = exported.in_avals[:count], exported.in_avals[count:]
    self._known[program] = jax.jit(exported.call), own, rest, exported.out_avals

  def forget(self, program: int) -> None:
    """Free a program."""
    del self._known[program]

  def run(self, program: int) -> None:
    """Run a program on the inputs in memory, and write the outputs after them."""
    run, own, shared, outputs = self._known[program]
    results = run(*self._own.views(own), *self._shared.views(shared))
    places = self._own.views(outputs, layout(own)[1])
    for place, result in zip(places, results, strict=True):
      place[...] = result


def _lines() -> queue.SimpleQueue:
  """Read stdin in a thread, so that its end is noticed during a computation."""
  lines = queue.SimpleQueue()

  def read():
    for line in sys.stdin:
      lines.put(line)
    os._exit(0)

  threading.Thread(target=read, daemon=True).start()
  return lines


def main(core: int | None, own: int, shared: int, config: dict[str, Any]) -> None:
  """Serve requests from the parent until it closes stdin.

  Args:
    core: CPU core to run on; None leaves the choice to the system.
    own: file descriptor of this worker's memory.
    shared: file descriptor of the memory shared by all workers.
    config: JAX settings.
  """
  if core is not None:
    os.sched_setaffinity(0, [core])  # before JAX counts the cores
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # output of libraries must not be read as a reply
  lines = _lines()
  import jax

  jax.config.update("jax_enable_x64", True)  # the program fixes its own types
  for name, value in config.items():
    jax.config.update(name, value)
  programs = _Programs(Memory(own), Memory(shared))
  tasks = {
    "register": register,
    "load": programs.load,
    "run": programs.run,
    "forget": programs.forget,
  }
  while True:
    task, *arguments = json.loads(lines.get())
    error = None
    try:
      tasks[task](*arguments)
    except Exception as problem:
      first = (str(problem).splitlines() or [""])[0]
      error = f"{type(problem).__name__}: {first}"
    replies.write(json.dumps(error) + "\n")
    replies.flush()


if __name__ == "__main__":
  main(**json.loads(sys.argv[1]))
