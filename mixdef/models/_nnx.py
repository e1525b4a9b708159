"""Modules of flax.nnx as a `Network`.

A module is split once, on the host, into its structure and the kinds of its variables.
Inside the step it is merged from them again, called and split, so that no
object outside the step is mutated.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixdef.core.randomness import fold_in_name, random_key
from mixdef.core.reading import digest
from mixdef.core.text import text_of
from mixdef.data import to_float
from mixdef.models.network import (
  OFF,
  ON,
  Network,
  check_factory,
  flags,
  is_flag,
  parameters_of,
  phase,
  refuse_unknown,
  shapes_of,
)
from mixdef.models.nnx_calls import fresh_stream, watched

_OF_ANY_ROWS = (nnx.BatchNorm, nnx.SpectralNorm)  # what they keep ignores padding
_STATS = ("batch_stats", "variables")


class _Parts(NamedTuple):
  """The arrays of a module: pure dictionaries, by the kind of their variables."""

  params: Any
  batch_stats: Any
  keys: Any
  counts: Any
  constants: Any  # arrays that are not variables
  variables: Any  # every other kind

  @classmethod
  def of(cls, module):
    """Return the structure of a module, and its parts."""

    def constant(path, value):
      del path
      return not isinstance(value, nnx.Variable)

    kinds = (nnx.Param, nnx.BatchStat, nnx.RngKey, nnx.RngCount, constant, ...)
    for _, node in nnx.iter_graph(module):
      for name, value in _arrays(node).items():  # inside a trace, NNX overlooks them
        setattr(node, name, nnx.data(value))
    graphdef, *states = nnx.split(module, *kinds)
    return graphdef, cls(*map(nnx.to_pure_dict, states))


def adapt_nnx(
  model: Any, inputs: int = 1, still: Callable[[str], bool] | None = None
) -> Network:
  """Create a `Network` from a module of NNX, its class, or a function `rngs -> module`.

  The module is in `train()` mode in training and in `eval()` mode otherwise. A flag of
  training is also passed to its `__call__`, under the names that linen modules may
  use, and so are `weight` [B] and `rngs`. In training, random streams of any name start
  from the step's key, each layer's from a separate key. `nnx.BatchNorm` excludes
  padded rows from its statistics. The collections are named by the kind of variable:
  `params`, `batch_stats`, other `variables`, and `constants`, arrays that are not
  variables.

  Args:
    model: a class or a function makes new parameters for every model that is trained;
      a module has the parameters that every model starts from.
    inputs: number of arrays that it is called with.
    still: path of a submodule -> whether it behaves in training as in inference.

  Raises:
    TypeError: for a function that returns another object.
    ValueError: for a module that needs what a learner does not know, cannot be made
      inside a trace, or would let padded rows enter what it keeps; when applied, for
      one that draws random numbers in inference, or whose dropout or statistics
      never act.
  """
  make, name = _maker(model)
  graphs: dict[bool, Any] = {}
  found: dict[str, Any] = {}

  def taken_apart(key):
    module = make(nnx.Rngs(key))
    if not isinstance(module, nnx.Module):
      raise TypeError(
        f"model is {name}, which makes a {type(module).__name__}: let it return a "
        "module of flax.nnx"
      )
    if not found:
      found["call"] = parameters_of(type(module).__call__, bound=False)
      found["name"] = type(module).__name__
      found["text"] = _structure(module)
      found["loose"] = _statistics_of_padding(module)
      for train in (True, False):
        graphs[train] = _Parts.of(_in_phase(module, train, still))[0]
    return _Parts.of(module)[1]

  shapes = shapes_of(taken_apart, name, "rngs")
  called, takes = f"{found['name']}.__call__", found["call"]
  names = list(takes.items())
  known = {*ON, *OFF, "weight", "rngs"}
  refuse_unknown(called, dict([*names[:1], *names[inputs:]]), known)
  if found["loose"] and "weight" not in takes:
    raise ValueError(
      f"{found['loose']} keeps statistics, which padded rows would enter: let {called} "
      "take weight [B], 0 for padding, and exclude them"
    )
  structure = jax.tree.structure(_named(shapes.params))

  def init(key, *xs):
    del xs
    parts = taken_apart(key)._asdict()
    kept = {n: parts[n] for n in (*_STATS, "constants") if jax.tree.leaves(parts[n])}
    return {n: _named(tree) for n, tree in {"params": parts["params"], **kept}.items()}

  def call(variables, xs, *, train, key, weight):
    """Return the outputs, the module after the call, and the variables it changed."""
    if jax.tree.structure(_named(variables["params"])) != structure:
      raise ValueError(f"the parameters are not those of {found['name']}")
    leaves, tree = jax.tree.flatten(shapes.keys)
    root = random_key(0) if key is None else key
    base = fold_in_name(root, "layers")
    own = [fresh_stream(k, jax.random.fold_in(base, i)) for i, k in enumerate(leaves)]
    given = {
      n: _unnamed(_named(variables.get(n, {})), getattr(shapes, n))
      for n in ("params", *_STATS, "constants")
    }
    counts = jax.tree.map(fresh_stream, shapes.counts)
    parts = _Parts(keys=tree.unflatten(own), counts=counts, **given)
    module, rngs = nnx.merge(graphs[train], *parts), nnx.Rngs(root)
    before = {**_values(module), **_values(rngs)}
    offered = {"weight": weight, "rngs": rngs, **phase(flags(takes), train)}
    options = {n: value for n, value in offered.items() if n in takes}
    with watched(module, train=train, weight=weight, still=still):
      outputs: Any = module(*map(to_float, xs), **options)
    after = {**_values(module), **_values(rngs)}
    changed = [at for at, value in before.items() if after.get(at) is not value]
    return outputs, module, changed

  def apply(variables, *xs, train, key=None, weight=None):
    how = {"train": train, "key": key, "weight": weight}
    outputs, module, changed = call(variables, xs, **how)
    kept = {n: variables[n] for n in variables if n != "params"}
    if not train:
      # A recurrent layer takes keys that it does not use.
      drew = any(issubclass(kind, nnx.RngCount) for _, kind in changed)
      if drew and _draws(lambda *xs: call(variables, xs, **how)[0], xs):
        raise ValueError(
          f"{found['name']} draws random numbers when it predicts: draw only if the "
          "flag set by train() and eval() allows it, as nnx.Dropout does"
        )
      return outputs, kept
    loose = [at for at, kind in changed if not issubclass(kind, _KNOWN)]
    if loose and weight is not None and "weight" not in takes:
      raise ValueError(
        f"{loose[0]} changes in training, and padded rows would enter it: let {called} "
        "take weight [B], 0 for padding, and exclude them"
      )
    _, parts = _Parts.of(module)
    old = {n: kept[n] for n in _STATS if n in kept}
    new = {n: _like(_named(getattr(parts, n)), old[n]) for n in old}
    if weight is not None:  # a batch of only padding has no statistics
      some = (weight > 0).any()
      new = jax.tree.map(lambda a, b: jnp.where(some, a, b), new, old)
    return outputs, new

  text = f"{name}{found['text']}"
  still_of = functools.partial(adapt_nnx, model, inputs)
  return Network(init, apply, text, still=still_of, name=found["name"])


_KNOWN = (nnx.Param, nnx.BatchStat, nnx.RngState)


def _maker(model):
  """Return the function from `rngs` to a module, and the name of the model."""
  if isinstance(model, nnx.Module):
    leaves = map(_bits, jax.tree.leaves(nnx.state(model)))
    name = f"{type(model).__qualname__}@{digest(*leaves)}"
    return lambda rngs: nnx.clone(model), name
  check_factory(model, "rngs")
  return lambda rngs: model(rngs=rngs), text_of(model)


def _bits(leaf):
  is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _in_phase(module, train, still):
  """Set the flags of all layers, and return the module."""
  for path, node in nnx.iter_graph(module):
    if isinstance(node, nnx.Module):
      held = [name for name in flags(vars(node)) if is_flag(vars(node)[name])]
      own = train and not (still and still("/".join(map(str, path))))
      for name, value in phase(held, own).items():
        setattr(node, name, value)
  return module


def _structure(module):
  """Hash the types, settings, sharing and shapes of a module's nodes."""
  lines = []
  for path, node in nnx.iter_graph(module):
    where = "/".join(map(str, path))
    if "_pytree__" in where:
      continue
    if isinstance(node, nnx.Variable):
      value = node.get_raw_value()
      what = f"{type(node).__name__} {value.dtype}{list(value.shape)}"
    elif isinstance(node, nnx.Pytree):
      what = type(node).__qualname__
    else:
      is_array = isinstance(node, jax.Array | np.ndarray)
      what = f"{node.dtype}{list(node.shape)}" if is_array else text_of(node)
    lines.append(f"{where}: {what}")
  words = "\n".join(sorted(lines)).encode()
  return f"#{digest(np.frombuffer(words, np.uint8))}"


def _statistics_of_padding(module):
  """Return the path of a custom module that keeps statistics, or ""."""
  for path, node in nnx.iter_graph(module):
    custom = isinstance(node, nnx.Module) and type(node) not in _OF_ANY_ROWS
    if custom and any(
      isinstance(value, nnx.BatchStat) for value in vars(node).values()
    ):
      return "/".join(map(str, path)) or type(node).__name__
  return ""


def _named(tree):
  """Return a pure dictionary whose keys are names; places in a list are numbers."""
  if not isinstance(tree, dict):
    return tree
  return {str(key): _named(value) for key, value in tree.items()}


def _unnamed(tree, like):
  """Return a dictionary of `_named` with the keys that it had."""
  if not isinstance(like, dict):
    return tree
  return {key: _unnamed(tree[str(key)], value) for key, value in like.items()}


def _arrays(node):
  """Return the arrays of a module that are not variables, by name."""
  held = vars(node).items() if isinstance(node, nnx.Module) else ()
  return {name: value for name, value in held if isinstance(value, jax.Array)}


def _values(module):
  """Return the arrays of all variables of a module, by path and kind."""
  return {
    ("/".join(map(str, path)), type(node)): node.get_raw_value()
    for path, node in nnx.iter_graph(module)
    if isinstance(node, nnx.Variable)
  }


def _draws(run, xs):
  return "random_bits" in str(jax.make_jaxpr(run)(*xs))


def _like(new, old):
  """Drop entries that a call added, as `sow` does."""
  if not isinstance(old, dict):
    return new
  return {name: _like(new[name], old[name]) for name in old}
