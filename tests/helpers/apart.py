"""Train the small problem in a process of its own: `python apart.py <JSON>`.

Keys of the JSON: `models`, `epochs` and `strategy`; and if wanted `out`, a folder;
`memory_gb`, of which too little streams the records; `answer`, an npz for the signals;
`at_once`, models in a chunk; `devices`, CPU devices to force; `coordinator`, [address,
processes, number]; `full`, the process that finds the disk full; `slow`, the process
that waits before it reads a file; `beat`, seconds between two heartbeats of the lock on
a bucket, and how much this host's clock is off, in seconds.
"""

import errno
import json
import os
import pathlib
import sys
import time

if __name__ == "__main__":
  ASKED = json.loads(sys.argv[1])
  if "devices" in ASKED:
    force = f" --xla_force_host_platform_device_count={ASKED['devices']}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + force

import jax
import numpy as np
import optax
from training_cases import Dropped, halves, records

import mixdef
from mixdef.training import lock, loop, strategy
from mixdef.training.devices import connect

LEARNER = mixdef.classifier(Dropped(), optax.adam(0.05), mixdef.mixup(1.0))


def train(*, models, epochs, strategy, out=None, memory_gb=None):
  """Train and query; returns the signals."""
  # No two records of the population have all hidden units off.
  queries = {"population": records(count=10, seed=2)}
  ensemble = mixdef.fit_many(
    LEARNER,
    records(),
    halves(models),
    epochs=epochs,
    batch_size=6,
    num_members=20,
    strategy=strategy,
    memory_gb=memory_gb,
    signals=queries if out else None,
    out=out,
  )
  return ensemble.signals(**queries)


def start(**asked):
  """Start a process that trains; its output can be read."""
  import subprocess

  return subprocess.Popen(
    [sys.executable, __file__, json.dumps(asked, default=str)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _full(file, **arrays):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _slowly(path, read=pathlib.Path.read_bytes):
  time.sleep(0.5)
  return read(path)


def main(
  answer=None,
  at_once=None,
  devices=1,
  coordinator=None,
  full=None,
  slow=None,
  beat=None,
  **asked,
):
  """Do what the JSON says."""
  if coordinator:
    connect(*coordinator)
  assert jax.local_device_count() == devices
  loop._CHECKPOINT_SECONDS = 0.0
  if beat:
    lock._HEARTBEAT, off = beat
    lock._TIMEOUT, now = 10 * lock._HEARTBEAT, time.time
    time.time = lambda: now() + off
  if full == jax.process_index():
    np.savez = _full
  if slow == jax.process_index():
    pathlib.Path.read_bytes = _slowly
  if at_once:
    strategy.models_at_once = lambda *_: (at_once, 0.0)
  print("started", flush=True)
  signals = train(**asked)
  if answer and jax.process_index() == 0:
    np.savez(answer, phi=signals.phi, members=signals.members)


if __name__ == "__main__":
  cache = os.path.expanduser("~/.cache/mixdef/test-programs")
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  main(**ASKED)
