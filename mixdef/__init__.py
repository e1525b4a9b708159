"""Know, and reduce, what a trained model leaks about its training records."""

from mixdef import attacks, audit, data, defenses, models
from mixdef.data import Dataset, load, splits, subsets
from mixdef.defense import Defense, Stage, chain, defense, from_optax
from mixdef.defenses import *  # noqa: F403 -- every defense is a public name
from mixdef.learner import Learner, classifier
from mixdef.parse import parse
from mixdef.training import Ensemble, Run, fit, fit_many
