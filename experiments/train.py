"""Train one classifier with a composed defense and report its accuracy and gap.

  python experiments/train.py --defense=adamixup

is `mixdef train` (mixdef/cli/train.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.train import JOB

if __name__ == "__main__":
  job.main(JOB)
