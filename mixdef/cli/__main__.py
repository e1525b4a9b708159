"""The command `mixdef JOB --flag=...`, also as `python -m mixdef.cli JOB`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from mixdef.cli import flags, job

JOBS = ("train", "lira", "audit", "gan", "sweep", "compare", "bench")


def main(argv: Sequence[str] | None = None) -> None:
  """Run the job named by the first argument; exit with status 2 for an unknown name.

  Args:
    argv: arguments without the program; None reads them from the command line.
  """
  name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
  if name in JOBS:
    job.main(_job(name), rest)
  elif name.lstrip("-") in flags.HELP_FLAGS:
    with job.closed_pipe_is_no_error():
      print(_overview())
  elif name == "--version":
    print(f"mixdef {flags.version('mixdef')}")
  else:
    near = difflib.get_close_matches(name, JOBS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(JOBS)}"
    flags.refuse("mixdef", f"{name!r} is not a job; {hint}")


def _job(name: str) -> job.Job:
  return importlib.import_module(f"mixdef.cli.{name}").JOB


def _overview() -> str:
  lines = ["usage: mixdef JOB --flag=value ...", ""]
  lines += [f"  {name:9}{_job(name).text.splitlines()[0]}" for name in JOBS]
  return "\n".join([*lines, "", "mixdef JOB --help lists the flags of a job."])


if __name__ == "__main__":
  main()
