"""Training: one model with `fit`, S of them with `fit_many`."""

from mixdef.training.ensemble import Ensemble, Run
from mixdef.training.fitting import fit, fit_many

__all__ = ["Ensemble", "Run", "fit", "fit_many"]
