"""What every job does around its work: the run folder, errors, the final figures."""

import contextlib
import dataclasses
import datetime
import logging as std_logging
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata

import jax
from absl import app, flags, logging
from settings import PLACES, AnyJob, JobSettings, define_flags, from_flags

from mixdef.clutter import is_clutter
from mixdef.files import write_json
from mixdef.reading import digest_file, read_json
from mixdef.training.hosts import Stopped, first_then_all, together
from mixdef.training.signature import same_or_refuse

_RESULT = "result.json"
_FINISHED = "finished"  # names and digests in config.json
_LEFT = (".json", ".npz", ".html", ".csv", ".md", ".png")
_WORKING = ("config.json", "signature.json", "strategy.json", "noise.json")


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
      inputs = settings.inputs()
      result = execute(settings, settings.folder(name, inputs), run, inputs)
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


def execute(
  settings: JobSettings,
  folder: pathlib.Path,
  run: Callable,
  inputs: Mapping[str, str] | None = None,
) -> dict:
  """Run a job in its folder, or return the result it has already.

  Writes config.json (flags, digests of the inputs, versions, devices, commit) before
  and result.json after; then config.json notes what the folder holds, so that a result
  is returned again only if it is whole and of these settings and inputs.

  Args:
    settings: of the job.
    folder: of the run.
    run: `(settings, folder) -> result`.
    inputs: of the result, as `settings.inputs()` returns them.

  Raises:
    ValueError: if the folder holds a run of other settings or inputs.
  """
  folder = pathlib.Path(folder)
  config = dataclasses.asdict(settings)
  apart = (*PLACES, *settings.grows)
  places = {name: config.pop(name) for name in apart if name in config}
  config |= settings.inputs() if inputs is None else inputs
  path = folder / "config.json"
  noted = {"environment": {**places, **environment()}, _FINISHED: {}}
  fresh = first_then_all(
    lambda: same_or_refuse(path, config, fix="Choose another --out.", noted=noted)
  )
  earlier = None if fresh else _earlier(folder)
  if earlier is not None and settings.finished(earlier):
    logging.info("finished before; delete %s to compute it again", folder / _RESULT)
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
    write_json(folder / _RESULT, result)
    same_or_refuse(path, config, fix="Choose another --out.", noted=noted)
    whole = read_json(path, fix="run the command again")
    write_json(path, {**whole, _FINISHED: _digests(folder)})
    logging.info("wrote %s", folder / _RESULT)
  return result


def _earlier(folder: pathlib.Path) -> dict | None:
  """Read the result of a finished run whose files are all whole; else None."""
  again = "it is computed again"
  finished = read_json(folder / "config.json", fix=again).get(_FINISHED)
  if not isinstance(finished, dict) or _RESULT not in finished:
    return None
  now = _digests(folder)
  for name, digest in finished.items():
    if now.get(name) != digest:
      changed = "is missing" if name not in now else "was changed after it was written"
      logging.warning("%s %s; %s", folder / name, changed, again)
      return None
  return read_json(folder / _RESULT, fix=again)


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """What a job left for people and other jobs: digests of what jobs read, and names."""
  paths = (path for path in folder.iterdir() if path.suffix in _LEFT)
  return {
    path.name: digest_file(path, fix="") if path.suffix in (".json", ".npz") else ""
    for path in sorted(paths)
    if path.name not in _WORKING and path.is_file() and not is_clutter(path)
  }


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
