"""Reconstruction attacks: how well a generator can reproduce a record (GAN-Leaks).

A member's latent is easier to find, and its reconstruction is closer.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._querying import records_to_query
from mixdef.attacks.gan import _latent_search
from mixdef.attacks.gan._latent_search import Met
from mixdef.attacks.gan._sampling import conditions, refuse_diverged
from mixdef.core.check import checked, count, number, one_of, optional, seed
from mixdef.core.randomness import fold_in_name, hash_rows, random_key, row_keys
from mixdef.core.registry import attack
from mixdef.data import to_float
from mixdef.training import Ensemble, Run

_AT_ONCE = 64  # records searched side by side
OPTIMIZERS = ("adam", "lbfgs", "evolution")


class Perceptual(NamedTuple):
  """A distance of images to add to the mean squared error, such as LPIPS.

  Attributes:
    distance: `(x [B,...], g [B,...]) -> [B]`, differentiable and traced.
    weight: weight of the distance; 0.2 in the official code.
    low: the value that the distance expects for black, or 0.
    high: the value that the distance expects for white, or 1; networks for LPIPS are
      trained on [-1,1].
  """

  distance: Callable[[jax.Array, jax.Array], jax.Array]
  weight: float = 0.2
  low: float = -1.0
  high: float = 1.0


class _Search(NamedTuple):
  """Settings of the latent search; hashable, so programs are cached by it."""

  optimizer: str
  steps: int
  restarts: int
  norm_penalty: float
  perceptual: Perceptual | None
  seed: int


@attack(family="generator", reads="models", of="generators")
@checked(
  optimizer=one_of("adam", "lbfgs"),
  steps=optional(count()),
  restarts=count(),
  norm_penalty=number(0),
  seed=seed,
)
def gan_leaks_white_box(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  optimizer: str = "adam",
  steps: int | None = None,
  restarts: int = 1,
  norm_penalty: float = 0.0,
  perceptual: Perceptual | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Score a record by the negated loss of the best reconstruction found by descent.

      score = -l(x, G(z*, y)),   l = mean (x - g)^2 [+ w d(x, g)]
      z*    = argmin_z l(x, G(z, y)) + a (||z||^2 - L)^2,   from z ~ N(0, I)

  with the record's own label y. The search runs separately for each record.

  Args:
    ensemble: S trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    optimizer: "adam", or "lbfgs" with a zoom line search.
    steps: number of gradients of Adam (default 1,000) or iterations of L-BFGS (default
      100).
    restarts: number of searches per record; the one with the lowest objective is used.
    norm_penalty: a >= 0, which keeps z where the prior has its mass; it is never part
      of the score. 0.001 in the official code, whose squared errors are four times
      ours.
    perceptual: a distance d to add; None is the official option "l2".
    seed: random seed of the starts; a record's starts depend on its content and on
      nothing else.

  Returns:
    Scores float64 [N], at most 0; NaN where not attacked.

  Raises:
    ValueError: for an option out of range, or a model that diverged.

  Deviation: the default is Adam with a decaying learning rate; the official code
    optimizes all latents of a batch by a single L-BFGS with a common stopping rule,
    starts all from one draw and drops the last records. The perceptual distance is
    omitted because it needs the weights of a VGG network.

  Reference: Chen, Yu, Zhang, Fritz, "GAN-Leaks: A Taxonomy of Membership Inference
    Attacks against Generative Models", 2020, arXiv 1909.03935.
  """
  rows = records_to_query(ensemble, target, records)
  how = _search(optimizer, steps, restarts, norm_penalty, perceptual, seed)
  return _scores(ensemble, target, rows, how)


@attack(family="generator", reads="models", of="generators")
@checked(steps=count(), restarts=count(), norm_penalty=number(0), seed=seed)
def gan_leaks_partial_black_box(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  steps: int = 300,
  restarts: int = 1,
  norm_penalty: float = 0.0,
  perceptual: Perceptual | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Score a record by its best reconstruction, searched without gradients.

  This is the score of `gan_leaks_white_box` for an attacker who may choose latents and
  sees the generated samples: 16 samples per step.

  Args:
    ensemble: S trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    steps: number of generations of the evolution.
    restarts: number of searches per record; the one with the lowest objective is used.
    norm_penalty: see `gan_leaks_white_box`.
    perceptual: see `gan_leaks_white_box`.
    seed: random seed; a record's random numbers depend on its content and on nothing
      else.

  Returns:
    Scores float64 [N], at most 0; NaN where not attacked.

  Raises:
    ValueError: for an option out of range, or a model that diverged.

  Deviation: the search is a separable CMA-ES initialized at the prior, for all records
    in parallel; the official code uses 10 iterations of Powell's method, one record at
    a time.

  Reference: Chen, Yu, Zhang, Fritz, "GAN-Leaks: A Taxonomy of Membership Inference
    Attacks against Generative Models", 2020, arXiv 1909.03935.
  """
  rows = records_to_query(ensemble, target, records)
  how = _search("evolution", steps, restarts, norm_penalty, perceptual, seed)
  return _scores(ensemble, target, rows, how)


@checked(
  optimizer=one_of(*OPTIMIZERS),
  steps=optional(count()),
  restarts=count(),
  norm_penalty=number(0),
  seed=seed,
)
def reconstruction_losses(
  ensemble: Ensemble,
  records: ArrayLike | None = None,
  *,
  optimizer: str = "adam",
  steps: int | None = None,
  restarts: int = 1,
  norm_penalty: float = 0.0,
  perceptual: Perceptual | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Return every model's reconstruction losses of records, for LiRA and calibration.

  Args:
    ensemble: S trained GANs.
    records: int [R]; default all audited ones.
    optimizer: "adam", "lbfgs" or "evolution" (no gradients).
    steps: see `gan_leaks_white_box`; generations of "evolution" (default 300).
    restarts: see `gan_leaks_white_box`.
    norm_penalty: see `gan_leaks_white_box`.
    perceptual: see `gan_leaks_white_box`.
    seed: random seed of the starts, the same for all models.

  Returns:
    float64 [S,R].

  Raises:
    ValueError: for an option out of range, or a model that diverged.
  """
  how = _search(optimizer, steps, restarts, norm_penalty, perceptual, seed)
  rows = records_to_query(ensemble, 0, records)
  return np.stack([_losses(ensemble[s], rows, how) for s in range(len(ensemble))])


def _search(optimizer, steps, restarts, norm_penalty, perceptual, seed):
  """Fill in the optimizer's default number of steps."""
  usual = {"adam": 1000, "lbfgs": 100, "evolution": 300}
  steps = usual[optimizer] if steps is None else steps
  return _Search(optimizer, steps, restarts, norm_penalty, perceptual, seed)


def _scores(ensemble, target, rows, how):
  scores = np.full(len(ensemble.data), np.nan)
  scores[rows] = -_losses(ensemble[target], rows, how)
  return scores


def _losses(run: Run, rows, how):
  data = run.data
  y = conditions(run, data.y[rows])
  losses = run.query(_query_fn(how), to_float(data.x[rows]), y, size=_AT_ONCE)
  return refuse_diverged(losses).astype(np.float64)


@functools.lru_cache(maxsize=32)
def _query_fn(how: _Search) -> Callable:
  """Make the query to a model: x [B,...], y [B,K] -> losses [B] found by searching.

  This is cached, because a query that is the same object reuses its compiled program.
  """

  def query(learner: Any, state, x, y):
    latent = learner.latent
    keys = row_keys(fold_in_name(random_key(how.seed), "latents"), hash_rows(x))
    tries = jax.vmap(lambda key: jax.random.split(key, how.restarts))(keys).ravel()

    def loss(z, rows):
      x, y = rows
      made = learner.generate(state, z, y)
      found = jnp.square(x - made).reshape(len(z), -1).mean(1)
      if how.perceptual:
        scale = how.perceptual.high - how.perceptual.low
        pictures = (how.perceptual.low + scale * each for each in (x, made))
        found += how.perceptual.weight * how.perceptual.distance(*pictures)
      off = jnp.square(z).sum(1) - latent
      return found + how.norm_penalty * jnp.square(off), found

    def repeated(count):
      return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), (x, y))

    rows = repeated(how.restarts)
    z = jax.vmap(lambda key: jax.random.normal(key, (latent,)))(tries)
    if how.optimizer == "adam":
      met = _latent_search.adam(lambda z: loss(z, rows), z, steps=how.steps)
    elif how.optimizer == "lbfgs":
      met = _latent_search.lbfgs(loss, z, rows, steps=how.steps)
    else:
      many = repeated(how.restarts * _latent_search.POPULATION)
      # Start at the mean of the prior: the first generation are samples of the prior.
      mean = jnp.zeros_like(z)
      met = _latent_search.evolve(lambda z: loss(z, many), mean, tries, steps=how.steps)
    by_record = Met(*(leaf.reshape(len(x), how.restarts) for leaf in met))
    return _latent_search.lowest(by_record).reconstruction

  return query
