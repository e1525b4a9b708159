"""Networks that start from given parameters, or train only some of them.

A leaf is named by its path without the collection, such as "Dense_0/kernel".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mixdef.core.randomness import fold_in_name
from mixdef.core.reading import digest
from mixdef.models.network import Network

Chosen = Callable[[str], bool]  # the path of a leaf -> whether it is chosen

_FROZEN, _LORA = "frozen", "lora"
_SHOWN = 3  # paths in a message


def start_from(network: Network, given: Mapping[str, Any], fresh: Chosen) -> Network:
  """Let every model start from given parameters.

  Args:
    network: the model.
    given: its parameters, nested or by path; or its variables, with a collection
      "params".
    fresh: chooses the leaves that keep their random start, such as a new head.

  Raises:
    ValueError: when a model is made, for leaves that are missing, left over or of
      another shape.
  """
  flat = _flat(given)
  if not any(_head(path) == "params" for path in flat):
    flat = {f"params/{path}": leaf for path, leaf in flat.items()}
  flat = {p: _floats(leaf) for p, leaf in flat.items() if not fresh(_leaf(p))}

  def init(key, *xs):
    found = _flat(network.init(key, *xs))
    wanted = {path for path in found if not fresh(_leaf(path))}
    _refuse_paths("lack", [path for path in found if path in wanted - flat.keys()])
    _refuse_paths("also hold", [path for path in flat if path not in wanted])
    for path in sorted(wanted):
      if flat[path].shape != found[path].shape:
        raise ValueError(
          f"the given parameters hold {path} of shape {list(flat[path].shape)}, and "
          f"the model's is {list(found[path].shape)}: pass those of this model, or "
          f"fresh={_leaf(path)!r} to train it from a random start"
        )
    return _nested({path: flat.get(path, leaf) for path, leaf in found.items()})

  words = [digest(np.frombuffer(p.encode(), np.uint8), flat[p]) for p in sorted(flat)]
  text = f"{network.text}@{digest(np.array(words))}"
  return network._replace(init=init, given=lambda: flat, text=text)


def freeze(network: Network, chosen: Chosen) -> Network:
  """Keep some leaves at their start: they leave the gradient and the optimizer.

  Modules of which all leaves are frozen also keep their statistics and behave in
  training as in inference: BatchNorm uses its moving statistics and dropout is off. If
  all frozen leaves were given by `start_from`, all models share one copy of them;
  otherwise each keeps its own.

  Args:
    network: the model.
    chosen: chooses the frozen leaves.

  Raises:
    ValueError: when a model is made, if nothing or everything is frozen.
  """
  return _partly(network, chosen)


def lora(
  network: Network, *, rank: int, scale: float, layers: Chosen, train: Chosen
) -> Network:
  """Freeze a model but for a low-rank change of some kernels.

  ```
  W' = W + scale * A B,   A [inputs, rank] ~ U(-1, 1) / sqrt(inputs),   B = 0
  ```

  A kernel of more than two axes is taken as a matrix: all axes but the last, by the
  last. The released model uses W'.

  Args:
    network: the model.
    rank: of the change, at least 1.
    scale: alpha / rank of the paper.
    layers: chooses the kernels that are changed.
    train: chooses leaves that are trained themselves, such as a new head.

  Raises:
    ValueError: when a model is made, if no kernel is chosen.
  """

  def make(key, params):
    factors = {}
    for path, leaf in params.items():
      if leaf.ndim < 2 or not layers(path) or train(path):
        continue
      inputs, outputs = leaf[..., 0].size, leaf.shape[-1]
      bound = inputs**-0.5
      own = fold_in_name(key, path)
      a = jax.random.uniform(own, (inputs, rank), minval=-bound, maxval=bound)
      factors[path] = {"a": a, "b": jnp.zeros((rank, outputs))}
    if not factors:
      raise ValueError(f"no kernel is chosen by layers: the model has {_some(params)}")
    return factors

  def use(params, factors):
    changed = {
      path: params[path] + scale * (own["a"] @ own["b"]).reshape(params[path].shape)
      for path, own in factors.items()
    }
    return {**params, **changed}

  return _partly(network, lambda path: not train(path), _Added(make, use))


class _Added(NamedTuple):
  """Parameters that are trained in place of frozen ones."""

  make: Callable  # (key, frozen leaves by path) -> parameters
  use: Callable  # (all leaves by path, parameters) -> leaves


def _partly(network, chosen, added=None):
  """Return a network that trains what is not chosen, and what is added."""

  def frozen_of(found):
    """Return the paths, with their collections, of all that is frozen."""
    params = [_leaf(path) for path in found if _head(path) == "params"]
    still = _still(params, {path for path in params if chosen(path)})
    return {
      path
      for path in found
      if (chosen(_leaf(path)) if _head(path) == "params" else still(_module(path)))
    }

  def init(key, *xs):
    found = _flat(network.init(key, *xs))
    params = {_leaf(p): leaf for p, leaf in found.items() if _head(p) == "params"}
    chosen_ones = {path: leaf for path, leaf in params.items() if chosen(path)}
    if not chosen_ones or (len(chosen_ones) == len(params) and added is None):
      what = "nothing" if not chosen_ones else "everything"
      raise ValueError(f"{what} is frozen of a model of {_some(params)}: choose others")
    frozen = frozen_of(found)
    variables = _nested({p: leaf for p, leaf in found.items() if p not in frozen})
    variables.setdefault("params", {})
    if added:
      variables["params"][_LORA] = added.make(fold_in_name(key, _LORA), chosen_ones)
    if not frozen <= _given(network).keys():
      variables[_FROZEN] = {path: found[path] for path in frozen}
    return variables

  def apply(variables, *xs, train, key=None, weight=None):
    own, params = dict(variables), dict(variables["params"])
    more = params.pop(_LORA, None)
    held = own.pop(_FROZEN, None)
    trained = _flat({**own, "params": params})
    if held is None:
      given = _given(network)
      held = {path: given[path] for path in frozen_of({**given, **trained})}
    whole = {**trained, **held}
    leaves = {_leaf(p): leaf for p, leaf in whole.items() if _head(p) == "params"}
    names = {_leaf(path) for path in held if _head(path) == "params"}
    if added:
      leaves = added.use(leaves, more)
    running = network
    if train and network.still:
      running = network.still(_still(leaves, names))
    elif train and any(_head(path) != "params" for path in held):
      raise ValueError(
        "frozen layers of this model keep statistics, which only models of linen and "
        "NNX can hold still: freeze layers without BatchNorm"
      )
    whole |= {f"params/{path}": leaf for path, leaf in leaves.items()}
    outputs, stats = running.apply(
      _nested(whole), *xs, train=train, key=key, weight=weight
    )
    moved = {path: leaf for path, leaf in _flat(stats).items() if path in trained}
    return outputs, _nested(moved)

  return Network(init, apply, network.text)


def _still(leaves: Iterable[str], frozen: set[str]) -> Chosen:
  """Return whether a module, or one it is part of, has frozen leaves alone.

  Args:
    leaves: paths of all parameters.
    frozen: those that are frozen.
  """
  trained, held = set(), set()
  for path in leaves:
    for end in range(1, path.count("/") + 1):
      module = "/".join(path.split("/")[:end])
      (held if path in frozen else trained).add(module)

  def still(path):
    parts = path.split("/")
    modules = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(module in held - trained for module in modules)

  return still


def _given(network):
  return network.given() if network.given else {}


def _flat(tree):
  """Return the leaves of nested dictionaries by path; empty dictionaries vanish."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(dict(tree))
  return {"/".join(map(str, path)): leaf for path, leaf in flat.items()}


def _nested(flat):
  return traverse_util.unflatten_dict({tuple(p.split("/")): v for p, v in flat.items()})


def _head(path):
  return path.partition("/")[0]


def _leaf(path):
  return path.partition("/")[2]


def _module(path):
  return _leaf(path).rpartition("/")[0]


def _floats(leaf):
  array = np.asarray(leaf)
  return jnp.asarray(array, np.float32 if array.dtype.kind in "fV" else array.dtype)


def _some(paths):
  more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
  return f"{', '.join(list(paths)[:_SHOWN])}{more}"


def _refuse_paths(what, paths):
  if paths:
    raise ValueError(
      f"the given parameters {what} {_some(paths)}: pass those of this model, or "
      f"choose what starts at random, as fresh={_leaf(paths[0])!r}"
    )
