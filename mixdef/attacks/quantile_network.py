"""Quantile regression of the target's outputs on the records themselves."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from mixdef.attacks import _population
from mixdef.core import validate
from mixdef.core.check import checked, count, seed
from mixdef.core.hooks import weighted_mean
from mixdef.core.learner import Learner, TrainState
from mixdef.core.randomness import fold_in_name
from mixdef.data import Dataset, to_float
from mixdef.models.layers import conv_layer
from mixdef.training import fit

_FIT = 0.8  # of the population; the rest chooses the epoch
_LOWEST = np.log(0.01)  # of sigma, in units of the population's spread
_CLIP = 1.0
_LEAST = 20  # records of a population
_BLOCK = 512


class RecordNetwork(nn.Module):
  """Reads records flattened [B, D + 1], the label last; returns mu, log sigma [B, 2].

  Attributes:
    shape: shape of a record, [D], or [H, W] or [H, W, C] for images.
    num_classes: K.
  """

  shape: tuple[int, ...]
  num_classes: int

  @nn.compact
  def __call__(self, packed: jax.Array) -> jax.Array:
    """Return mu and log sigma [B, 2], in units of the population's spread."""
    label = jax.nn.one_hot(packed[:, -1].astype(jnp.int32), self.num_classes)
    x = packed[:, :-1]
    if len(self.shape) > 1:
      conv = conv_layer("auto", bias=True, standardize=False)
      channels = self.shape[2] if len(self.shape) > 2 else 1
      x = x.reshape(-1, *self.shape[:2], channels)
      for width, size in ((16, 5), (32, 3)):
        x = nn.leaky_relu(conv(width, size, 2)(x))
      x = x.reshape(len(packed), -1)
    x = jnp.concatenate([x, label], -1)
    for _ in range(2):
      x = nn.leaky_relu(nn.Dense(128)(x))
    mu, width = nn.Dense(2, kernel_init=nn.initializers.zeros)(x).T
    return jnp.stack([mu, _LOWEST + nn.softplus(width - _LOWEST)], -1)


@checked(epochs=count(), batch_size=count(), seed=seed)
def quantile_network(
  x: ArrayLike,
  y: ArrayLike,
  scores: ArrayLike,
  *,
  population: tuple[ArrayLike, ArrayLike, ArrayLike],
  epochs: int = 20,
  batch_size: int = 128,
  seed: int = 0,
) -> np.ndarray:
  """Score records by how far the target's output exceeds what their kind gets.

  A network predicts the distribution of the target's output s for a record that is not
  a member, from the record and its label. It is trained on a population that no model
  was trained on; no reference models are needed:

      (mu, log sigma)(x, y) = argmin sum_z log sigma + (s - mu)^2/(2 sigma^2)
      score = (s - mu(x, y))/sigma(x, y)

  The thresholds must come from a hold-out, which is scored as the members are and is
  not part of the population: on the records that it was trained on, the regressor gives
  another false-positive rate.

  Args:
    x: records [N, ...]: images [N,H,W] or [N,H,W,C] as uint8 or floats, or rows [N,D];
      members and hold-out together.
    y: labels int [N].
    scores: the target's hinge of the records [N] (or phi), finite.
    population: x, y and scores of records that are neither members nor hold-out. 80%
      train the network; the others choose its best epoch.
    epochs: passes over the population.
    batch_size: records per step.
    seed: random seed.

  Returns:
    Scores [N].

  Raises:
    ValueError: for arrays that do not fit together, fewer than 20 records in the
      population, or a population with records that are scored.

  Deviation: the official code fine-tunes a large pretrained network on images and
    boosted trees on tables, after a search of hyper-parameters [verified]; here a small
    network is trained from scratch: two strided convolutions (images) and two layers of
    128 units, AdamW at 1e-3 with gradients clipped at norm 1. The label is an input, as
    there. sigma is at least 1% of the population's spread [ours].

  Reference: Bertran, Tang, Kearns, Morgenstern, Roth, Wu, "Scalable Membership
    Inference Attacks via Quantile Regression", 2023, arXiv 2307.03694.
  """
  known = _arrays(*population, "population")
  asked = _arrays(x, y, scores, "records")
  if known[0].shape[1:] != asked[0].shape[1:] or known[0].dtype != asked[0].dtype:
    raise ValueError(
      f"the population holds records {known[0].dtype} {known[0].shape[1:]}, and the "
      f"records are {asked[0].dtype} {asked[0].shape[1:]}; prepare both alike"
    )
  if len(known[0]) < _LEAST:
    raise ValueError(
      f"the population has {len(known[0])} records; pass at least {_LEAST}"
    )
  _population.refuse_copies(
    *(_marks(asked), _marks(known), "the same values as audited records")
  )
  shape, classes = known[0].shape[1:], int(max(known[1].max(), asked[1].max())) + 1
  known_x, asked_x = _scaled(known[0], asked[0])
  centre, spread = known[2].mean(), known[2].std() or 1.0
  learner = _learner(RecordNetwork(shape, classes), (known[2] - centre) / spread)
  data = Dataset.from_arrays(_packed(known_x, known[1]), known[1], num_classes=classes)
  chosen = np.random.default_rng(seed).permutation(len(data)) < _FIT * len(data)
  run = fit(learner, data, chosen, epochs=epochs, batch_size=batch_size, seed=seed)
  mu, log_sigma = run.query(_output, _packed(asked_x, asked[1])).T.astype(np.float64)
  return ((asked[2] - centre) / spread - mu) * np.exp(-log_sigma)


def gaussian_loss(output: jax.Array, scores: jax.Array) -> jax.Array:
  """Return log sigma + (s - mu)^2/(2 sigma^2) [B] of mu and log sigma [B, 2].

  >>> mu, log_sigma = 3.0, np.log(1.870829)
  >>> output = jnp.tile(jnp.array([mu, log_sigma]), (4, 1))
  >>> round(float(gaussian_loss(output, jnp.array([1., 2., 3., 6.])).mean()), 5)
  1.12638
  """
  mu, log_sigma = output[:, 0], output[:, 1]
  return log_sigma + jnp.square((scores - mu) * jnp.exp(-log_sigma)) / 2


def _learner(network: RecordNetwork, scores: np.ndarray) -> Learner:
  """Return the learner of a network, which keeps the epoch that suits the others best.

  Args:
    network: returns mu and log sigma.
    scores: [Z] of the records of the data set.
  """
  targets = jnp.asarray(scores, jnp.float32)
  optimizer = optax.chain(
    optax.clip_by_global_norm(_CLIP), optax.adamw(1e-3, weight_decay=1e-4)
  )

  def init(key, spec):
    params = network.init(fold_in_name(key, "params"), spec.example)
    best = {"params": params, "loss": jnp.float32(jnp.inf)}
    return TrainState(params, {}, optimizer.init(params), best, key)

  def step(state, data, rows, ctx):
    del ctx

    def loss(params):
      output: Any = network.apply(params, data.x[rows.index])
      return weighted_mean(gaussian_loss(output, targets[rows.index]), rows.weight)

    value, grads = jax.value_and_grad(loss)(state.params)
    updates, opt = optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt=opt), {"loss": value}

  def epoch(state, data, members, ctx):
    del ctx

    def predict(record):
      return network.apply(state.params, record[None])[0]

    output = jax.lax.map(predict, data.x, batch_size=_BLOCK)
    losses = gaussian_loss(output, targets)
    found = {"params": state.params, "loss": weighted_mean(losses, ~members)}
    better = found["loss"] < state.defense["loss"]
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), found, state.defense)
    return state._replace(defense=best)

  def finish(state, data, members, ctx):
    del data, members, ctx
    return state._replace(params=state.defense["params"], defense={})

  def predict(state, x, *, raw=False):
    del raw
    return network.apply(state.params, x)

  return Learner(init, step, epoch, finish, predict, text="quantile network")


def _output(learner, state, x):
  return learner.predict(state, x)


def _arrays(x, y, scores, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return records, labels and scores, checked."""
  x = validate.inputs(x, f"x of the {name}")
  validate.quantities(x, "quantile_network")
  y = validate.labels(y, f"y of the {name}")
  scores = validate.numbers(scores, f"scores of the {name}").astype(np.float64)
  validate.lengths(x, y)
  if scores.shape != y.shape or not np.isfinite(scores).all():
    raise ValueError(
      f"scores of the {name} have shape {scores.shape} and "
      f"{int((~np.isfinite(scores)).sum())} values that are not finite; pass [{len(y)}]"
      " finite values, one per record"
    )
  if x.ndim not in (2, 3, 4):
    raise ValueError(
      f"x of the {name} has shape {x.shape}; pass rows [N,D], or images [N,H,W] or "
      "[N,H,W,C]"
    )
  return x, y, scores


def _scaled(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return both as float32; columns of a table are standardized by the population's."""
  if known.ndim > 2:
    return to_float(known), to_float(asked)
  known, asked = (part.astype(np.float32) for part in (known, asked))
  spread = known.std(0)
  spread[spread == 0] = 1
  return (known - known.mean(0)) / spread, (asked - known.mean(0)) / spread


def _packed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return float32 [N, D + 1], the records flattened and their labels."""
  return np.column_stack([x.reshape(len(x), -1), y]).astype(np.float32)


def _marks(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
  """Return a hash [N] of each record and its label."""
  x, y, _ = arrays
  rows = np.column_stack([x.reshape(len(x), -1), y]).astype(np.float32) + 0.0
  bits = rows.view(np.uint32).astype(np.uint64)
  odd = np.random.default_rng(0).integers(2**63, size=bits.shape[1], dtype=np.uint64)
  return (bits * (odd * 2 + 1)).sum(1, dtype=np.uint64)
