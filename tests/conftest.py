"""Settings every test runs under."""

import os
import pathlib

import jax
import pytest
from absl import flags

jax.config.update(
  "jax_compilation_cache_dir",
  str(pathlib.Path.home() / ".cache" / "mixdef" / "test-programs"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def real_data():
  """Return `name -> folder` of real data; skips where the set is not there."""
  beside = pathlib.Path(__file__).parents[1].parent / "shared" / "data"
  folder = pathlib.Path(os.environ.get("MIXDEF_DATA") or beside)

  def locate(name):
    if not (folder / name).exists():
      pytest.skip(f"no real {name}: set MIXDEF_DATA to a folder that holds it")
    return folder

  return locate
