"""HopSkipJump: the distance of a record to the decision boundary, from labels only."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._perturbing import refuse_nan, score_in_blocks, valid_range
from mixdef.attacks._querying import records_to_query
from mixdef.attacks._targets import Unavailable
from mixdef.core import validate
from mixdef.core.check import checked, count, flag, seed
from mixdef.core.randomness import hash_rows, random_key, row_keys, stream
from mixdef.core.registry import attack
from mixdef.data import to_float
from mixdef.training import Ensemble, Run

_NOISE = 64  # uniform points to start from, in addition to the records
_HALVINGS = 20  # halvings of a step that does not stay beyond the boundary
_RESOLUTION = 1e-3  # of the searches, where the paper's d^-3/2 is coarser


@attack(family="label_only", reads="models")
@checked(iterations=count(), draws=count(2), seed=seed, progress=flag)
def label_only_boundary(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  iterations: int = 20,
  draws: int = 100,
  seed: int = 0,
  progress: bool = False,
) -> np.ndarray:
  """Score a record by its L2 distance to the region where its label is not predicted.

  HopSkipJump. From a point x~ beyond the boundary, for t = 1..T:

      x_t = bisection between x~ and x,               d_t = ||x_t - x||
      v_t = sum_b (s_b - mean s) u_b,                 b = 1..B_t = B_0 sqrt(t)
      s_b = +1 if argmax f(x_t + delta_t u_b) != y else -1,     delta_t = d_t / D
      x~  = x_t + xi v_t / ||v_t||,                   xi = d_t / sqrt(t), halved until
                                                      x~ is beyond the boundary

  with u_b uniform on the unit sphere of the D inputs; where all s_b agree, v_t is their
  sign times the mean of u_b. Probes are clipped to the valid range. The score is the
  smallest distance found, 0 if the record is misclassified, or +inf if no point with
  another label is known. Only labels of the released model are read, so defenses that
  change confidences but keep labels have no effect.

  Args:
    ensemble: S trained models.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    iterations: T >= 1.
    draws: B_0 >= 2. A record costs about 2/3 T^1.5 B_0 queries for the gradients and
      1.5 T log2 D for the searches: 6,500 at the defaults for D = 64.
    seed: random seed; a record's random numbers depend on its content and on nothing
      else.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    Distances float64 [N] in units of the inputs as the network reads them ([0,1] for
    uint8 images); NaN where not attacked. They bound the true distance from above.

  Raises:
    ValueError: for a model, record or count out of range, or a model that diverged.

  Deviation: the schedules (radius, number of draws, step length) were not compared with
    the paper's code; the distance was verified on linear models. The start is the
    nearest of the audited records and 64 uniform points that are not classified as y,
    whereas the paper uses only uniform noise, which is often classified as a single
    class. The smallest of all distances is returned, not the last. Binary searches end
    at a relative precision of min(D^-3/2, 1e-3), so that they are not coarse for few
    inputs. Tables are clipped to the range of each feature and changed continuously,
    including binary features: the distance is in a relaxed space that contains no data
    between the binary values.

  Reference: Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient
    Decision-Based Attack", 2020, arXiv 1904.02144; Choquette-Choo, Tramer, Carlini,
    Papernot, "Label-Only Membership Inference Attacks", 2021, arXiv 2007.14321.
  """
  rows = records_to_query(ensemble, target, records)
  run, data = ensemble[target], ensemble.data
  validate.in_memory(data.x, "label_only_boundary", error=Unavailable)
  one = (1, *data.x.shape[1:])
  low, high = (np.broadcast_to(b, one).reshape(1, -1) for b in valid_range(data))
  starts = _starts(run, low, high, seed)
  key = random_key(seed)

  def distances(x, y):
    start, found = starts.nearest(x, y)
    limits = low, high, key, iterations, draws
    moved = _distances(run.learner, run.state, x, y, start, *limits)
    return np.where(found | (np.asarray(moved) == 0), moved, np.inf)

  return score_in_blocks(data, rows, distances, progress=progress)


class _Starts(NamedTuple):
  """Flat points [M,D] with known predicted labels [M]."""

  points: np.ndarray
  labels: np.ndarray

  def nearest(self, x, y):
    """Return the nearest point [B,D] not labelled y [B], and whether one exists."""
    x = x.reshape(len(x), -1)
    # ||x - p||^2 without ||x||^2, which is the same for all points of a record.
    gaps = (self.points**2).sum(1) - 2 * x @ self.points.T
    gaps = np.where(self.labels == y[:, None], np.inf, gaps)
    return self.points[gaps.argmin(1)], np.isfinite(gaps.min(1))


def _starts(run: Run, low, high, seed) -> _Starts:
  """Return starting points, the same for every record, so they reveal no members."""
  data = run.data
  shape = (_NOISE, *data.x.shape[1:])
  share = stream(seed, "boundary_starts").random((_NOISE, low.size), np.float32)
  noise = (low + share * (high - low)).reshape(shape)
  points = np.concatenate([to_float(data.x[data.audited]), noise])
  answers = run.log_probs(points, checked=False)
  refuse_nan(answers)
  return _Starts(points.reshape(len(points), -1), answers.argmax(-1))


@functools.partial(jax.jit, static_argnames="learner")
def _distances(learner: Any, state, x, y, start, low, high, key, iterations, draws):
  """Return the smallest distances found [B], 0 where y is not predicted at first."""
  shape, size = x.shape, math.prod(x.shape[1:])
  keys = row_keys(key, hash_rows(x))
  x = x.reshape(len(x), -1)
  searches = math.ceil(-math.log2(min(size**-1.5, _RESOLUTION)))

  def beyond(points):
    return learner.predict(state, points.reshape(shape)).argmax(-1) != y

  def to_boundary(far):
    def halve(_, bracket):
      inner, outer = bracket
      middle = (inner + outer) / 2
      hit = beyond(x + middle[:, None] * (far - x))
      return jnp.where(hit, inner, middle), jnp.where(hit, middle, outer)

    ends = jnp.zeros(len(x)), jnp.ones(len(x))
    share = jax.lax.fori_loop(0, searches, halve, ends)[1]
    return x + share[:, None] * (far - x)

  def direction(point, radius, t):
    count = jnp.int32(draws * jnp.sqrt(t))
    mine = jax.vmap(jax.random.fold_in, (0, None))(keys, t)

    def draw(b, sums):
      noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, b), (size,)))
      unit, _ = _unit(noise(mine))
      probe = jnp.clip(point + radius[:, None] * unit, low, high)
      unit = (probe - point) / radius[:, None]
      sign = jnp.where(beyond(probe), 1.0, -1.0)
      total, signed, signs = sums
      return total + unit, signed + sign[:, None] * unit, signs + sign

    sums = jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros(len(x))
    total, signed, signs = jax.lax.fori_loop(0, count, draw, sums)
    mean = jnp.where(jnp.abs(signs) == count, 0.0, signs / count)
    return _unit(signed - mean[:, None] * total)[0]

  def leap(point, ahead, length):
    def landing(length):
      return jnp.clip(point + length[:, None] * ahead, low, high)

    def retry(carry):
      length, landed, tries = carry
      length = jnp.where(landed, length, length / 2)
      return length, beyond(landing(length)), tries + 1

    def unsettled(carry):
      return ~carry[1].all() & (carry[2] < _HALVINGS)

    first = length, beyond(landing(length)), 0
    length, landed, _ = jax.lax.while_loop(unsettled, retry, first)
    return jnp.where(landed[:, None], landing(length), point)

  def hop(t, carry):
    point, best = carry
    distance = _unit(point - x)[1]
    ahead = direction(point, distance / size, t)
    point = to_boundary(leap(point, ahead, distance / jnp.sqrt(t)))
    return point, jnp.minimum(best, _unit(point - x)[1])

  point = to_boundary(start)
  first = point, _unit(point - x)[1]
  _, best = jax.lax.fori_loop(1, iterations + 1, hop, first)
  return jnp.where(beyond(x), 0.0, best)


def _unit(v):
  """Return vectors [B,D] of length 1, and the lengths [B], kept above 0."""
  length = jnp.maximum(jnp.sqrt((v * v).sum(-1)), jnp.finfo(v.dtype).tiny)
  return v / length[:, None], length
