"""Settings every test runs under."""

import collections
import functools
import gc
import logging as std_logging
import os
import pathlib
import uuid

import jax
import numpy as np
import optax
import pytest
import xla_flags
from absl import flags, logging

from mixdef import models
from mixdef.core import registry
from mixdef.core.files import path_of
from mixdef.data import CATALOGUE, subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.learners.classifier import classifier
from mixdef.training import fit_many

# Most of the suite's time is compiling programs that run for a millisecond.
os.environ["XLA_FLAGS"] = xla_flags.quick_compile(os.environ.get("XLA_FLAGS", ""))
jax.config.update(
  "jax_compilation_cache_dir",
  str(pathlib.Path.home() / ".cache" / "mixdef" / "test-programs"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
flags.FLAGS.mark_as_parsed()

_MOST_PROGRAMS = 400  # of about two megabytes each
_compiled = collections.Counter()


def _count(event, seconds, **about):
  del seconds, about
  _compiled[event] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_collection_finish():
  """Spare what lives till the end; tracing allocates much, and leaves few cycles."""
  gc.freeze()
  gc.set_threshold(20_000, 10, 5)


@pytest.fixture(scope="module", autouse=True)
def few_programs_are_kept():
  """Free what earlier modules compiled, once it is much."""
  yield
  if _compiled["/jax/core/compile/backend_compile_duration"] > _MOST_PROGRAMS:
    _compiled.clear()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def as_verbose_as_before():
  """Undo what a job run in this process chose: its dependencies talk at INFO."""
  before = logging.get_verbosity()
  yield
  logging.set_verbosity(before)


@pytest.fixture(autouse=True)
def names_as_before():
  """Forget what a test registers."""
  every = [one for one in vars(registry).values() if isinstance(one, registry.Registry)]
  before = [(dict(one), dict(one.aliases)) for one in every]
  yield
  for one, (entries, aliases) in zip(every, before, strict=True):
    if one.registered != entries:
      one.registered, one.aliases = entries, aliases


@pytest.fixture
def real_data():
  """Return `name -> folder` of real data; skips where the set is not there."""
  folder = pathlib.Path(os.environ.get("MIXDEF_DATA") or "data")

  def locate(name):
    if not (folder / name).exists():
      pytest.skip(f"no real {name}: set MIXDEF_DATA to a folder that holds it")
    return folder

  return locate


@pytest.fixture(scope="session")
def s3_server():
  """Start a server of S3, for the tests and the processes that they start."""
  reason = "no {}: pip install 'mixdef[moto]'"
  pytest.importorskip("s3fs", reason=reason.format("s3fs"))
  server = pytest.importorskip("moto.server", reason=reason.format("moto"))
  std_logging.getLogger("werkzeug").setLevel(std_logging.ERROR)
  running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  running.start()
  host, port = running.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
      patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield running
  running.stop()


@pytest.fixture
def bucket(s3_server):
  """Return an empty bucket."""
  path = path_of(f"s3://bucket-{uuid.uuid4().hex}")
  path.fs.mkdir(path.path)
  return path


@pytest.fixture
def small_table(tmp_path, monkeypatch):
  """Return `count -> folder` of a file of location30 with so many random records."""

  def write(count):
    random = np.random.default_rng(0)
    bits = random.random((count, 446)) < np.linspace(0.02, 0.6, 446)
    labels = np.arange(count) % 30
    path = tmp_path / "location30.npz"
    np.savez(path, x=np.packbits(bits, axis=1), y=labels, n_features=446)
    read = functools.partial(CATALOGUE["location30"], num_records=count)
    monkeypatch.setitem(CATALOGUE.registered, "location30", read)
    return str(tmp_path)

  return write


@pytest.fixture(scope="session")
def memorised():
  """Return six models that know by heart random halves of 240 random labels."""
  data = synthetic_memorize(240, num_classes=4, num_test=240)
  learner = classifier(models.mlp(32, num_classes=4), optax.adam(1e-2))
  members = subsets(data, 6, seed=0)
  return fit_many(learner, data, members, epochs=40, batch_size=32, strategy="vmap")
