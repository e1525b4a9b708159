"""White-box attacks, which read the released weights: gradients and gradient steps.

They query the network itself (`raw=True`), because hooks that change the outputs at
release give no protection against an attacker who holds the weights.
"""

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
from mixdef.core.check import checked, count, flag, number, one_of
from mixdef.core.registry import attack
from mixdef.training import Ensemble

_BISECTIONS = 20  # of the last segment
_AT_ONCE = 8  # gradients of all weights held at once


class _Push(NamedTuple):
  """The goal and the steps of a push; hashable, so programs are cached by it."""

  norm: str
  label: str
  direction: str
  criterion: str
  score: str


@attack(
  family="white_box",
  reads="models",
  note="a reimplementation from the published idea; the exact metric is not public",
  aliases={"dtc": "distance_to_confident"},
)
@checked(
  tau=number(0.5, below=1),
  norm=one_of("l2", "linf"),
  label=one_of("true", "predicted"),
  direction=one_of("toward", "away"),
  criterion=one_of("probability", "margin"),
  score=one_of("distance", "steps"),
  step=number(above=0),
  steps=count(),
  progress=flag,
)
def distance_to_confident(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  tau: float = 0.99,
  norm: str = "l2",
  label: str = "true",
  direction: str = "toward",
  criterion: str = "probability",
  score: str = "distance",
  step: float = 0.05,
  steps: int = 100,
  progress: bool = False,
) -> np.ndarray:
  """Score a record by its distance to where the model is confident (RECONSTRUCTION).

      D = min ||d||   such that   p_c(x + d) >= tau   and x + d is in the valid range

  The push climbs phi_c = log p_c - log(1 - p_c) by normalized gradient steps, which
  descend the cross-entropy, clips to the range, stops at the first confident iterate
  and bisects the last segment. Members are expected to need a smaller push even where
  their loss equals that of non-members. The score is -D: 0 if the model is already
  confident, -inf, tied for last, if no iterate is.

  Args:
    ensemble: S trained models.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    tau: in [1/2, 1); .9, .99 and .999 are the grid, .99 its main value. If nearly all
      members are already confident, use a higher one.
    norm: "l2", or "linf" with steps along the signs of the gradient.
    label: class c, the record's "true" label or the "predicted" one.
    direction: "toward" class c, or "away" to a confidently wrong class, the most likely
      of the others at each step; members are then expected to need more, so the score
      is +D.
    criterion: "probability", or "margin": f_c - max_{k != c} f_k >= log(tau/(1 - tau))
      and steps along its gradient. They agree for two classes.
    score: "distance", or "steps": the number of iterates, without bisection.
    step: length of a step in units of the inputs as the network reads them.
    steps: number of steps.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    Scores float64 [N]; NaN where not attacked.

  Raises:
    ValueError: for an option out of range, or a model that diverged.

  Deviation: Kaya et al. define a metric of this name by crafting adversarial samples;
    this is our reimplementation from that one sentence, and its results cannot be
    compared with theirs. phi has the direction of the cross-entropy's gradient and does
    not vanish with it when a probability rounds to 0 or 1; where a network is flat, the
    distance is infinite. Tables are clipped to the range of each feature.

  Reference: Kaya, Hong, Dumitras, "On the Effectiveness of Regularization Against
    Membership Inference Attacks", 2020, arXiv 2006.05336 (the name and the idea).
  """
  rows = records_to_query(ensemble, target, records)
  run = ensemble[target]
  push = _Push(norm, label, direction, criterion, score)
  low, high = valid_range(ensemble.data)
  goal = math.log(tau / (1 - tau))

  def scores(x, y):
    needed = np.asarray(
      _pushes(run.learner, run.state, x, y, low, high, goal, step, steps, push=push)
    )
    return needed if direction == "away" else -needed

  return score_in_blocks(run.data, rows, scores, progress=progress)


@attack(family="white_box", reads="models")
@checked(wrt=one_of("input", "weights"), norm=one_of("l1", "l2"), progress=flag)
def gradient_norm(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  wrt: str = "input",
  norm: str = "l2",
  progress: bool = False,
) -> np.ndarray:
  """Score a record by the negated norm of its own loss gradient.

      score = -||grad l(x, y)||,   grad l = -(1 - p_y) grad phi,
      phi = log p_y - log(1 - p_y)

  in inference mode. The right-hand form keeps the order of records on which the model
  is nearly certain, whose loss gradient would round to 0.

  Args:
    ensemble: S trained models.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    wrt: "input", or "weights": the released weights (an average, a snapshot), without
      BatchNorm's running statistics.
    norm: "l1" or "l2" over all entries.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    Scores float64 [N], at most 0; NaN where not attacked.

  Raises:
    ValueError: for an unknown option, or a model that diverged.

  Deviation: the code of RelaxLoss lists the four gradients as attacks and computes them
    for the mean of a batch; here each is that of a single record.

  Reference: Chen, Yu, Fritz, "RelaxLoss: Defending Membership Inference Attacks without
    Losing Utility", 2022, arXiv 2207.05801 (its code).
  """
  rows = records_to_query(ensemble, target, records)
  run = ensemble[target]
  if wrt == "input":
    validate.quantities(
      run.data.x, "a gradient with respect to the inputs", error=Unavailable
    )

  def scores(x, y):
    phi, length = _gradients(run.learner, run.state, x, y, wrt=wrt, norm=norm)
    phi, length = np.asarray(phi, np.float64), np.asarray(length, np.float64)
    refuse_nan(phi)
    return -np.exp(-np.logaddexp(0.0, phi)) * length

  return score_in_blocks(run.data, rows, scores, progress=progress)


@functools.partial(jax.jit, static_argnames=("learner", "push"))
def _pushes(
  learner: Any, state, x, y, low, high, goal, step, steps, *, push: _Push
) -> jax.Array:
  """Return distances, or step counts, that x [B,...] need to `goal`; +inf if more."""
  predict = functools.partial(learner.predict, state, raw=True)
  label = y if push.label == "true" else predict(x).argmax(-1)

  def height(points):
    log_probs = predict(points)
    chosen = jax.nn.one_hot(label, log_probs.shape[-1], dtype=bool)
    if push.direction == "away":
      rival = jnp.where(chosen, -jnp.inf, log_probs).argmax(-1)
      chosen = jax.nn.one_hot(rival, log_probs.shape[-1], dtype=bool)
    return _lead(log_probs, chosen, push.criterion)

  def total(points):
    heights = height(points)
    return heights.sum(), heights

  def climb(carry):
    before, now, taken, _ = carry
    (_, heights), slope = jax.value_and_grad(total, has_aux=True)(now)
    there = heights >= goal
    move = jnp.sign(slope) if push.norm == "linf" else slope / _column(_norms(slope), x)
    ahead = jnp.clip(now + step * move, low, high)
    stay = _column(there, x)
    before, now = jnp.where(stay, before, now), jnp.where(stay, now, ahead)
    return before, now, jnp.where(there, taken, taken + 1), there

  def on_the_way(carry):
    # Use one turn more than `steps`: the last one only checks whether the last step
    # arrived.
    return (carry[2].max() <= steps) & ~carry[3].all()

  start = x, x, jnp.zeros(len(x), jnp.int32), jnp.zeros(len(x), bool)
  before, now, taken, there = jax.lax.while_loop(on_the_way, climb, start)
  if push.score == "steps":
    needed = taken.astype(x.dtype)
  else:

    def halve(_, bracket):
      near, far = bracket
      middle = (near + far) / 2
      hit = _column(height(middle) >= goal, x)
      return jnp.where(hit, near, middle), jnp.where(hit, middle, far)

    _, now = jax.lax.fori_loop(0, _BISECTIONS, halve, (before, now))
    gap = (now - x).reshape(len(x), -1)
    needed = jnp.abs(gap).max(-1) if push.norm == "linf" else _norms(gap)
    needed = jnp.where(taken == 0, 0.0, needed)
  needed = jnp.where(there, needed, jnp.inf)
  return jnp.where(jnp.isnan(height(x)), jnp.nan, needed)


@functools.partial(jax.jit, static_argnames=("learner", "wrt", "norm"))
def _gradients(learner: Any, state, x, y, *, wrt: str, norm: str):
  """Return phi [B] and the norms [B] of its gradients."""
  weights, put = _released_weights(state)

  def phi(weights, x, y):
    log_probs = learner.predict(put(weights), x[None], raw=True)[0]
    chosen = jax.nn.one_hot(y, log_probs.shape[-1], dtype=bool)
    return _lead(log_probs, chosen, "probability")

  def one(record):
    position = 1 if wrt == "input" else 0
    value, slope = jax.value_and_grad(phi, position)(weights, *record)
    power = jnp.abs if norm == "l1" else jnp.square
    total = sum(power(leaf).sum() for leaf in jax.tree.leaves(slope))
    return value, total if norm == "l1" else jnp.sqrt(total)

  return jax.lax.map(one, (x, y), batch_size=_AT_ONCE)


def _released_weights(state):
  """Return the leaves that a model may release as weights, and how to replace them.

  A release reads `state.params` or a copy that a defense keeps (an average, a
  snapshot), which has its own collection "params": the gradient with respect to the
  collection that is not read is 0.
  """
  paths, tree = jax.tree.flatten_with_path(state._replace(opt=()))
  leaves = [leaf for _, leaf in paths]
  places = [
    i
    for i, (path, _) in enumerate(paths)
    if "params" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
  ]

  def put(weights):
    merged = list(leaves)
    for place, weight in zip(places, weights, strict=True):
      merged[place] = weight
    return jax.tree.unflatten(tree, merged)

  return [leaves[i] for i in places], put


def _lead(log_probs, chosen, criterion: str):
  """Return the lead of the chosen class [...,K] over the others: phi or the margin."""
  own = jnp.where(chosen, log_probs, 0).sum(-1)
  others = jnp.where(chosen, -jnp.inf, log_probs)
  if criterion == "margin":
    return own - others.max(-1)
  return own - jax.nn.logsumexp(others, -1)


def _norms(v):
  """Return L2 norms [B] of v [B,...], kept above 0 however small the squares are."""
  v = v.reshape(len(v), -1)
  largest = jnp.maximum(jnp.abs(v).max(-1, keepdims=True), jnp.finfo(v.dtype).tiny)
  return largest[:, 0] * jnp.sqrt(((v / largest) ** 2).sum(-1).clip(1.0))


def _column(values, x):
  """Return values [B], shaped to broadcast against x [B,...]."""
  return values.reshape(-1, *(1,) * (x.ndim - 1))
