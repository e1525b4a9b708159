"""Common parts of all jobs: the run folder, error handling and the result."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import logging as std_logging
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags as absl_flags
from absl import logging
from etils import epy

from mixdef.cli import flags
from mixdef.cli.settings import NOT_HASHED, JobSettings

with epy.lazy_imports():
  import jax

  from mixdef import auditing
  from mixdef.core import caches, extras, files, reading
  from mixdef.training import devices, signature

REPORT_NEEDS = ("PIL", "jinja2", "matplotlib")
"""Optional packages that `save_report` uses."""

_RESULT = "result.json"
_FINISHED = "finished"  # names and digests in config.json
_LEFT = (".json", ".npz", ".html", ".csv", ".md", ".png")
_WORKING = ("config.json", "signature.json", "strategy.json", "noise.json")


class Job(NamedTuple):
  """A job of the command line.

  Attributes:
    name: name of the job, for messages and the default run folder.
    text: what --help prints before the flags; its first line is a summary.
    settings: the settings class, whose fields are the flags.
    run: `(settings, folder) -> result`, which becomes result.json.
    show: prints the result.
    needs: optional packages that the job uses.
  """

  name: str
  text: str
  settings: type[JobSettings]
  run: Callable[[Any, pathlib.Path], dict]
  show: Callable[[dict], None]
  needs: tuple[str, ...] = ()


def main(job: Job, argv: Sequence[str] | None = None) -> None:
  """Run a job from the command line; exit with status 2 and one line on user errors.

  Args:
    job: the job.
    argv: its flags; None reads them from the command line.
  """
  _write_anything()
  signal.signal(signal.SIGTERM, _terminate)
  argv = sys.argv[1:] if argv is None else argv
  with closed_pipe_is_no_error():
    settings = flags.read(job.name, job.settings, job.text, argv)
    _log_plainly()
    cache_programs()
    try:
      extras.require(*job.needs)
      settings.connect()
      inputs = settings.inputs()
      folder = settings.folder(job.name, inputs)
      result = execute(settings, folder, job.run, inputs)
      if jax.process_index() == 0:
        job.show(result)
        if "report" in result:
          print(f"report: {folder / result['report']}")
      if result.get("diverged") is True:
        flags.refuse(job.name, "the model diverged: reduce --learning_rate")
    except BrokenPipeError:
      raise
    except devices.PeerLost as error:
      logging.debug("raised at", exc_info=True)
      print(f"{job.name}: {error}", file=sys.stderr, flush=True)
      # At a normal exit, JAX waits for the lost process and then aborts this one.
      os._exit(2)
    except (
      ValueError,
      OSError,
      MemoryError,
      extras.MissingPackage,
      devices.Stopped,
    ) as error:
      logging.debug("raised at", exc_info=True)
      flags.refuse(job.name, str(error) or "out of memory")
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      logging.debug("raised at", exc_info=True)
      flags.refuse(job.name, f"out of memory, {str(error).splitlines()[0]}")
    except Exception as error:
      if not files.of_a_bucket(error):
        raise
      logging.debug("raised at", exc_info=True)
      flags.refuse(job.name, f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as stopped:
      print(f"{job.name}: stopped; the same command resumes", file=sys.stderr)
      sys.exit(128 + (stopped.args or (signal.SIGINT,))[0])


def _terminate(number: int, frame: types.FrameType | None) -> NoReturn:
  """Stop in the same way as on Ctrl-C when a scheduler sends a signal."""
  del frame
  raise KeyboardInterrupt(number)


class Stages:
  """Log which stage of a long job begins, out of how many.

  Args:
    names: names of all stages, in order.
  """

  def __init__(self, *names: str):
    self._names = names

  def begin(self, name: str) -> None:
    """Log that a stage begins."""
    number = self._names.index(name) + 1
    logging.info("stage %d of %d: %s", number, len(self._names), name)


def _write_anything() -> None:
  """Escape characters that the encoding of the terminal lacks, instead of failing."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def closed_pipe_is_no_error():
  """End quietly if the reader of standard output, such as `head`, has closed it."""
  try:
    yield
    if sys.stdout is not None:
      sys.stdout.flush()
  except BrokenPipeError:
    # Discard buffered output, so that flushing it at exit does not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def execute(
  settings: JobSettings,
  folder: pathlib.Path,
  run: Callable,
  inputs: Mapping[str, str] | None = None,
) -> dict:
  """Run a job in its folder, or return the result of an earlier run.

  Writes config.json (flags, digests of the inputs, versions, devices, commit) before
  the run and result.json after it. Then config.json lists the files of the folder, so
  that a result is returned again only if it is complete and was computed from the same
  settings and inputs.

  Args:
    settings: settings of the job.
    folder: folder of the run.
    run: `(settings, folder) -> result`.
    inputs: result of `settings.inputs()`; None calls it.

  Raises:
    ValueError: if the folder holds a run with other settings or inputs, or its name
      cannot be read in this locale.
  """
  folder = files.path_of(folder, "folder")
  try:
    str(folder.absolute()).encode()
  except UnicodeEncodeError:
    raise ValueError(
      f"{str(folder.absolute())!r} is not readable in this locale: set PYTHONUTF8=1"
    ) from None
  config = dataclasses.asdict(settings)
  apart = (*NOT_HASHED, *settings.extendable)
  # Store only file names and no hosts, because run folders are shared with others.
  config = {name: _shown(value) for name, value in config.items()}
  places = {name: config.pop(name) for name in apart if name in config}
  places.pop("coordinator", None)
  config |= settings.inputs() if inputs is None else inputs
  path = folder / "config.json"
  noted = {"environment": {**places, **environment()}, _FINISHED: {}}
  fresh = devices.process0_first(
    lambda: signature.same_or_refuse(
      path, config, fix="Choose another --out.", noted=noted
    )
  )
  earlier = None if fresh else _earlier(folder)
  if earlier is not None and settings.finished(earlier):
    logging.info("finished before; delete %s to compute it again", folder / _RESULT)
    return earlier
  try:
    with devices.barrier("reported"):
      result = run(settings, folder)
  except Exception:
    made = {path.name for path in files.listed(folder, "*")}
    if fresh and made <= {path.name, "lock"}:
      files.remove(path)  # nothing was computed: a corrected command may use the folder
    raise
  if jax.process_index() == 0:  # only the first process writes
    files.write_json(folder / _RESULT, result)
    signature.same_or_refuse(path, config, fix="Choose another --out.", noted=noted)
    whole = reading.read_json(path, fix="run the command again")
    files.write_json(path, {**whole, _FINISHED: _digests(folder)})
    logging.info("wrote %s", folder / _RESULT)
  return result


def _earlier(folder: pathlib.Path) -> dict | None:
  """Return the result of a finished run if all of its files are intact, else None."""
  again = "it is computed again"
  finished = reading.read_json(folder / "config.json", fix=again).get(_FINISHED)
  if not isinstance(finished, dict) or _RESULT not in finished:
    return None
  now = _digests(folder)
  for name, digest in finished.items():
    if now.get(name) != digest:
      changed = "is missing" if name not in now else "was changed after it was written"
      logging.warning("%s %s; %s", folder / name, changed, again)
      return None
  return reading.read_json(folder / _RESULT, fix=again)


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Return the files that a job wrote, with digests of those that jobs read."""
  return {
    path.name: reading.digest_file(path, fix="")
    if path.suffix in (".json", ".npz")
    else ""
    for path in files.listed(folder, "*")
    if path.suffix in _LEFT and path.name not in _WORKING and path.is_file()
  }


def environment() -> dict:
  """Return the versions, devices and commit of this process."""
  packages = ("mixdef", "jax", "flax", "optax", "numpy")
  return {
    "versions": {name: flags.version(name) for name in packages},
    "python": sys.version.split()[0],
    "devices": [str(device) for device in jax.devices()],
    "commit": _commit(),
  }


def _commit() -> str:
  """Return the commit of mixdef's own repository, "" if this is not a clone."""
  git = ["git", "-C", str(pathlib.Path(__file__).parent)]
  own = [*git, "ls-files", "--error-unmatch", __file__]
  described = [*git, "describe", "--always", "--dirty"]
  try:
    # An installed package may lie inside the repository of another project.
    if subprocess.run(own, capture_output=True).returncode:
      return ""
    return subprocess.run(described, capture_output=True, text=True).stdout.strip()
  except OSError:
    return ""


def save_report(audit: auditing.Audit, folder: pathlib.Path) -> dict:
  """Save a report in the run folder, and return the content of result.json."""
  page, report = audit.save(folder), audit.report
  names = ["verdict", "strongest", "attacks", "not_run"]
  if report["generator"] is not None:
    names.insert(-1, "generator")
  return {
    "report": page.name,
    **{name: report[name] for name in names},
    **report["setting"],
  }


def provenance(seed: int) -> dict:
  """Return how a report was created: seed, environment, command and date.

  Args:
    seed: random seed of the run.
  """
  now = datetime.datetime.now(datetime.UTC)
  return {
    "seed": seed,
    **environment(),
    "command": _command(sys.argv),
    "date": now.strftime("%Y-%m-%d %H:%M UTC"),
  }


def _command(argv: Sequence[str]) -> str:
  """Return the command line as a shell reads it again.

  >>> _command(["/usr/bin/mixdef", "audit", "--defense=mixup|ema", "--out=/tmp/run"])
  "mixdef audit '--defense=mixup|ema' --out=/tmp/run"
  >>> _command(["/repository/mixdef/cli/__main__.py", "audit"])
  'python -m mixdef.cli audit'
  >>> _command(["experiments/audit.py", "--quick"])
  'python experiments/audit.py --quick'
  """
  program = pathlib.PurePath(argv[0])
  if program.name == "__main__.py":
    called = ["python", "-m", "mixdef.cli"]
  elif program.suffix == ".py":
    called = ["python", argv[0]]
  else:
    called = [program.stem]
  return shlex.join([*called, *argv[1:]])


def _shown(value: Any) -> Any:
  """Cut the paths in the text of a flag, or in `--name=text`, to their file names.

  >>> _shown("--audits=/home/someone/runs/none,runs/relaxloss/")
  '--audits=none,relaxloss'
  """
  if not isinstance(value, str):
    return value
  name, equals, text = value.rpartition("=") if value[:1] == "-" else ("", "", value)
  parts = text.split(",")
  parts = [pathlib.PurePath(part).name if "/" in part else part for part in parts]
  return name + equals + ",".join(parts)


def _log_plainly() -> None:
  """Show messages as plain lines, and only warnings of the dependencies."""
  if not absl_flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  handler = logging.get_absl_handler()
  handler.setFormatter(None)
  handler.addFilter(_worth_showing)


def _worth_showing(record) -> bool:
  return record.name == "absl" or record.levelno >= std_logging.WARNING


def cache_programs() -> None:
  """Keep compiled programs between runs, which saves seconds at every start.

  JAX_COMPILATION_CACHE_DIR takes precedence.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  folder = caches.folder("programs")
  if folder is not None:
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
