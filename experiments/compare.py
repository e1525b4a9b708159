"""Put several audits in one table and one plot of accuracy against leakage.

  python experiments/compare.py --audits=runs/none,runs/relaxloss

is `mixdef compare` (mixdef/cli/compare.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.compare import JOB

if __name__ == "__main__":
  job.main(JOB)
