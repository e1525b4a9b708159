"""Audit one trained model before its release: who can be found, and how sure that is.

  python experiments/release.py --run=runs/mine

is `mixdef release` (mixdef/cli/release.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.release import JOB

if __name__ == "__main__":
  job.main(JOB)
