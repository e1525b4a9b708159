"""One small ensemble that leaks, trained once for all tests of the audit."""

import optax
import pytest

from mixdef import models
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.learner import classifier
from mixdef.training import fit_many


@pytest.fixture(scope="session")
def memorised():
  """Return six models that know by heart random halves of 240 random labels."""
  data = synthetic_memorize(240, num_classes=4, num_test=240)
  learner = classifier(models.mlp(32, num_classes=4), optax.adam(1e-2))
  keep = subsets(6, len(data), seed=0)
  return fit_many(learner, data, keep, epochs=40, batch_size=32, strategy="vmap")
