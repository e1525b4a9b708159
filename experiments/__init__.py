"""The jobs: `python -m experiments.train` is `python experiments/train.py`."""

import pathlib
import sys

# A job finds its siblings by their bare names, as a script does.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
