"""Small trainings, and their programs for a platform that this machine may lack."""

import dataclasses

import jax
import numpy as np
import optax

import mixdef
from mixdef import models
from mixdef.core.randomness import random_key
from mixdef.models import image_networks, table_networks
from mixdef.training.prepare import prepare
from mixdef.training.programs import programs

N, SHAPE, K = 24, (8, 8, 1), 3
_X = np.random.default_rng(0).random((N, *SHAPE)).astype(np.float32)
PICTURES = mixdef.Dataset.from_arrays(_X, np.arange(N) % K).with_auxiliary(6)
TABLE = mixdef.Dataset.from_arrays(_X.reshape(N, -1)[:, :6], np.arange(N) % K)
TOKENS = mixdef.Dataset.from_arrays(
  (8 * _X.reshape(N, -1)[:, :6]).astype(np.int32), np.arange(N) % K
).with_auxiliary(6)
ADAM = optax.adam(1e-3)


def classified(make, data, *sizes, **options):
  def learner(defense):
    return mixdef.classifier(make(*sizes, num_classes=K, **options), ADAM, defense)

  return learner, data


def generated(networks, data):
  return lambda defense: mixdef.wgan_gp(networks, ADAM, defense), data


# Name -> defense -> learner, and the records.
NETWORKS = {
  "mlp": classified(models.mlp, PICTURES, 4),
  "cnn": classified(models.cnn, PICTURES),
  "wide_resnet": classified(models.wide_resnet, PICTURES, 10, 1),
  "densenet": classified(models.densenet, PICTURES, 10, 4),
  "transformer": classified(models.transformer, TOKENS, 1, 8, 2, num_tokens=8),
  "wgan_gp on pictures": generated(
    image_networks(SHAPE, K, width=4, latent=3, norm="group"), PICTURES
  ),
  "wgan_gp on tables": generated(table_networks(6, K, hidden=4, latent=3), TABLE),
}
DEFENSES = {
  "none": None,
  "mixup": mixdef.mixup(1.0),
  "dp_sgd": mixdef.dp_sgd(),
  "dp_sgd by microbatches": mixdef.dp_sgd(estimator="microbatch", microbatch_size=2),
  "selena": mixdef.selena(3, non_models=1),
  "memguard": mixdef.memguard(steps=2, epochs=2),
  "weighted_smoothing": mixdef.weighted_smoothing(start=0),
}


def training_for(platform, learner, data, *, models=2, batch_size=6):
  """Return a training whose programs are for a platform."""
  members = np.tile(~data.auxiliary, (models, 1))
  keys = jax.random.split(random_key(0), models)
  sizes = {"epochs": 3, "batch_size": batch_size, "num_members": None}
  return placed(prepare(learner, {}, data, members, keys, **sizes), platform)


def placed(training, platform):
  """Return the training with the programs of another platform, the teachers' too."""
  return dataclasses.replace(
    training,
    plan=training.plan._replace(platform=platform),
    teachers=training.teachers and placed(training.teachers, platform),
  )


def called(training, strategy):
  """Return the programs of a training with the shapes they are called with, by name."""
  program = programs(training.source, training.plan, strategy)
  arguments = training.abstract(training.count)
  states, values, _, _, data, number, *_ = arguments
  rows = training.abstract_epoch(training.count)[2]
  keys, table, persons = jax.eval_shape(
    lambda: (training.keys, training.zero_table(), training.persons)
  )
  done = jax.eval_shape(program.finish, states, values, rows, data)
  asked = jax.ShapeDtypeStruct((5, *data.x.shape[1:]), data.x.dtype)
  found = {
    "init": (program.init, keys, table, values, data),
    "deal": (program.deal, states, values, rows, data, persons, number),
    "train": (program.train, *arguments),
    "finish": (program.finish, states, values, rows, data),
    "predict": (program.predict, done, values, asked),
  }
  if training.learner.epoch:
    found["epoch"] = program.epoch, states, values, rows, data, number
  if training.teachers:
    theirs = called(training.teachers, strategy)
    found |= {f"teachers' {name}": call for name, call in theirs.items()}
  return found
