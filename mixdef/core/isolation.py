"""Isolation of records, which keeps a privacy guarantee valid for any chain of parts.

Per-record clipping bounds the contribution of a record to one step. Epsilon follows
only if the record has no other influence, so in a chain that clips records for a
guarantee

- every row passes through the batch hooks alone, and its weight never increases,
- every record passes through the model, `log_probs` and `loss` alone, with its own
  views; the estimators of `mixdef.defenses.per_example` ensure this,
- the hooks that run outside the noised gradient do not receive the members.

None of this relies on what a part declares. `check` rejects parts whose behavior would
change under isolation.
"""

import collections
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.hooks import Batch, Ctx, Defense
from mixdef.core.randomness import random_key
from mixdef.core.streamed import Withheld

_ROWS = 5
_SCALES = (1.0, 30.0)  # of records and logits; some hooks act at extreme values only


def row_by_row(part: Defense):
  """Return the part's batch hook, applied to each row as a separate batch of one.

  Its `ctx` contains only the position. The origin of a row is preserved, and its weight
  may decrease but not increase.

  Raises:
    ValueError: when traced, if a row does not remain one row.
  """
  run: Any = part.batch

  def alone(row, state, ctx):
    out = run(jax.tree.map(lambda leaf: leaf[None], row), state, ctx)
    rows = out.weight.shape[0]
    if rows != 1:
      raise ValueError(
        f"{part.name} turns one row into {rows}, but clipping bounds a record only if "
        "it remains a single row: remove it, or give up epsilon with guarantee=False"
      )
    return jax.tree.map(lambda leaf: leaf[0], out)

  def hook(batch, state, ctx):
    out = jax.vmap(alone, (0, None, None))(batch, state, ctx.position)
    weight = jnp.where(out.weight > 0, jnp.minimum(out.weight, batch.weight), 0)
    return out._replace(index=batch.index, auxiliary=batch.auxiliary, weight=weight)

  return hook


def without_members(part: Defense, name: str):
  """Return the part's `update`, `epoch` or `finish` hook without access to members.

  `update` receives None for losses, log-probabilities and batch. The data passed to
  `epoch` and `finish` hold the auxiliary rows, zeros instead of all other records, and
  no membership.
  """
  run = getattr(part, name)

  def update(state, ctx):
    try:
      return run(state, ctx.position._replace(variables=ctx.variables))
    except (TypeError, AttributeError) as error:
      raise ValueError(
        f"{part.name} is declared post_processing, so its update receives None for "
        f"losses, log_probs and batch, but it uses them: {error}"
      ) from error

  def look(state, ctx):
    own = ctx.data.auxiliary

    def hidden(rows):
      if isinstance(rows, Withheld):
        return rows
      return jnp.where(own.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)

    public = ctx.position._replace(
      variables=ctx.variables,
      predict=ctx.predict,
      data=ctx.data._replace(x=hidden(ctx.data.x), y=hidden(ctx.data.y)),
      members=jnp.zeros_like(ctx.members),
    )
    return run(state, public)

  return update if name == "update" else look


def public(spec):
  """Return a `Spec` without a real example, which might be a member."""
  return spec._replace(example=jnp.zeros_like(spec.example))


def check(clipped: Defense, hooks: dict[str, list[Defense]], spec) -> None:
  """Reject parts that treat a row in a batch differently from the row alone.

  Runs their batch, `log_probs` and `loss` hooks on a few synthetic rows, together and
  one by one, at several epochs and scales. A part that couples rows but is not detected
  still sees only one row at a time in training.

  Args:
    clipped: the part that clips records.
    hooks: the parts with `batch`, `log_probs` and `loss` hooks, in their order.
    spec: the `Spec` that initializes the chain; only shapes are read.

  Raises:
    ValueError: the message names the part and its fault.
  """
  acting = [part for parts in hooks.values() for part in parts if part is not clipped]
  if not acting:
    return
  with jax.ensure_compile_time_eval():
    made_up = spec._replace(
      **{
        name: jax.tree.map(
          lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), getattr(spec, name)
        )
        for name in ("example", "variables", "table")
      }
    )
    key = random_key(0)
    state = {
      part.name: part.init(key, made_up) if part.init else ()
      for parts in hooks.values()
      for part in parts
    }
    trials = [
      (epoch, *_rows(spec, scale, seed))
      for seed, (epoch, scale) in enumerate(
        # The first, a middle and the last epoch.
        itertools.product((0, spec.epochs // 2, spec.epochs - 1), _SCALES)
      )
    ]
    trial = functools.partial(_trial, clipped, hooks, made_up, state, key)
    try:
      found = jax.jit(jax.vmap(trial))(*jax.tree.map(lambda *a: np.stack(a), *trials))
      faults = [words for words, holds in found.items() if not holds.all()]
    except jax.errors.JAXTypeError:
      return  # a hyper-parameter of the part is traced, as in a sweep
  if faults:
    raise ValueError(
      f"{faults[0]}, so the clipping of {clipped.name} does not bound the influence of "
      f"a record: remove the part, or give up epsilon with {clipped.name}(..., "
      "guarantee=False)"
    )


def _trial(clipped, hooks, spec, state, key, epoch, batch, log_probs):
  """Return, per description of a fault, whether the rows are free of that fault."""
  ctx = Ctx(
    key,
    step=epoch * spec.steps_per_epoch,
    epoch=epoch,
    epochs=spec.epochs,
    steps_per_epoch=spec.steps_per_epoch,
    batch_size=spec.batch_size,
  )
  found = collections.OrderedDict()  # `jit` sorts a dict; the first fault is reported
  for part in hooks["batch"]:
    if part is clipped:
      batch = part.batch(batch, state[part.name], ctx)
      continue
    together = part.batch(batch, state[part.name], ctx)
    alone = row_by_row(part)(batch, state[part.name], ctx)
    if together.weight.shape == batch.weight.shape:
      found[f"{part.name} increases the weight of a row"] = (
        (together.weight >= 0) & (together.weight <= batch.weight)
      ).all()
      found[f"{part.name} moves a record to the row of another"] = (
        together.index == batch.index
      ).all()
    found[f"{part.name} makes a row depend on the other rows of its batch"] = _agree(
      together._replace(auxiliary=None),
      alone._replace(auxiliary=None),
      batch.weight > 0,
    )
    batch = alone
  counted = batch.weight > 0
  if batch.view is not None:
    log_probs = log_probs[batch.index % len(log_probs)]
  ctx = ctx._replace(batch=batch)
  for part in hooks["log_probs"]:
    together = part.log_probs(log_probs, state[part.name], ctx)
    log_probs = _each(part, "log_probs", log_probs, state[part.name], ctx)
    found[
      f"{part.name} makes the output of a row depend on the other rows of its batch"
    ] = _agree(together, log_probs, counted)
  losses = -(batch.y * log_probs).sum(-1)
  for part in hooks["loss"]:
    given = ctx._replace(log_probs=None if part.traits.critic else log_probs)
    together = part.loss(losses, state[part.name], given)
    losses = _each(part, "loss", losses, state[part.name], given)
    found[
      f"{part.name} makes the loss of a row depend on the other rows of its batch"
    ] = _agree(together, losses, counted)
  return found


def _rows(spec, scale, seed):
  """Make synthetic rows shaped like records (the last is padding) and their outputs."""
  rng = np.random.default_rng(seed)
  shape, dtype = (_ROWS, *spec.example.shape[1:]), spec.example.dtype
  if np.issubdtype(dtype, np.integer) and dtype != np.uint8:
    x = rng.integers(0, 2, shape, dtype)
  elif dtype == np.uint8:
    x = rng.random(shape, np.float32)
  else:
    x = (scale * rng.normal(size=shape)).astype(dtype)
  index = np.arange(_ROWS) % spec.num_records
  ones = np.ones(_ROWS, np.float32)
  weight = np.where(np.arange(_ROWS) < _ROWS - 1, ones, 0)
  y = np.eye(spec.num_classes, dtype=np.float32)[
    rng.integers(0, spec.num_classes, _ROWS)
  ]
  logits = scale * rng.normal(size=y.shape).astype(np.float32)
  log_probs = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
  return Batch(x, y, index, weight, 0 * ones, index, ones), log_probs


def _each(part, hook, values, state, ctx):
  """Apply a part's hook to each row as a separate batch of one."""

  def alone(*row):
    value, batch, log_probs = jax.tree.map(lambda leaf: leaf[None], row)
    own = ctx.position._replace(batch=batch, log_probs=log_probs)
    out = getattr(part, hook)(value, state, own)
    if jnp.shape(out) != value.shape:
      raise ValueError(
        f"the {hook} hook of {part.name} returns shape {jnp.shape(out)} instead of one "
        "value per row: return the shape of its input, or give up epsilon with "
        "guarantee=False"
      )
    return out[0]

  return jax.vmap(alone)(values, ctx.batch, ctx.log_probs)


def _agree(together, alone, counted):
  """Return whether two trees agree up to rounding in the rows of `counted`."""
  pairs = zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True)
  equal = jnp.array(True)
  for a, b in pairs:
    if a.shape != b.shape:
      return jnp.array(False)
    same = jnp.isclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
    equal &= same.reshape(len(counted), -1).all(1).all(where=counted)
  return equal
