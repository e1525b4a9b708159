"""Account for DP-SGD without training: epsilon, or the noise that a budget needs.

  mixdef epsilon --num_members=60000 --batch_size=256 --epochs=60 --noise_multiplier=1.1

prints the epsilon at --delta, and the largest true-positive rate that any attack on a
record can have. --epsilon=8 or --max_tpr=0.05@0.01 (TPR@FPR) prints the noise
multiplier that keeps to this budget instead.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any

from etils import epy

from mixdef.cli import flags

with epy.lazy_imports():
  from mixdef.defenses import accounting

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
    if not 0 < self.delta < 1 / self.num_members:
      raise ValueError(
        f"--delta={self.delta:g}: pass less than 1/num_members, "
        f"{1 / self.num_members:.2g}"
      )

  @property
  def training(self) -> dict[str, Any]:
    """The sampling probability and the number of steps, as `fit` draws batches."""
    return {
      "sampling_probability": min(1.0, self.batch_size / self.num_members),
      "steps": self.epochs * -(-self.num_members // self.batch_size),
    }

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
  pld = "not computed" if math.isinf(spent.pld) else f"{spent.pld:.4g}"
  return [
    f"noise multiplier {noise:.5g}, {training['steps']:,} steps, Poisson batches of "
    f"{settings.batch_size:,} of {settings.num_members:,} records on average",
    f"epsilon {spent.epsilon:.4g} at delta {settings.delta:g} (privacy-loss "
    f"distribution {pld}, Renyi {spent.rdp:.4g})",
    f"largest TPR of any attack on a record: {caps}",
    "one training, for one record added or removed; choices tuned on the same records "
    "are not covered",
  ]


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
