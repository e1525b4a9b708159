"""Train generative models, attack them, and report their leakage and utility.

  python experiments/gan.py --defense=mixup --num_shadows=16

is `mixdef gan` (mixdef/cli/gan.py); --help lists the flags.
"""

from mixdef.cli import job
from mixdef.cli.gan import JOB

if __name__ == "__main__":
  job.main(JOB)
