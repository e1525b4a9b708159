"""Accounting of tuned procedures: DP-SGD run several times, of which the best is kept.

The epsilon of a run does not cover the choice of its hyper-parameters on the same
records. A random number of runs makes the whole procedure private at a moderate price.
"""

import math

from absl import logging

from mixdef.core.check import check_number
from mixdef.defenses import accounting

LAWS = {"logarithmic": 0.0, "geometric": 1.0, "poisson": math.inf}
"""Laws of the number of runs K, each with its shape."""


def epsilon_of_selection(
  noise_multiplier: float,
  *,
  sampling_probability: float,
  steps: int,
  delta: float,
  mean: float,
  law: str | float = "geometric",
  bands: int = 1,
) -> float:
  """Return the epsilon of the best of K runs of DP-SGD, K drawn at random.

  It holds if K is drawn before any result is seen; every run draws its hyper-parameters
  afresh from one fixed distribution, as in random search and not in a grid, and has at
  least this noise, and at most this sampling probability and number of steps; only the
  winner is released; and the score that selects it is private as well, or computed on
  records of others. A validation on the members is not free.

  Args:
    noise_multiplier: of every run, the smallest if it is tuned, > 0.
    sampling_probability: probability that a record is in a batch, in (0, 1].
    steps: number of noisy steps of a run, >= 1.
    delta: in (0, 1).
    mean: mean of K, >= 1.
    law: "geometric"; "logarithmic", the cheapest; "poisson", where K may be 0 and
      nothing is released; or the shape > 0 of a truncated negative binomial law, of
      which 1 is geometric.
    bands: as in `accounting.spent`.

  Returns:
    The epsilon, from Renyi divergences; no tighter accountant is available.

  Raises:
    ValueError: for an argument outside its range.

  Reference: Papernot & Steinke, "Hyperparameter Tuning with Renyi Differential
    Privacy", 2021, arXiv 2110.03620.

  >>> config = dict(sampling_probability=0.01, steps=1000, delta=1e-5)
  >>> round(epsilon_of_selection(1.0, **config, mean=10), 2)  # 2.10 for a single run
  4.1
  """
  check_number("noise_multiplier", noise_multiplier, above=0)
  probability, times = accounting.draws(sampling_probability, steps, bands)
  check_number("delta", delta, above=0, below=1)
  check_number("mean", mean, 1)
  if isinstance(law, str) and law not in LAWS:
    raise ValueError(f"law={law!r}: pass a shape > 0, or one of {', '.join(LAWS)}")
  shape = LAWS[law] if isinstance(law, str) else law
  check_number("law", shape, 0, high=math.inf)
  import dp_accounting  # slow to import
  from dp_accounting.rdp import RdpAccountant

  step = dp_accounting.PoissonSampledDpEvent(
    probability, dp_accounting.GaussianDpEvent(noise_multiplier)
  )
  run = dp_accounting.SelfComposedDpEvent(step, times)
  tuned = dp_accounting.dp_event.RepeatAndSelectDpEvent(run, float(mean), shape)
  accountant = RdpAccountant()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # it warns about every order it omits
  try:
    return float(accountant.compose(tuned).get_epsilon(delta))
  finally:
    logging.set_verbosity(verbosity)
