"""Training of one model with `fit` and of S models with `fit_many`."""

from mixdef.training.ensemble import Ensemble, Run
from mixdef.training.fitting import fit, fit_many

__all__ = ["Ensemble", "Run", "fit", "fit_many"]
