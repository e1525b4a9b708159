"""GANs for the tests of attacks: trained ones that leak, and made-up ones to recompute.

A made-up GAN has D_c(x, y) = tanh(x.w_c) + y.v_c and G(z, y) = sigmoid(z.a + y.b).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from generator_cases import plan_of

from mixdef.core.learner import Learner, TrainState
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.data import Dataset, subsets
from mixdef.learners import wgan_gp
from mixdef.models import table_networks
from mixdef.training import Ensemble, fit_many

CLASSES, LATENT = 2, 3


def coin_flips(count=64, columns=32, seed=0, **options):
  """Draw records with labels that mean nothing: all there is to know is memory."""
  rng = np.random.default_rng(seed)
  x = (rng.random((count, columns)) < 0.5).astype(np.float32)
  y = rng.integers(CLASSES, size=count)
  return Dataset.from_arrays(x, y, num_classes=CLASSES, **options)


def some_records(count=12, columns=5, seed=0, **options):
  """Draw records of which no two are equal."""
  rng = np.random.default_rng(seed)
  x = rng.random((count, columns), np.float32)
  y = rng.integers(CLASSES, size=count)
  return Dataset.from_arrays(x, y, num_classes=CLASSES, **options)


@functools.cache
def leaky():
  """Return eight GANs whose critics know random halves of the records by heart."""
  networks = table_networks(32, CLASSES, hidden=32, latent=8, conditional=True)
  learner = wgan_gp(networks, optax.adam(2e-3, b1=0.5, b2=0.999))
  data, members = coin_flips(), subsets(64, 8, seed=0)
  return fit_many(learner, data, members, epochs=200, batch_size=64, strategy="vmap")


def _scores(state, x, *, y=None, raw=False):
  del raw
  return jnp.tanh(x @ state.params["w"]) + y @ state.params["v"]


def _generate(state, z, y):
  return jax.nn.sigmoid(z @ state.params["a"] + y @ state.params["b"])


def _untrained(*_):
  raise AssertionError("a made-up GAN is not trained")


_MADE_UP = Learner(
  init=_untrained,
  step=_untrained,
  epoch=None,
  finish=None,
  predict=_scores,
  text="made up",
  generate=_generate,
  latent=LATENT,
  num_classes=CLASSES,
)


def made_up(models=6, critics=2, *, data=None, members=None, seed=0):
  """Return GANs with random parameters, which know nothing of their members."""
  data = some_records() if data is None else data
  members = subsets(data, models, seed=0) if members is None else members
  rng = np.random.default_rng(seed)
  columns = data.x.shape[1]
  shapes = {
    "w": (columns, critics),
    "v": (CLASSES, critics),
    "a": (LATENT, columns),
    "b": (CLASSES, columns),
  }
  params = {n: jnp.float32(rng.normal(size=(models, *s))) for n, s in shapes.items()}
  state = TrainState(params, {}, (), {}, jnp.zeros(models))
  own = _MADE_UP, {}, state, members, data
  return Ensemble(*own, plan_of(data), "loop", models, [])


def with_model(ensemble, model, change):
  """Return the ensemble with every parameter of one model changed."""
  params = {
    name: leaf.at[model].set(change(leaf[model]))
    for name, leaf in ensemble.states.params.items()
  }
  states = ensemble.states._replace(params=params)
  return dataclasses.replace(ensemble, held=states)


def losses_by_hand(ensemble, x, y, num_fakes):
  """Return D_c(x, y) and l_c(x), [S,B,C] each, of a made-up ensemble in numpy."""
  p = {name: np.float64(leaf) for name, leaf in ensemble.states.params.items()}
  keys = row_keys(fold_in_name(jax.random.key(0), "fakes"), jnp.arange(num_fakes))
  z = np.stack([jax.random.normal(key, (LATENT,)) for key in keys])
  scores, losses = [], []
  for s in range(len(ensemble)):

    def score(x, y, s=s):
      return np.tanh(x @ p["w"][s]) + y @ p["v"][s]

    fakes = [1 / (1 + np.exp(-(one @ p["a"][s] + y @ p["b"][s]))) for one in z]
    scores.append(score(x, y))
    losses.append(np.mean([score(fake, y) for fake in fakes], 0) - scores[-1])
  return np.stack(scores), np.stack(losses)


def log_ratio(value, inside, outside):
  """Log N(value; inside) - log N(value; outside), fits of maximum likelihood."""
  terms = [
    -np.log(np.std(side)) - (value - np.mean(side)) ** 2 / (2 * np.var(side))
    for side in (inside, outside)
  ]
  return terms[0] - terms[1]
