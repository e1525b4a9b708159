"""Ensembles for the attacks that move records: linear ones, and overfitted ones."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from mixdef import models
from mixdef.data import Dataset, subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses.release import confidence_masking
from mixdef.learners.classifier import classifier
from mixdef.training import fit_many


class Dense(nn.Module):
  classes: int = 2

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


@functools.cache
def learner_of(classes, masked):
  """One object a kind, so that programs are compiled once."""
  defense = confidence_masking() if masked else None
  return classifier(Dense(classes), optax.sgd(0.1), defense)


def linear(x, y, kernel, bias=0.0, masked=False):
  """Two models whose logits are x @ kernel + bias."""
  data = Dataset.from_arrays(np.asarray(x), y, num_classes=np.shape(kernel)[1])
  learner = learner_of(data.num_classes, masked)
  members = np.arange(2 * len(data)).reshape(2, -1) % 2 == 0
  ensemble = fit_many(learner, data, members, epochs=1, strategy="loop")
  weights = {
    "kernel": jnp.tile(jnp.float32(kernel), (2, 1, 1)),
    "bias": jnp.tile(jnp.broadcast_to(jnp.float32(bias), (data.num_classes,)), (2, 1)),
  }
  states = ensemble.states._replace(params={"Dense_0": weights})
  return dataclasses.replace(ensemble, held=states)


@functools.cache
def overfitted(records=160, count=2, defense=None):
  """Models of random labels: they know their members by heart."""
  data = synthetic_memorize(records, num_features=20, num_classes=4, num_test=2)
  learner = classifier(models.mlp(64, num_classes=4), optax.adam(1e-2), defense)
  members = subsets(records, count, seed=0)
  return fit_many(learner, data, members, epochs=25, batch_size=32, strategy="vmap")


def leak(scores, member):
  """AUC by counting pairs; ties, infinite ones too, count one half."""
  ahead = scores[member][:, None], scores[~member][None]
  return float(np.mean((ahead[0] > ahead[1]) + 0.5 * (ahead[0] == ahead[1])))
