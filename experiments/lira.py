"""Train shadow models, attack each using the others, and report their leakage.

  python experiments/lira.py --defense=adamixup --num_shadows=16

is `mixdef lira` (mixdef/cli/lira.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.lira import JOB

if __name__ == "__main__":
  job.main(JOB)
