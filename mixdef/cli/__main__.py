"""The command `mixdef JOB --flag=...`, also as `python -m mixdef.cli JOB`."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mixdef.cli import flags, job

JOBS = ("train", "lira", "audit", "release", "gan", "sweep", "compare", "bench")
CHECKS = ("gate", "verify", "epsilon")
"""Commands without a run folder."""


def main(argv: Sequence[str] | None = None) -> None:
  """Run the job named by the first argument; exit with status 2 for an unknown name.

  Args:
    argv: arguments without the program; None reads them from the command line.
  """
  name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
  if name in JOBS:
    job.main(_job(name), rest)
  elif name in CHECKS:
    _module(name).main(rest)
  elif name.lstrip("-") in flags.HELP_FLAGS:
    with job.closed_pipe_is_no_error():
      print(_overview())
  elif name == "--version":
    print(f"mixdef {flags.version('mixdef')}")
  else:
    every = (*JOBS, *CHECKS)
    near = difflib.get_close_matches(name, every, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(every)}"
    flags.refuse("mixdef", f"{name!r} is not a job; {hint}")


def _module(name: str) -> Any:
  return importlib.import_module(f"mixdef.cli.{name}")


def _job(name: str) -> job.Job:
  return _module(name).JOB


def _overview() -> str:
  lines = ["usage: mixdef JOB --flag=value ...", ""]
  texts = {name: _job(name).text for name in JOBS}
  texts |= {name: _module(name).TEXT for name in CHECKS}
  lines += [f"  {name:9}{text.splitlines()[0]}" for name, text in texts.items()]
  return "\n".join([*lines, "", "mixdef JOB --help lists the flags of a job."])


if __name__ == "__main__":
  main()
