"""What every job does around its work: the run folder, errors, the final figures."""

import contextlib
import dataclasses
import datetime
import json
import logging as std_logging
import pathlib
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import jax
from absl import app, flags, logging
from settings import PLACES, AnyJob, JobSettings, define_flags, from_flags

from mixdef.clutter import is_clutter
from mixdef.training.hosts import Stopped, first_then_all, together
from mixdef.training.signature import same_or_refuse, write_json


def main(
  name: str,
  kind: type[AnyJob],
  run: Callable[[AnyJob, pathlib.Path], dict],
  show: Callable[[dict], None],
) -> None:
  """Run a job from the command line; a mistake of the user's is one line, status 2.

  Args:
    name: of the job, for the default run folder.
    kind: the settings class whose fields are the flags.
    run: `(settings, folder) -> result`, which becomes result.json.
    show: prints the result.
  """

  def start(argv):
    if len(argv) > 1:
      raise app.UsageError(f"{argv[1]!r} is no flag: write --name=value")
    _log_plainly()
    cache_programs()
    try:
      settings = from_flags(kind)
      settings.connect()
      result = execute(settings, settings.folder(name), run)
      if jax.process_index() == 0:
        show(result)
    except (ValueError, OSError, Stopped) as error:
      logging.debug("raised at", exc_info=True)
      print(f"{name}: {error}", file=sys.stderr)
      sys.exit(2)
    except KeyboardInterrupt:
      print(f"{name}: stopped; the same command resumes", file=sys.stderr)
      sys.exit(130)

  define_flags(kind)
  app.run(start)


def execute(settings: JobSettings, folder: pathlib.Path, run: Callable) -> dict:
  """Run a job in its folder, or return the result it has already.

  Writes config.json (flags, versions, devices, commit) before and result.json after.

  Raises:
    ValueError: if the folder holds a run of other settings.
  """
  folder = pathlib.Path(folder)
  config = dataclasses.asdict(settings)
  apart = (*PLACES, *settings.grows)
  places = {name: config.pop(name) for name in apart if name in config}
  path = folder / "config.json"
  fresh = not path.exists()
  notes = {**places, **environment()}
  first_then_all(
    lambda: same_or_refuse(path, config, fix="Choose another --out.", environment=notes)
  )
  done = folder / "result.json"
  if done.exists():
    earlier = json.loads(done.read_text())
    if settings.finished(earlier):
      logging.info("finished before; delete %s to compute it again", done)
      return earlier
  try:
    with together("reported"):
      result = run(settings, folder)
  except Exception:
    made = {path.name for path in folder.iterdir() if not is_clutter(path)}
    if fresh and made <= {path.name, "lock"}:
      path.unlink()  # nothing was made: a corrected command may take the folder
    raise
  if jax.process_index() == 0:  # the others helped
    write_json(done, result)
    logging.info("wrote %s", done)
  return result


def environment() -> dict:
  """Versions, devices and the commit that a run was made with."""
  packages = ("mixdef", "jax", "flax", "optax", "numpy")
  commit = ""
  with contextlib.suppress(OSError):
    here = pathlib.Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
  return {
    "versions": {name: metadata.version(name) for name in packages},
    "python": sys.version.split()[0],
    "devices": [str(device) for device in jax.devices()],
    "commit": commit,
  }


def provenance(seed: int) -> dict:
  """What a report says of how it was made."""
  now = datetime.datetime.now(datetime.UTC)
  return {
    "seed": seed,
    **environment(),
    "command": " ".join(["python", *sys.argv]),
    "date": now.strftime("%Y-%m-%d %H:%M UTC"),
  }


def _log_plainly() -> None:
  """Show messages as bare lines, and of the dependencies only warnings."""
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  handler = logging.get_absl_handler()
  handler.setFormatter(None)
  handler.addFilter(_worth_showing)


def _worth_showing(record) -> bool:
  ours = record.name == "absl" and "orbax" not in record.pathname
  return ours or record.levelno >= std_logging.WARNING


def cache_programs() -> None:
  """Keep compiled programs between runs: a second start takes seconds less."""
  cache = pathlib.Path.home() / ".cache" / "mixdef" / "programs"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
