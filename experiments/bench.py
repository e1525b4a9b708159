"""Time training and attacks of mixdef, as ratios of one interleaved run.

  python experiments/bench.py --suite=cpu

is `mixdef bench` (mixdef/cli/bench.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.bench import JOB

if __name__ == "__main__":
  job.main(JOB)
