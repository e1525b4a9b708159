"""Checks of user-supplied optax optimizers, and their extra arguments."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mixdef.core.text import text_of

_EXAMPLE = "for example optax.adam(1e-3)"

# Reasons to reject optimizers, by the type of their state: the weights that they train
# are not the weights to release, or their gradients are not those of a batch.
_REFUSED = {
  "ScheduleFreeState": "keeps its averaged weights in schedule_free_eval_params",
  "SAMState": "leaves the weights perturbed between two steps",
  "LookaheadState": "keeps separate fast and slow weights",
  "DifferentiallyPrivateAggregateState": (
    "clips per-record gradients, but receives the gradient of a batch; use the "
    "defense dp_sgd, or from_optax(..., per_example=True)"
  ),
}


def check_optimizer(optimizer: Any) -> optax.GradientTransformationExtraArgs:
  """Return an optimizer whose `update` accepts any extra arguments.

  Raises:
    TypeError: for anything but an optax transform; the message names its type.
  """
  if isinstance(optimizer, optax.MultiSteps):
    return optax.with_extra_args_support(optimizer.gradient_transformation())
  if isinstance(optimizer, optax.GradientTransformation):
    return optax.with_extra_args_support(optimizer)
  if isinstance(optimizer, nn.Module):
    what = (
      f"a {type(optimizer).__name__}, a model, which must be passed before the "
      "optimizer"
    )
  elif inspect.isclass(optimizer) or callable(optimizer):
    what = f"the function {text_of(optimizer)}, which must be called"
  elif isinstance(optimizer, list | tuple):
    what = (
      f"a {type(optimizer).__name__}, which optax.chain(*...) turns into a transform"
    )
  else:
    what = f"{text_of(optimizer)[:60]} of type {type(optimizer).__name__}"
  raise TypeError(f"optimizer is {what}: pass an optax transform, {_EXAMPLE}")


def offered(defense) -> tuple[str, ...]:
  """Return the extra arguments that an optimizer may read under a defense.

  A defense that adds noise to the gradient offers its standard deviation. Per-record
  clipping allows nothing else, because the loss of a batch is not covered by the noise.
  A line search (`value_fn`) needs the exact loss whose gradient it receives.
  """
  noise = ("noise_std",) if defense.noise_std else ()
  if defense.traits.per_example:
    return noise
  if any(part.grads or part.value_and_grad for part in defense.parts):
    return ("value", "grad", *noise)
  return ("value", "grad", "value_fn")


def start(
  optimizer: optax.GradientTransformationExtraArgs,
  params: Any,
  key: Any,
  *,
  extra: tuple[str, ...] = (),
  why: str = "",
) -> Any:
  """Return the initial state of an optimizer after tracing one step of it.

  Args:
    optimizer: an optimizer returned by `check_optimizer`.
    params: the model's parameters.
    key: random key of this model and optimizer. Random keys in the state are replaced
      by keys derived from it, so models that are trained together never share noise.
    extra: names returned by `offered`.
    why: the reason why no other arguments are offered, for the error message.

  Raises:
    ValueError: for an optimizer that needs other arguments than gradients, parameters
      and `extra`, or that does not train the released weights.
  """
  state = _or_refuse(lambda: optimizer.init(params), extra, why)
  state = jax.tree.map(jnp.asarray, state)
  for node in _nodes(state):
    if reason := _REFUSED.get(type(node).__name__):
      raise ValueError(f"the optimizer {reason}: use another one, {_EXAMPLE}")
  given = {"grad": params, "value_fn": _some_loss}
  given |= dict.fromkeys(("value", "noise_std"), jnp.float32(0))

  def update(state, params):
    arguments = {name: given[name] for name in extra}
    return optimizer.update(params, state, params, **arguments)

  updates, new = _or_refuse(lambda: jax.eval_shape(update, state, params), extra, why)
  for before, after in ((params, updates), (state, new)):
    if _shapes(before) != _shapes(after):
      raise ValueError(
        "the optimizer changes the structure, shapes or types of parameters or of its "
        f"own state: use another one, {_EXAMPLE}"
      )
  leaves, structure = jax.tree.flatten(state)
  own = (jax.random.fold_in(key, place) for place in range(len(leaves)))
  return structure.unflatten(
    [k if _is_key(leaf) else leaf for k, leaf in zip(own, leaves, strict=True)]
  )


def _or_refuse(run, extra, why):
  try:
    return run()
  except Exception as error:
    *names, last = ("gradients", "parameters", *extra)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ValueError(
      f"the optimizer cannot be used here ({reason}): it receives {', '.join(names)} "
      f"and {last}{why}"
    ) from error


def _some_loss(params):
  return jax.tree.reduce(lambda a, leaf: a + leaf.sum(), params, jnp.float32(0))


def _nodes(tree):
  """Yield a state and all named tuples nested in it."""
  yield tree
  inside = tree.values() if isinstance(tree, dict) else tree
  if isinstance(tree, dict | list | tuple):
    for one in inside:
      yield from _nodes(one)


def _is_key(leaf):
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shapes(tree):
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
