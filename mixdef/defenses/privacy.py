"""Differentially private gradient descent: clip each record, add noise, account."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.check import (
  check_choice,
  check_count,
  check_flag,
  check_number,
  is_static,
)
from mixdef.core.hooks import Defense, defense
from mixdef.core.traits import Traits
from mixdef.defenses import accounting, correlated_noise, gradient_canaries
from mixdef.defenses import clipping as rules
from mixdef.defenses.per_example import ghost, microbatch

_PER_PERSON = 8
_STATED = (
  *("epsilon", "delta", "pld", "rdp"),
  *("noise_multiplier", "sampling_probability", "steps", "bands"),
)


@defense(
  aliases={"dp_gan": "dp_sgd(estimator='microbatch')"}, neutral="dp_sgd(0.0, inf)"
)
def dp_sgd(
  noise_multiplier: float = 1.0,
  clip: float = 1.0,
  *,
  clipping: str = "flat",
  epsilon: float | None = None,
  delta: float = 1e-5,
  max_tpr: float | None = None,
  at_fpr: float = 0.01,
  estimator: str = "ghost",
  microbatch_size: int = 16,
  multiplicity: int = 1,
  unit: str = "record",
  per_person: int = _PER_PERSON,
  bands: int = 1,
  guarantee: bool = True,
  canaries: int = 0,
) -> Defense:
  r"""Clip each record's gradient and add Gaussian noise to their sum (Algorithm 1).

  $$u = \frac{1}{B} \Big( \sum_i g_i f(\lVert g_i \rVert_2)
    + \mathcal{N}(0, z^2 C^2 I) \Big),
  \qquad g_i = \nabla \frac{1}{K} \sum_{v=1}^{K} \ell(x_{iv})$$

  ```
  flat       f(n) = min(1, C / n)
  automatic  f(n) = C / (n + 0.01), which scales up small gradients, too
  adaptive   f(n) = min(1, C_t / n); C_t moves to the median of the norms
  ```

  B is the public batch size, regardless of how many records a step happens to draw. The
  noise is drawn once per step, after the sum, from the model's own key. Training
  samples by Poisson: every member enters each batch with probability q = B / members.

  Args:
    noise_multiplier: z >= 0; may be traced, to sweep it over models. The default 1 is
      ours.
    clip: C > 0; `inf` clips nothing and requires `noise_multiplier=0` and flat
      clipping. 1 as in De et al. It is the first C_t of adaptive clipping; with
      automatic clipping it only multiplies the learning rate of SGD.
    clipping: "flat", "automatic" or "adaptive". Adaptive clipping counts in each step
      the records with a norm of at most C_t, adds noise of B/20 to the count, which z
      pays for, and needs z below B/10.
    epsilon: if given, z is calibrated to spend it over the whole training, and
      `noise_multiplier` must be omitted.
    delta: in (0, 1), below one over the number of members.
    max_tpr: if given, z is calibrated so that no attack on a record has a larger TPR at
      an FPR of `at_fpr`, in (`at_fpr`, 1); it replaces `noise_multiplier` and
      `epsilon`, and needs less noise than the epsilon ln(max_tpr/at_fpr).
    at_fpr: in (0, 1).
    estimator: `ghost` (fast) or `microbatch` (any model; both give the same gradient).
    microbatch_size: number of records that `microbatch` holds at once, with all their
      views, >= 1; memory grows with it and not with the batch. On a CPU 1 is also the
      fastest.
    multiplicity: K >= 1, the number of views of a record per step. Each view passes
      through the other parts of the chain as a separate row, so that every augmentation
      draws anew; a record is clipped once, as the mean of its views. A step costs K
      times as much; De et al. use 16.
    unit: what is sampled, clipped and protected: a "record", or a "person" with all
      records, as named by the data's `groups`. A batch then has `batch_size` persons on
      average, and a person is clipped once, as the mean of its records in the step.
    per_person: most records of a person in a step, >= 1, for `unit="person"`; a step
      costs as many rows for every person. A person with more records is in each step
      with another window of them.
    bands: b in [1, members / B]. Above 1, the noise of a step cancels a part of that of
      the b-1 steps before it, and each record is drawn at every b-th step only, with
      probability b q: less error of the sum of many steps for the same epsilon, most of
      all at a large epsilon and a small q. It needs b-1 copies of the parameters, and
      pays for SGD with a constant rate, less with momentum, Adam or `ema`.
      `correlated_noise.best_bands` finds the best b.
    guarantee: False gives up the guarantee, and epsilon with it (NaN), and permits
      parts that mix records.
    canaries: m >= 0, the number of made-up records by which the run audits itself, see
      `mixdef.self_audit`; 1000 for a test, 5000 for a report, at most a tenth of the
      trained parameters. They cost some accuracy, and memory of 4 T m bytes per model
      for T steps.

  Returns:
    The defense. Its state holds what a report needs: `epsilon`, the smaller of the two
    bounds `pld` and `rdp` of `accounting.spent`, `delta`, `noise_multiplier`,
    `sampling_probability`, `steps`, `bands`, `batch_size` and `skipped`, the number of
    records (or persons) so far whose loss or gradient was not finite and that therefore
    contributed nothing; as `clip`, the C_t of adaptive clipping; and the canaries.

  Raises:
    ValueError: for an argument outside its range, for noise or canaries without a
      finite clip, and, at the start of training, for more canaries than a tenth of the
      trained parameters, for a delta of at least one over the number of members, for
      adaptive clipping with too much noise for the batch size, for another part of the
      chain that lets the rows of a batch interact, and, with `unit="person"`, for
      records without groups and a model that trains on a part of a person.

  Guarantee: (epsilon, delta)-differential privacy of everything the training releases,
    for one record added or removed, or with `unit="person"` one person with all its
    records, against an attacker who sees every step. It holds for every chain and
    network: each record, or person, passes the batch hooks, the network and the losses
    without access to the others and with a weight of at most 1, and the hooks that run
    next to the noised gradient have no access to the members. It does not hold against
    an attacker who knows the seeds, the model's key or the run folder, who can
    reproduce and subtract the noise: `fit` draws the seed of the noise from the
    operating system unless `noise_seed` is given. It does not cover state outside the
    trace (a part or network built from the records, a callback to the host),
    hyper-parameters selected on the same data, several models trained on the same
    records, the defender's own records (`reference`), duplicates of a record, the exact
    counts and metrics that the trainer sees, or the number of members if it is computed
    from the membership; `Run.guarantee` says so. Records standardized by their own
    moments raise an error. Without noise epsilon is infinite. Floating-point noise is
    not exactly Gaussian. The views of a record are clipped as one group and sampled
    together, so `multiplicity` changes neither its bound nor q, and epsilon does not
    depend on it. A person's bound, sampling and epsilon depend neither on how many
    records it has nor on which of them are in a step. With `bands`, a record is in
    steps at least b apart, whose noises hide it as independent ones do, so epsilon is
    that of ceil(T/b) steps with probability b q. With `distillation`, the teacher is
    trained with the same noise, and epsilon is that of its steps and the student's.
    Canaries do not depend on the records and change nothing in the guarantee, but what
    is kept of them is not private: it reveals the noise, and so, with the model, the
    gradients of the records at these coordinates. It stays in the state and the run
    folder: keep both with the trainer.

  Deviation: Abadi et al. divide by the lot size, which is B here, and track moments;
    epsilon here is the smaller of two bounds, see `accounting.spent`. One clipping norm
    is used for all layers. For adaptive clipping, common implementations divide the
    count by the number of drawn records, which is private, or clip with the new norm at
    once; here B divides, and C_{t+1} acts in the next step. C_t stays within a factor
    of 1000 of `clip`. [ours] Records with gradients that are not finite contribute
    zero, to the count as well. [ours] A person's records are averaged, not summed, so
    that the clipping norm need not grow with their number, and a person with more than
    `per_person` has a window of them, which begins anywhere, anew in every step. With
    `bands`, each record draws its group for itself, because groups of equal size would
    make the group of a record depend on the others; the columns of C are not scaled to
    equal norms, so the last b-1 steps have slightly more noise than they need. A canary
    has a gradient of 10 C before it is clipped, at one coordinate of its own; in the
    literature it is C after clipping, where a missing clip does not show. [ours]

  Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv
    1607.00133; De et al., "Unlocking High-Accuracy Differentially Private Image
    Classification through Scale", 2022, arXiv 2204.13650; Bu et al., "Automatic
    Clipping", 2022, arXiv 2206.07136; Andrew et al., "Differentially Private Learning
    with Adaptive Clipping", 2019, arXiv 1905.03871; Choquette-Choo et al.,
    "(Amplified) Banded Matrix Factorization", 2023, arXiv 2306.08153 (`bands`).

  >>> str(dp_sgd(epsilon=8.0, multiplicity=16))
  'dp_sgd(epsilon=8.0, multiplicity=16)'
  """
  _validate(noise_multiplier, clip, epsilon, delta, max_tpr, at_fpr, estimator)
  rules.check(clipping, clip, bands)
  check_count("dp_sgd: microbatch_size", microbatch_size)
  check_count("dp_sgd: multiplicity", multiplicity)
  check_flag("dp_sgd: guarantee", guarantee)
  check_count("dp_sgd: bands", bands)
  _check_unit(unit, per_person, guarantee)
  gradient_canaries.check(canaries, clip, guarantee, bands)
  rows = per_person if unit == "person" else 1
  silent, adaptive = _is_zero(noise_multiplier), clipping == "adaptive"
  correlated = bands > 1 and not silent

  def init(key, spec):
    if guarantee and delta >= 1 / spec.num_members:
      raise ValueError(
        f"dp_sgd: delta is {delta}, which is not a guarantee for {spec.num_members} "
        f"members: pass less than {1 / spec.num_members:.2g}"
      )
    training = {
      "sampling_probability": min(1.0, spec.batch_size / spec.num_members),
      "steps": spec.trainings * spec.epochs * spec.steps_per_epoch,
      "bands": bands,
    }
    noise = noise_multiplier
    if epsilon is not None:
      noise = accounting.noise_multiplier(float(epsilon), delta=delta, **training)
    elif max_tpr is not None:
      noise = accounting.noise_for_tpr(float(max_tpr), float(at_fpr), **training)
    if adaptive:
      rules.check_noise(noise, spec.batch_size)
    nothing = jnp.full(3, math.nan, jnp.float32)
    found = _spent(noise, training, delta) if guarantee else nothing
    own: dict[str, Any] = {}
    if correlated:
      params = spec.variables["params"]
      own["noises"] = correlated_noise.start(params, training["steps"], bands)
    if canaries:
      own["canaries"] = gradient_canaries.start(key, spec, canaries)
    return {
      **({"clip": jnp.float32(clip)} if adaptive else {}),
      **own,
      "batch_size": jnp.float32(spec.batch_size),
      "noise_multiplier": jnp.float32(noise),
      **{name: found[i] for i, name in enumerate(accounting.Spent._fields)},
      "delta": jnp.float32(delta),
      **{name: jnp.float32(value) for name, value in training.items()},
      "skipped": jnp.int32(0),
    }

  def batch(batch, state, ctx):
    del state, ctx
    views = jnp.tile(jnp.arange(multiplicity), batch.weight.shape[0])
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, multiplicity, 0), batch)
    return batch._replace(view=views)

  def value_and_grad(losses_fn):
    estimate = {"ghost": ghost, "microbatch": microbatch}[estimator]
    groups = {"size": microbatch_size, "views": rows * multiplicity}

    def run(params, batch, state, ctx):
      bound, extras = state.get("clip", clip), {}
      factor = rules.rule(clipping)(bound)
      clipped = estimate(losses_fn, factor, **groups)
      out, (total, norms) = clipped(params, batch, state, ctx)
      if adaptive:
        extras["count"] = rules.count_below(norms, bound)
      if canaries:
        total, extras["clean"] = gradient_canaries.insert(
          total,
          state["canaries"],
          ctx.key,
          factor=factor,
          clip=bound,
          probability=state["sampling_probability"],
          views=rows * multiplicity,
        )
      size = state["batch_size"]
      mean = jax.tree.map(lambda t, p: (t / size).astype(p.dtype), total, params)
      return out, (mean, extras) if extras else mean

    return run

  def noise_std(state):
    noise, size = state["noise_multiplier"], state["batch_size"]
    if silent:
      return jnp.float32(0)
    if adaptive:
      return rules.gradient_noise(noise, size) * state["clip"] / size
    return noise * clip / size

  def grads(value, state, ctx):
    scale, size, bound = noise_std(state), state["batch_size"], state.get("clip", clip)
    value, extras = value if adaptive or canaries else (value, {})
    new = {}
    if not silent:
      noise = _standard_normal(value, ctx.key)
      if correlated:
        noise, new["noises"] = correlated_noise.correlate(
          noise, state["noises"], ctx.step
        )
      value = _added(value, noise, scale)
    if canaries:
      new["canaries"] = gradient_canaries.observe(
        *(state["canaries"], value, extras["clean"], ctx.step),
        clip=bound,
        batch_size=size,
      )
    if adaptive:
      new["clip"] = rules.next_clip(bound, clip, extras["count"], ctx.key, size)
    return value, {**state, **new}

  def update(state, ctx):
    # The estimators return NaN as the losses of a record that they skipped.
    bad = (ctx.batch.weight > 0) & ~jnp.isfinite(ctx.losses)
    left_out = bad.reshape(-1, rows * multiplicity).any(1)
    return {**state, "skipped": state["skipped"] + left_out.sum(dtype=jnp.int32)}

  def finish(state, ctx):
    del ctx
    return {name: value for name, value in state.items() if name != "noises"}

  def stated(state):
    return {name: state[name] for name in _STATED}

  return Defense(
    name="",
    init=init,
    batch=batch if multiplicity > 1 else None,
    value_and_grad=value_and_grad,
    grads=grads,
    update=update,
    finish=finish if correlated else None,
    guarantee=stated if guarantee and not silent else None,
    noise_std=None if correlated else noise_std,
    traits=Traits(
      order="table",
      per_example=True,
      no_guarantee=not guarantee,
      poisson=True,
      per_person=per_person if unit == "person" else 0,
      bands=bands,
      composes=True,
    ),
  )


def _standard_normal(tree, key):
  """Draw an independent N(0, 1) for every entry."""
  leaves, structure = jax.tree.flatten(tree)
  # One draw per leaf: on a CPU a single flat draw costs 1.5 times as much.
  keys = jax.random.split(key, len(leaves))
  drawn = [
    jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(structure, drawn)


def _added(tree, noise, scale):
  return jax.tree.map(lambda t, n: t + (scale * n).astype(t.dtype), tree, noise)


def _spent(noise, training, delta):
  """Account for the noise, on the host if it is traced; the fields of `Spent` [3]."""

  def found(noise):
    return np.array(accounting.spent(float(noise), delta=delta, **training), np.float32)

  if is_static(noise):
    return jnp.asarray(found(noise))
  shape = jax.ShapeDtypeStruct((3,), jnp.float32)
  return jax.pure_callback(found, shape, noise, vmap_method="sequential")


def _refuse_noise(budget, noise_multiplier):
  if not is_static(noise_multiplier) or noise_multiplier != 1.0:
    raise ValueError(f"dp_sgd: {budget} determines the noise; drop noise_multiplier")


def _is_zero(value):
  return is_static(value) and value == 0


def _check_unit(unit, per_person, guarantee):
  check_choice("dp_sgd: unit", unit, ("record", "person"))
  check_count("dp_sgd: per_person", per_person)
  if unit == "record" and per_person != _PER_PERSON:
    raise ValueError(
      f"dp_sgd: per_person={per_person} is for persons: pass unit='person', or drop it"
    )
  if unit == "person" and not guarantee:
    raise ValueError("dp_sgd: unit='person' is a guarantee: drop guarantee=False")


def _validate(noise_multiplier, clip, epsilon, delta, max_tpr, at_fpr, estimator):
  check_number("dp_sgd: noise_multiplier", noise_multiplier, 0)
  check_number("dp_sgd: clip", clip, high=math.inf, above=0)
  check_choice("dp_sgd: estimator", estimator, ("ghost", "microbatch"))
  if not is_static(delta) or not 0 < delta < 1:
    raise ValueError(f"dp_sgd: delta is {delta}; pass a plain number in (0, 1)")
  if epsilon is not None:
    if not is_static(epsilon):
      raise ValueError(f"dp_sgd: epsilon is {epsilon}; pass a finite number above 0")
    check_number("dp_sgd: epsilon", epsilon, above=0)
    _refuse_noise(f"epsilon={epsilon}", noise_multiplier)
  if not is_static(at_fpr):
    raise ValueError(f"dp_sgd: at_fpr is {at_fpr}; pass a plain number in (0, 1)")
  check_number("dp_sgd: at_fpr", at_fpr, above=0, below=1)
  if max_tpr is not None:
    if not is_static(max_tpr):
      raise ValueError(f"dp_sgd: max_tpr is {max_tpr}; pass a plain number in (0, 1)")
    check_number("dp_sgd: max_tpr", max_tpr, above=0, below=1)
    if at_fpr >= max_tpr:
      raise ValueError(
        f"dp_sgd: max_tpr={max_tpr} at at_fpr={at_fpr}: pass 0 < at_fpr < max_tpr < 1, "
        "because guessing has a TPR equal to its FPR"
      )
    if epsilon is not None:
      raise ValueError("dp_sgd: epsilon and max_tpr both determine the noise: drop one")
    _refuse_noise(f"max_tpr={max_tpr}", noise_multiplier)
  if is_static(clip) and clip == math.inf and not _is_zero(noise_multiplier):
    raise ValueError(
      "dp_sgd: clip=inf does not bound any record, so no noise suffices; pass a "
      "finite clip, or noise_multiplier=0"
    )
