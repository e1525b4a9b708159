"""Compose defenses with `chain`, and wrap optax transforms as defenses."""

import jax
import jax.numpy as jnp

from mixdef.core import isolation
from mixdef.core.hooks import Defense, check_hooks, weighted_mean
from mixdef.core.randomness import fold_in_name
from mixdef.core.traits import Traits, check_traits, turn, union


def chain(*defenses: Defense | str) -> Defense:
  """Compose defenses into one; flat and associative, and `chain()` is the identity.

  The state is `{name: state}`. Batch hooks are stably sorted by `Traits.order` (table,
  augment, mix, label), the gradient estimator's own `grads` hook runs first, and all
  other hooks run in the order given. Each part draws from its own random stream, so
  adding or removing a part never changes another part's randomness.

  Args:
    *defenses: parts or chains, or their text as accepted by `mixdef.parse`.

  Returns:
    One `Defense`, with the parts in `parts`.

  Raises:
    ValueError: for an argument that is not a defense, and for parts that cannot be
      combined, with the reason.

  >>> str(chain("mixup", "ema|l1"))
  'mixup|ema|l1'
  >>> str(chain(from_optax("a", lambda key: None), chain()))
  "from_optax('a')"
  """
  read = [_read(one) for one in defenses]
  if len(read) == 1 and read[0].parts is not None:
    return read[0]
  parts = tuple(
    part for one in read for part in ((one,) if one.parts is None else one.parts)
  )
  _refuse(parts)
  clipped = _clipping_for_a_guarantee(parts)
  checked = set()

  def with_hook(hook):
    """Return the parts that have a hook, each with the hook, in the order they act."""
    order = list(parts)
    if hook == "batch":
      order.sort(key=lambda part: turn(part.traits))
    found = [(part, getattr(part, hook)) for part in order]
    return [(part, run) for part, run in found if run is not None]

  def own(ctx, hook, part):
    return ctx._replace(key=fold_in_name(ctx.key, hook, part.name))

  def thread(hook):
    """Thread a value through every part's hook."""
    acting = with_hook(hook)
    if not acting:
      return None

    def run(value, state, ctx):
      for part, change in acting:
        if clipped and part is not clipped and hook == "batch":
          change = isolation.row_by_row(part)
        value = change(value, state[part.name], own(ctx, hook, part))
      return value

    return run

  def write(hook):
    """Let every part's hook update its own state."""
    acting = with_hook(hook)
    if not acting:
      return None

    def run(state, ctx):
      new = dict(state)
      for part, refresh in acting:
        if clipped and part is not clipped:
          refresh = isolation.without_members(part, hook)
        new[part.name] = refresh(state[part.name], own(ctx, hook, part))
      return new

    return run

  def init(key, spec):
    if clipped:
      spec = spec._replace(trainings=spec.trainings + _composed(parts))
      spec = isolation.public(spec)
      form = (*spec[3:], spec.example.shape, spec.example.dtype)
      if form not in checked:
        hooks = {
          hook: [part for part, _ in with_hook(hook)]
          for hook in ("batch", "log_probs", "loss")
        }
        isolation.check(clipped, hooks, spec)
        checked.add(form)
    # Only the part that promises how it uses the outputs of its teachers sees them.
    untold = spec._replace(table=None) if clipped else spec
    return {
      part.name: _strongly_typed(
        part.init(fold_in_name(key, part.name), spec if part.stages else untold)
      )
      if part.init
      else ()
      for part in parts
    }

  def grads(value, state, ctx):
    state = dict(state)
    acting = sorted(with_hook("grads"), key=lambda one: not one[0].value_and_grad)
    for part, change in acting:
      own_state = state[part.name]
      value, state[part.name] = change(value, own_state, own(ctx, "grads", part))
    return value, state

  def value_and_grad(losses_fn):
    ((part, estimator),) = with_hook("value_and_grad")
    estimate = estimator(losses_fn)
    return lambda params, batch, state, ctx: estimate(
      params, batch, state[part.name], ctx
    )

  def stating(hook):
    """Return what the only part with a hook states of its own state."""
    found = with_hook(hook)
    if not found:
      return None
    ((part, stated),) = found
    return lambda state: stated(state[part.name])

  def network(value):
    for _, change in with_hook("network"):
      value = change(value)
    return value

  fields = {key: value for part in parts for key, value in (part.model or {}).items()}
  return Defense(
    name="chain",
    text="|".join(map(str, parts)) or "none",
    model=fields or None,
    network=network if with_hook("network") else None,
    stages=next((part.stages for part in parts if part.stages), ()),
    rows=next((part.rows for part in parts if part.rows), None),
    init=init,
    batch=thread("batch"),
    log_probs=thread("log_probs"),
    loss=thread("loss"),
    value_and_grad=value_and_grad if with_hook("value_and_grad") else None,
    grads=grads if with_hook("grads") else None,
    update=write("update"),
    epoch=write("epoch"),
    finish=write("finish"),
    release_params=thread("release_params"),
    release_output=thread("release_output"),
    guarantee=stating("guarantee"),
    noise_std=stating("noise_std"),
    traits=union(part.traits for part in parts),
    parts=parts,
  )


def _composed(parts):
  """Return the number of trainings before this one that compose with it."""
  stages = [stage for part in parts for stage in part.stages]
  return sum(stage.models for stage in stages if stage.composes)


def _clipping_for_a_guarantee(parts):
  """Return the part whose guarantee relies on per-record clipping, or None."""
  for part in parts:
    if part.traits.per_example and not part.traits.no_guarantee:
      return part
  return None


def _read(part) -> Defense:
  """Return a part as a `Defense`, parsing it if it is a text."""
  if isinstance(part, str):
    from mixdef.core.parsing import parse  # which imports `chain`

    return parse(part)
  if isinstance(part, Defense):
    return part
  if callable(part):
    name = getattr(part, "__name__", "factory")
    raise ValueError(f"{name} is a function, not a defense: call it, {name}()")
  if isinstance(part, (list, tuple)):
    raise ValueError("chain expects its parts as separate arguments: chain(*parts)")
  raise ValueError(
    f"{part!r} is not a defense: pass a defense such as mixup(), or text such as "
    "'mixup|ema'"
  )


def _refuse(parts):
  """Raise if parts cannot be combined."""
  names = [part.name for part in parts]
  for name in names:
    if not (isinstance(name, str) and name.isidentifier()):
      raise ValueError(f"{name!r} is not a valid name of a part: pass another name=")
    if name == "chain":
      raise ValueError("a part cannot be called 'chain': pass another name=")
    if names.count(name) > 1:
      raise ValueError(
        f"two parts of the chain are called {name!r}: rename one of them, "
        f"{name}(..., name='{name}_2')"
      )
  for part in parts:
    check_traits(part.name, part.traits)
    check_hooks(part)
  once = {
    "gradient estimators": [part for part in parts if part.value_and_grad],
    "staged parts": [part for part in parts if part.stages],
    "mixers": [part for part in parts if part.traits.order == "mix"],
    "parts that select the training rows": [part for part in parts if part.rows],
    "parts that replace the released weights": [
      part for part in parts if part.release_params
    ],
    "parts that account for epsilon": [part for part in parts if part.guarantee],
    "parts that state their noise": [part for part in parts if part.noise_std],
  }
  for what, found in once.items():
    if len(found) > 1:
      both = " and ".join(part.name for part in found)
      raise ValueError(f"a chain can have only one of the {what}, not {both}: drop one")
  fields = [key for part in parts for key in (part.model or {})]
  for field in fields:
    if fields.count(field) > 1:
      raise ValueError(
        f"two parts set the field {field!r} of the model: drop one of them"
      )
  student = next((part for part in parts if part.rows), None)
  for part in parts:
    if student and part is not student and part.traits.needs_auxiliary:
      raise ValueError(
        f"{student.name} trains on the auxiliary records, so {part.name} cannot use "
        "them as non-members: drop one"
      )
  clipped = _clipping_for_a_guarantee(parts) or next(
    (part for part in parts if part.traits.per_example), None
  )
  if clipped:
    for part in parts:
      _refuse_with_clipping(part, clipped)


def _refuse_with_clipping(part, clipped):
  """Raise if a part would invalidate the bound of per-record clipping."""
  if part.traits.couples == "batch":
    raise ValueError(
      f"{clipped.name} clips each record's gradient, but {part.name} makes the loss of "
      f"a record depend on the whole batch: drop one of them"
    )
  if clipped.traits.no_guarantee:
    return
  give_up = f"drop one, or give up epsilon with {clipped.name}(..., guarantee=False)"
  if part.traits.couples == "records":
    raise ValueError(
      f"{part.name} lets a record influence the rows or outputs of other records, so "
      f"the per-row clipping of {clipped.name} does not bound the influence of a "
      f"record: {give_up}"
    )
  composed = clipped.traits.composes and all(
    stage.composes and stage.defense is None for stage in part.stages
  )
  if part.stages and (part.rows or not composed):
    raise ValueError(
      f"{part.name} trains earlier stages on the members, but the epsilon of "
      f"{clipped.name} would cover a single training: {give_up}"
    )
  if part.stages and clipped.traits.bands > 1:
    raise ValueError(
      f"{part.name} trains an earlier stage with the noise of {clipped.name}, which is "
      "accounted for without bands only: drop bands"
    )
  own = part.traits
  if part is not clipped and (own.per_person or own.bands > 1):
    draws = f"{own.bands} groups of the members in turn"
    if own.per_person:
      draws = f"{own.per_person} rows of a person"
    raise ValueError(
      f"{part.name} draws {draws}, but {clipped.name} determines what a step draws and "
      f"accounts for it: {give_up}"
    )
  if part.rows:
    raise ValueError(
      f"{part.name} selects the training rows among all members, so that a record "
      f"influences the selection of others, which {clipped.name} does not bound: "
      f"{give_up}"
    )
  after = [hook for hook in ("update", "epoch", "finish") if getattr(part, hook)]
  if after and part is not clipped and not part.traits.post_processing:
    raise ValueError(
      f"the {after[0]} hook of {part.name} has access to the members, which the noise "
      f"of {clipped.name} does not cover: if the hook needs only the weights or the "
      f"auxiliary records, add the trait post_processing; otherwise {give_up}"
    )


def _strongly_typed(state):
  """Remove weak types, which would cause the step to be traced twice."""

  def cast(leaf):
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)

  return jax.tree.map(cast, state)


def from_optax(name: str, transform, *, per_example: bool = False) -> Defense:
  """Wrap any optax `GradientTransformation` as a defense, with one state per model.

  Args:
    name: the part's name in the chain.
    transform: a `GradientTransformation`, or `key -> GradientTransformation` for a
      transform that draws noise. The latter is built from each model's own key, so
      vmapped shadow models never share noise.
    per_example: pass the transform gradients with a leading batch axis [B,...], as
      `optax.contrib.differentially_private_aggregate` expects. Gradients of padded rows
      are zero, and such a transform divides by B including the padding.

  Returns:
    The defense. Its text is opaque, so a run that uses it needs an explicit text.

  Guarantee: none is stated by mixdef; with noise it is the transform's own.
  """
  usable = callable(transform) or hasattr(transform, "update")
  if not usable:
    raise ValueError(
      f"from_optax: {transform!r} is not a transform; pass one such as "
      "optax.clip(1.0), or a function from a key to a transform"
    )

  def make(key):
    return transform if hasattr(transform, "init") else transform(key)

  def value_and_grad(losses_fn):
    def run(params, batch, state, ctx):
      def one(row):
        def loss(params):
          one_row = jax.tree.map(lambda leaf: leaf[None], row)
          losses, aux = losses_fn(params, one_row, ctx)
          aux = jax.tree.map(lambda leaf: leaf[0], aux)
          return losses[0] * row.weight, (losses[0], aux)

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads

      (losses, aux), grads = jax.vmap(one)(batch)
      return (weighted_mean(losses, batch.weight), (losses, aux)), grads

    return run

  def init(key, spec):
    return make(key).init(spec.variables["params"])

  def grads(value, state, ctx):
    return make(ctx.key).update(value, state, ctx.variables["params"])

  return Defense(
    name,
    text=f"from_optax({name!r})",
    init=init,
    value_and_grad=value_and_grad if per_example else None,
    grads=grads,
    traits=Traits(opaque=True, per_example=per_example),
  )
