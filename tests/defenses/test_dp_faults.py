"""Faults planted in DP-SGD, one at a time: a check, and the self-audit, catch each.

`FAULTS` is the table of docs/private_training.md. Faults of adaptive clipping and of
correlated noise belong into it as well, with the parts that they are planted in.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from canary_cases import (
  PARAMS,
  ROWS,
  B,
  audited,
  flat,
  gradients,
  spec_of,
  trained,
)

from mixdef.core import randomness
from mixdef.defenses import (
  accounting,
  clipping,
  gradient_canaries,
  per_example,
  privacy,
)
from mixdef.defenses.privacy import dp_sgd
from mixdef.training import sampling

CLIP, VIEWS = 0.5, 3
NOISE = 2.0682  # epsilon 4 after 300 steps with q = 0.1
ADD, MEASURED, DRAWN = privacy._added, per_example._measured, randomness.drawn
SHARES, SPENT = per_example.shares, accounting.spent


def private(noise, **options):
  return dp_sgd(noise, CLIP, estimator="microbatch", **options)


# Checks of the code: each raises AssertionError if the code is wrong.


def check_sensitivity(change):
  """A long record moves the sum by C, also with views, and alike in any batch."""
  for views in (1, VIEWS):
    part = change(private(0.0, multiplicity=views))
    everyone = np.ones(ROWS)
    others, alone, none = everyone.copy(), 1 - everyone, 1 - everyone
    others[2], alone[2] = 0, 1
    full, rest, one, empty = gradients(
      part, [everyone, others, alone, none], views=views
    )
    assert np.linalg.norm(full - rest) == pytest.approx(CLIP / B, rel=1e-4)
    np.testing.assert_allclose(one - empty, full - rest, atol=1e-6)


def check_padding(change):
  """A row of weight 0 adds nothing, and neither does a record that is not finite."""
  part = change(private(0.0))
  (expected,) = gradients(part, [[1, 1]])
  (padded,) = gradients(part, [[1, 1, 0, 0]])
  np.testing.assert_allclose(padded, expected, atol=1e-7)
  (bad,) = gradients(part, [[1, 1, 1, 0]], nan=2)
  np.testing.assert_allclose(bad, expected, atol=1e-7)


def check_noise(change):
  """Noise is z C / B N(0, 1), independent over entries, arrays, steps and models."""
  steps, found = 60, []
  for seed in (0, 1):
    _, noisy = trained(change(private(NOISE)), steps=steps, seed=seed)
    _, clean = trained(private(0.0), steps=steps, seed=seed)
    found.append(np.asarray(noisy - clean, np.float64) * B / (NOISE * CLIP))
  one, two = found
  for own in (one[:, :2000], one[:, 2000:2009], one[:, 2009:]):
    assert abs(own.std() - 1) < 5 / np.sqrt(2 * own.size)
  least = 5 / np.sqrt(2000 * (steps - 1))
  assert abs((one[1:, :2000] * one[:-1, :2000]).mean()) < least
  assert abs((one[:, :2000] * one[:, 2009:]).mean()) < least
  assert abs((one * two).mean()) < least


def check_sampling(change):
  """Every member is in a step with probability q."""
  del change
  plan = sampling.Plan(400, 400, 2, 40, 10, 1, 400, 0, poisson=True, platform="cpu")
  members, auxiliary = jnp.ones(400, bool), jnp.zeros(400, bool)
  draw = sampling.epoch_rows(jax.random.key(0), members, auxiliary, plan)
  weight = jax.vmap(lambda step: draw(step)[0].weight)(jnp.arange(100))
  assert abs(float(weight.mean()) - 0.1) < 5 * np.sqrt(0.09 / weight.size)


def check_epsilon(change):
  """Epsilon is that of 1,000 steps with q = 0.01 and z = 1, computed elsewhere."""
  spec = spec_of()._replace(
    num_members=400, batch_size=4, steps_per_epoch=100, epochs=10
  )
  state = change(private(1.0)).init(jax.random.key(0), spec)
  assert float(state["epsilon"]) == pytest.approx(1.8282, abs=2e-3)


# The faults.


def scaled(factor):
  return lambda tree, noise, scale: ADD(tree, noise, scale * factor)


def only_some(tree, noise, scale):
  """Leave the first array without noise."""
  noisy = ADD(tree, noise, scale)
  return {**noisy, "a": tree["a"]}


def shared(tree, key):
  """Draw the noise of every array from one key."""
  return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), tree)


def unclipped(clip):
  del clip
  return jnp.ones_like


def clipped_sum(tree, noise, scale):
  """Clip the sum of the gradients in place of each."""
  length = jnp.linalg.norm(flat(tree)) * B
  factor = jnp.minimum(1.0, CLIP / length)
  return ADD(jax.tree.map(lambda leaf: leaf * factor, tree), noise, scale)


def measured(change):
  """Change the weights that the scales of the records are computed with."""

  def patched(losses, squared, weight, factor, views):
    return MEASURED(losses, squared, change(weight, views), factor, views)

  return patched


def summed(losses, squared, weight, factor, views):
  finite, norms, scale = MEASURED(losses, squared, weight, factor, views)
  return finite, norms, scale * views


def first_only(tree):
  """Return the squared norm without the last array."""
  return jnp.sum(jax.tree.leaves(tree)[0] ** 2)


def apart(losses_fn, factor, *, size, views):
  """Clip each view as a record of its own."""
  del views
  return per_example.microbatch(losses_fn, factor, size=size, views=1)


def drawn_with(change):
  def patched(key, probability, shape):
    coin = isinstance(probability, float) and probability == 0.5
    return DRAWN(key, probability if coin else change(probability), shape)

  return patched


def by_realised(part):
  """Divide by the records that were drawn."""

  def value_and_grad(losses_fn):
    estimate = part.value_and_grad(losses_fn)

    def run(params, batch, state, ctx):
      drawn = jnp.maximum(batch.weight.sum(), 1.0)
      return estimate(params, batch, {**state, "batch_size": drawn}, ctx)

    return run

  return part._replace(value_and_grad=value_and_grad)


def twice_divided(part):
  """Divide the signal by the batch size once more, and not the noise."""

  def value_and_grad(losses_fn):
    estimate = part.value_and_grad(losses_fn)

    def run(params, batch, state, ctx):
      twice = state["batch_size"] ** 2
      return estimate(params, batch, {**state, "batch_size": twice}, ctx)

    return run

  return part._replace(value_and_grad=value_and_grad)


def keyed_by(key_of):
  """Draw the noise from another key."""

  def change(part):
    def grads(value, state, ctx):
      return part.grads(value, state, ctx._replace(key=key_of(ctx)))

    return part._replace(grads=grads)

  return change


def half_spent(noise, *, steps, **rest):
  return SPENT(noise, steps=steps // 2, **rest)


class Fault(NamedTuple):
  """What is replaced, or how a part is changed, and what catches it."""

  patches: tuple[tuple[object, str, object], ...] = ()
  change: Callable = lambda part: part
  check: Callable | None = None
  seen: bool = True  # by the self-audit
  views: int = 1


def noise(patched):
  return Fault(((privacy, "_added", patched),), check=check_noise)


def sample(change):
  patched = drawn_with(change)
  places = (gradient_canaries, sampling)
  return Fault(tuple((p, "drawn", patched) for p in places), check=check_sampling)


def inside(name, patched, check, **fields):
  return Fault(((per_example, name, patched),), check=check, **fields)


def ignore(weight, views):
  del views
  return jnp.ones_like(weight)


FAULTS = {
  "noise divided by the batch size": noise(scaled(1 / B)),
  "no noise": noise(lambda tree, noise, scale: tree),
  "noise halved": noise(scaled(0.5)),
  "noise times 0.9": noise(scaled(0.9)),
  "one array without noise": noise(only_some),
  "arrays share their noise": Fault(
    ((privacy, "_standard_normal", shared),), check=check_noise
  ),
  "same noise in every step": Fault(
    change=keyed_by(lambda ctx: jax.random.key(5)), check=check_noise
  ),
  "same noise in every model": Fault(
    change=keyed_by(lambda ctx: jax.random.fold_in(jax.random.key(5), ctx.step)),
    check=check_noise,
    seen=False,
  ),
  "no clip": Fault(((clipping, "flat", unclipped),), check=check_sensitivity),
  "the sum clipped, not the records": Fault(
    ((clipping, "flat", unclipped), (privacy, "_added", clipped_sum)),
    check=check_sensitivity,
  ),
  "norm without one array": inside("square", first_only, check_sensitivity, seen=False),
  "views summed, not averaged": inside(
    "_measured", summed, check_sensitivity, views=VIEWS
  ),
  "views clipped one by one": Fault(
    ((privacy, "microbatch", apart),), check=check_sensitivity, seen=False, views=VIEWS
  ),
  "probability doubled": sample(lambda q: 2 * q),
  "no sampling": sample(lambda q: 1.0),
  "padded rows counted": Fault(
    (
      (per_example, "_measured", measured(ignore)),
      (
        per_example,
        "shares",
        lambda weight, views: SHARES(ignore(weight, views), views),
      ),
    ),
    check=check_padding,
  ),
  "records that are not finite added": inside(
    "finite_or_zero", lambda tree, finite: tree, check_padding, seen=False
  ),
  "divided by the realised batch": Fault(
    change=by_realised, check=check_sensitivity, seen=False
  ),
  "signal divided twice": Fault(change=twice_divided, check=check_sensitivity),
  "half of the steps accounted for": Fault(
    ((accounting, "spent", half_spent),), check=check_epsilon, seen=False
  ),
}


def plant(fault, monkeypatch):
  for place, name, patched in fault.patches:
    monkeypatch.setattr(place, name, patched)


def audit_of(fault):
  part = private(NOISE, multiplicity=fault.views, canaries=400)
  return audited(fault.change(part), views=fault.views)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_check_catches(name, monkeypatch):
  fault = FAULTS[name]
  plant(fault, monkeypatch)
  with pytest.raises(AssertionError):
    fault.check(fault.change)


@pytest.mark.slow
@pytest.mark.parametrize(
  "check",
  [check_sensitivity, check_padding, check_noise, check_sampling, check_epsilon],
)
def test_correct_code_passes(check):
  check(lambda part: part)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_self_audit_sees(name, monkeypatch):
  """It sees the faults of the table, and says nothing of the others."""
  fault = FAULTS[name]
  plant(fault, monkeypatch)
  assert bool(audit_of(fault).failures) == fault.seen


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, VIEWS])
def test_the_self_audit_passes_correct_code(views):
  found = audit_of(Fault(views=views))
  assert not found.failures
  assert found.p > 1e-3


@pytest.mark.parametrize("name", ["", "no clip", "views summed, not averaged"])
def test_a_canary_is_clipped_as_records_are(name, monkeypatch):
  """Its step is C by the code of the records, and not if a fault is planted there."""
  plant(FAULTS.get(name, Fault()), monkeypatch)
  canaries = gradient_canaries.start(jax.random.key(0), spec_of(steps=10), 40)
  options = {"clip": CLIP, "probability": 1.0, "views": VIEWS}
  total, clean = gradient_canaries.insert(
    PARAMS, canaries, jax.random.key(1), factor=clipping.flat(CLIP), **options
  )
  assert not clean.any()
  found = np.abs(gradient_canaries.gather(total, 40))[np.asarray(canaries.members)]
  lengths = {"no clip": 10 * CLIP, "views summed, not averaged": VIEWS * CLIP}
  np.testing.assert_allclose(found, lengths.get(name, CLIP), rtol=1e-5)
