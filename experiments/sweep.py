"""Compare a grid of defenses on the same records: one table and one plot.

  python experiments/sweep.py --defenses="none; relaxloss([0.5, 1.0])"

is `mixdef sweep` (mixdef/cli/sweep.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.sweep import JOB

if __name__ == "__main__":
  job.main(JOB)
