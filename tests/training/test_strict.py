"""Programs under the strict settings that projects turn on: traced, never compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import CLASSIFIERS

import mixdef
from mixdef import models
from mixdef.core.parsing import parse
from mixdef.core.randomness import random_key
from mixdef.models import table_networks
from mixdef.training.prepare import prepare
from mixdef.training.programs import programs

N, SHAPE, K = 24, (6, 6, 1), 3
X = np.random.default_rng(0).random((N, *SHAPE)).astype(np.float32)
PICTURES = mixdef.Dataset.from_arrays(X, np.arange(N) % K).with_auxiliary(6)
TABLE = mixdef.Dataset.from_arrays(X.reshape(N, -1), np.arange(N) % K)
ADAM = optax.adam(1e-3)
FIELDS = ("group_norm", "spatial_dropout", "weight_standardization")


def trace(learner, data):
  """Trace a whole training and its answers."""
  keys = random_key(0)[None]
  members = ~data.auxiliary[None]
  sizes = {"epochs": 3, "batch_size": 6, "num_members": None}
  training = prepare(learner, {}, data, members, keys, **sizes)
  program = programs(learner, training.plan, "vmap")
  states, values, rows, device, number = training.abstract_epoch(1)
  jax.eval_shape(program.train, *training.abstract(1))
  if learner.epoch:
    jax.eval_shape(program.epoch, states, values, rows, device, number)
  done = jax.eval_shape(program.finish, states, values, rows, device)
  asked = jax.ShapeDtypeStruct((5, *data.x.shape[1:]), device.x.dtype)
  jax.eval_shape(program.predict, done, values, asked)


def defended(name):
  model = models.mlp(4, num_classes=K)
  if name in FIELDS:
    model = models.resnet(8, num_classes=K)
  return mixdef.classifier(model, ADAM, parse(name))


def networks():
  return table_networks(X[0].size, K)


LEARNERS = {
  "cnn": lambda: mixdef.classifier(models.cnn(num_classes=K), ADAM),
  "densenet": lambda: mixdef.classifier(models.densenet(num_classes=K), ADAM),
  "batch norm": lambda: mixdef.classifier(
    models.resnet(8, num_classes=K, norm="batch"), ADAM
  ),
  "microbatch": lambda: mixdef.classifier(
    models.mlp(4, num_classes=K), ADAM, microbatch=2
  ),
  "dp cnn": lambda: mixdef.classifier(models.cnn(num_classes=K), ADAM, mixdef.dp_sgd()),
  "model_stacking": lambda: mixdef.model_stacking(
    (models.mlp(4, num_classes=K), models.mlp(5, num_classes=K)), ADAM
  ),
  "ban_mpr": lambda: mixdef.ban_mpr(
    models.mlp(4, num_classes=K), ADAM, experimental=True
  ),
}
GANS = {
  "wgan_gp": lambda: mixdef.wgan_gp(networks()),
  "dp wgan_gp": lambda: mixdef.wgan_gp(networks(), defense=mixdef.dp_sgd()),
  "mixup_gan": lambda: mixdef.mixup_gan(networks()),
  "par_gan": lambda: mixdef.par_gan(networks(), critics=2),
  **{
    name: functools.partial(
      lambda make, **options: make(networks(), **options),
      mixdef.learners.GANS[name],
      **options,
    )
    for name, options in {
      "gs_wgan": {"critics": 2},
      "priv_gan": {"pairs": 2, "pretrain_epochs": 1, "dp_delay": 1},
    }.items()
  },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSIFIERS, *LEARNERS])
def test_classifiers_promote_no_rank(name):
  with jax.numpy_rank_promotion("raise"):
    trace(LEARNERS[name]() if name in LEARNERS else defended(name), PICTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", GANS)
def test_gans_promote_no_rank(name):
  with jax.numpy_rank_promotion("raise"):
    trace(GANS[name](), TABLE)


def test_the_control_promotes():
  with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank"):
    jax.eval_shape(lambda: jnp.ones((2, 3)) + jnp.ones(3))
