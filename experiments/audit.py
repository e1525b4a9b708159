"""Audit a defense: shadow models, all attacks, canaries, and a report of the risk.

  python experiments/audit.py --dataset=digits --quick

is `mixdef audit` (mixdef/cli/audit.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.audit import JOB

if __name__ == "__main__":
  job.main(JOB)
