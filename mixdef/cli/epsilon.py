"""Account for DP-SGD without training: epsilon, or the noise that a budget needs.

  mixdef epsilon --num_members=60000 --batch_size=256 --epochs=60 --noise_multiplier=1.1

prints the epsilon at --delta, and the largest true-positive rate that any attack on a
record can have. --epsilon=8 or --max_tpr=0.05@0.01 (TPR@FPR) prints the noise
multiplier that keeps to this budget instead. --bands=8 is for dp_sgd(bands=8), and
--bands=0 with an epsilon chooses the number of bands. --tuned=geometric:10 adds the
epsilon of the best of K such trainings, for a random number K with mean 10.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

from etils import epy

from mixdef.cli import flags

with epy.lazy_imports():
  from mixdef.defenses import accounting, correlated_noise, selection

TEXT = __doc__
_FPRS = (0.001, 0.01, 0.1)


@dataclasses.dataclass(frozen=True)
class EpsilonSettings:
  """The training, and its noise or its budget."""

  num_members: int = 0
  batch_size: int = 128
  epochs: int = 0
  delta: float = 1e-5
  noise_multiplier: float = 0.0
  epsilon: float = 0.0
  max_tpr: str = ""
  tuned: str = ""
  bands: int = 1

  def __post_init__(self):
    """Check the flags."""
    for field in dataclasses.fields(self):
      if (value := getattr(self, field.name)) != field.default:
        flags.check(field.name, value, type(field.default))
    for name in ("num_members", "batch_size", "epochs"):
      if getattr(self, name) < 1:
        raise ValueError(f"pass --{name}=NUMBER, at least 1")
    budgets = [bool(self.noise_multiplier), bool(self.epsilon), bool(self.max_tpr)]
    if sum(budgets) != 1:
      raise ValueError(
        "pass one of --noise_multiplier=1.0, --epsilon=8 and --max_tpr=0.05@0.01"
      )
    if not (self.bands or self.epsilon):
      raise ValueError("--bands=0 chooses the bands for an epsilon: pass --epsilon=8")
    if not 0 < self.delta < 1 / self.num_members:
      raise ValueError(
        f"--delta={self.delta:g}: pass less than 1/num_members, "
        f"{1 / self.num_members:.2g}"
      )
    if self.tuned:
      self.runs  # noqa: B018  it raises for a wrong text

  @property
  def runs(self) -> tuple[str | float, float]:
    """The law and the mean of the number of trainings, from "geometric:10"."""
    law, _, mean = self.tuned.partition(":")
    try:
      found = law if law in selection.LAWS else float(law), float(mean)
    except ValueError:
      found = "", 0.0
    if not 1 <= found[1] < math.inf:
      raise ValueError(
        f"--tuned={self.tuned}: pass LAW:MEAN, as geometric:10; a law is "
        f"{', '.join(selection.LAWS)} or the shape of a negative binomial law"
      )
    return found

  @functools.cached_property
  def training(self) -> dict[str, Any]:
    """Sampling probability, steps and bands, as `fit` draws batches."""
    training = {
      "sampling_probability": min(1.0, self.batch_size / self.num_members),
      "steps": self.epochs * -(-self.num_members // self.batch_size),
    }
    best = correlated_noise.best_bands
    bands = self.bands or best(self.epsilon, **training, delta=self.delta)
    return {**training, "bands": bands}

  @property
  def noise(self) -> float:
    """The noise multiplier, calibrated if a budget is given."""
    if self.noise_multiplier:
      return self.noise_multiplier
    if self.epsilon:
      return accounting.noise_multiplier(
        self.epsilon, **self.training, delta=self.delta
      )
    rates = flags.rate_at("max_tpr", self.max_tpr)
    return accounting.noise_for_tpr(*rates, **self.training)


def answer(settings: EpsilonSettings) -> list[str]:
  """Return the lines that answer the question.

  Args:
    settings: the training, and its noise or its budget.

  Raises:
    ValueError: for a budget that no noise meets.
  """
  noise, training = settings.noise, settings.training
  spent = accounting.spent(noise, **training, delta=settings.delta)
  rates = accounting.largest_tpr(_FPRS, noise, **training)
  caps = ", ".join(
    f"{100 * rate:.3g}% at an FPR of {100 * fpr:g}%"
    for rate, fpr in zip(rates, _FPRS, strict=True)
  )
  bands = training["bands"]
  banded = f" in {bands} bands" if bands > 1 else ""
  sampling = "cyclic Poisson" if bands > 1 else "Poisson"
  pld = "not computed" if math.isinf(spent.pld) else f"{spent.pld:.4g}"
  lines = [
    f"noise multiplier {noise:.5g}{banded}, {training['steps']:,} steps, {sampling} "
    f"batches of {settings.batch_size:,} of {settings.num_members:,} records on "
    "average",
    f"epsilon {spent.epsilon:.4g} at delta {settings.delta:g} (privacy-loss "
    f"distribution {pld}, Renyi {spent.rdp:.4g})",
    f"largest TPR of any attack on a record: {caps}",
    "one training, for one record added or removed; choices tuned on the same records "
    "are not covered",
  ]
  if settings.tuned:
    law, mean = settings.runs
    tuned = selection.epsilon_of_selection(
      noise, **training, delta=settings.delta, law=law, mean=mean
    )
    name = law if isinstance(law, str) else f"negative binomial ({law:g})"
    lines.append(
      f"epsilon {tuned:.4g} (Renyi) of the best of K such trainings, K {name} with "
      f"mean {mean:g}, if K is drawn first, every training draws its settings afresh "
      "from one distribution, and the score does not read the members"
    )
  return lines


def main(argv: Sequence[str] | None = None) -> None:
  """Print the answer; exit with status 2 on errors."""
  settings = flags.read(
    "epsilon", EpsilonSettings, TEXT, sys.argv[1:] if argv is None else argv
  )
  try:
    lines = answer(settings)
  except ValueError as error:
    flags.refuse("epsilon", str(error))
  print("\n".join(lines))
