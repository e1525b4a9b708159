"""Networks that start from given parameters, or train only some of them.

A leaf is named by its path without the collection, such as "Dense_0/kernel".
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.randomness import fold_in_name
from mixdef.core.reading import digest
from mixdef.models.adapters import adapt
from mixdef.models.features import first_input, with_input
from mixdef.models.low_rank import call_changed, changed
from mixdef.models.network import Network, by_path, nested
from mixdef.models.weights import given_weights

Chosen = Callable[[str], bool]  # the path of a leaf -> whether it is chosen

_FROZEN, _LORA = "frozen", "lora"
_SHOWN = 20  # paths in a message


class _Partial(Network):
  """A network of which `freeze` or `lora` has chosen what is trained."""

  __slots__ = ()


def start_from(
  network: Network, given: Mapping[str, Any], fresh: Chosen | None = None
) -> Network:
  """Let every model start from given parameters.

  Args:
    network: the model.
    given: its parameters, nested or by path; or its variables, with a collection
      "params".
    fresh: chooses the leaves that keep their random start, such as a new head; None
      chooses none.

  Raises:
    ValueError: if `freeze` or `lora` came first; when a model is made, for leaves that
      are missing, unexpected or of another shape, and if `fresh` chooses none.
  """
  if isinstance(network, _Partial):
    raise ValueError("start_from comes after freeze, head_only or lora: put it first")
  is_fresh = fresh or _none
  flat = by_path(given)
  if not any(_head(path) == "params" for path in flat):
    flat = {f"params/{path}": leaf for path, leaf in flat.items()}
  flat = {p: _floats(leaf) for p, leaf in flat.items() if not is_fresh(_leaf(p))}

  def init(key, *xs):
    found = by_path(network.init(key, *xs))
    if fresh:
      _check_matched("fresh", fresh, map(_leaf, found))
    _refuse_others(flat, {p: v for p, v in found.items() if not is_fresh(_leaf(p))})
    return nested({path: flat.get(path, leaf) for path, leaf in found.items()})

  words = [digest(np.frombuffer(p.encode(), np.uint8), flat[p]) for p in sorted(flat)]
  text = f"{network.text}@{digest(np.array(words))}"
  return network._replace(init=init, given=lambda: flat, text=text)


def predictor(model: Any, params: Any) -> Callable[[Any], Any]:
  """Return a trained model as a function, for `audit_release`.

  Args:
    model: as in `adapt`.
    params: an `.npz`, a `.safetensors`, the folder of an Orbax checkpoint, or a nested
      dictionary of arrays, as in the defense `start_from`.

  Returns:
    A function x [B,...] -> outputs [B,K], in inference mode.

  Raises:
    ValueError: when it is called, for parameters of another model.

  >>> pair = lambda key, x: {"w": jnp.ones(2)}, lambda params, x: params["w"] * x
  >>> predictor(pair, {"w": np.array([1.0, 2.0])})(np.ones((1, 2)))
  Array([[1., 2.]], dtype=float32)
  """
  network = start_from(adapt(model), given_weights(params))

  @jax.jit
  def predict(x):
    variables = network.init(jax.random.key(0), x[:1])
    return network.apply(variables, x, train=False)[0]

  return predict


def freeze(network: Network, chosen: Chosen) -> Network:
  """Keep some leaves at their start: they leave the gradient and the optimizer.

  Modules whose leaves are all frozen also keep their statistics and behave in training
  as in inference: BatchNorm uses its moving statistics and dropout is off. (A pair of
  functions has no modules.) All models share one copy of the frozen leaves that were
  given by `start_from`; each model keeps the others.

  Args:
    network: the model.
    chosen: chooses the frozen leaves.

  Raises:
    ValueError: if `freeze` or `lora` came first; when a model is made, if nothing or
      everything is frozen.
  """
  return _partly(network, chosen, ("layers", chosen))


def head_only(network: Network, head: Chosen) -> Network:
  """Train the leaves of a head alone; the others are frozen, see `freeze`."""
  return _partly(network, lambda path: not head(path), ("head", head))


def lora(
  network: Network,
  *,
  rank: int,
  scale: float,
  layers: Chosen,
  train: Chosen | None = None,
) -> Network:
  """Freeze a model except for a low-rank change of some kernels.

  ```
  W' = W + scale * A B,   A [inputs, rank] ~ U(-1, 1) / sqrt(inputs),   B = 0
  ```

  A table of embeddings has A = 0 and B ~ N(0, 1) instead. A kernel of more than two
  axes is used as a matrix: its output axes are those of the layer's bias, or the last
  axis if there is no bias. Biases are frozen. The released model uses W'.

  Args:
    network: the model.
    rank: of the change, at least 1.
    scale: alpha / rank of the paper.
    layers: chooses the kernels that are changed.
    train: chooses leaves that are trained themselves, such as a new head; None chooses
      none.

  Raises:
    ValueError: if `freeze` or `lora` came first; when a model is made, if no kernel is
      chosen, or if `train` chooses no leaf.
  """
  is_trained = train or _none

  def make(key, params):
    if train:
      _check_matched("train", train, params)
    kernels = [
      path
      for path, leaf in params.items()
      if leaf.ndim >= 2 and _name(path) != "bias" and not is_trained(path)
    ]
    _check_matched("layers", layers, kernels)
    factors = {}
    for path in filter(layers, kernels):
      leaf, name = params[path], _name(path)
      bias = params.get(f"{path.removesuffix(name)}bias")
      inputs, outputs = _matrix(leaf.shape, () if bias is None else bias.shape)
      path_key = fold_in_name(key, path)
      if name == "embedding":
        a, b = jnp.zeros((inputs, rank)), jax.random.normal(path_key, (rank, outputs))
      else:
        bound = inputs**-0.5
        a = jax.random.uniform(path_key, (inputs, rank), minval=-bound, maxval=bound)
        b = jnp.zeros((rank, outputs))
      factors[path] = {"a": a, "b": b}
    return factors

  def use(params, factors):
    return {path: changed(params[path], scale, **one) for path, one in factors.items()}

  added = _Added(make, use)
  return _partly(network, lambda path: not is_trained(path), added=added)


def _matrix(kernel, bias):
  """Return the number of inputs and of outputs of a kernel, from the two shapes."""
  known = 0 < len(bias) < len(kernel) and kernel[-len(bias) :] == bias
  axes = len(bias) if known else 1
  return math.prod(kernel[:-axes]), math.prod(kernel[-axes:])


def _none(path):
  del path
  return False


class _Added(NamedTuple):
  """Parameters that are trained in place of frozen ones."""

  make: Callable  # (key, all leaves by path) -> parameters
  use: Callable  # (all leaves by path, parameters) -> changes of leaves by path


def _partly(network, chosen, given=None, added=None):
  """Return a network that trains what is not chosen, and what is added.

  `given` is the expression of the caller, by name, which has to match some leaf.
  """
  if isinstance(network, _Partial):
    raise ValueError(
      "two of freeze, head_only and lora choose what is trained: keep one of them"
    )

  def init(key, *xs):
    found = by_path(network.init(key, *xs))
    params = {_leaf(p): leaf for p, leaf in found.items() if _head(p) == "params"}
    if given:
      what, expression = given
      _check_matched(what, expression, params)
    names = {path for path in params if chosen(path)}
    if not names or (len(names) == len(params) and added is None):
      what = "everything" if names else "nothing"
      raise ValueError(
        f"{what} is frozen of the model, whose paths are {_some(params)}: choose others"
      )
    still = _still(params, names)
    frozen = {
      path
      for path in found
      if (_leaf(path) in names if _head(path) == "params" else still(_module(path)))
    }
    variables = nested({p: leaf for p, leaf in found.items() if p not in frozen})
    variables.setdefault("params", {})
    if added:
      variables["params"][_LORA] = added.make(fold_in_name(key, _LORA), params)
    if kept := frozen - _given(network).keys():
      variables[_FROZEN] = {path: found[path] for path in kept}
    return variables

  def prepared(variables, xs, **how):
    """Return the call of the whole model, its trained leaves and all that change."""
    variables, params = dict(variables), dict(variables["params"])
    factors = params.pop(_LORA, {})
    kept = variables.pop(_FROZEN, {})
    trained = by_path({**variables, "params": params})
    whole = {**_given(network), **trained, **kept}
    leaves = {_leaf(p): leaf for p, leaf in whole.items() if _head(p) == "params"}
    changes = added.use(leaves, factors) if added else {}
    leaves |= {path: change.kernel for path, change in changes.items()}
    running = network
    frozen = whole.keys() - trained.keys()
    if how["train"] and network.still:
      names = {_leaf(path) for path in frozen if _head(path) == "params"}
      running = network.still(_still(leaves, names))
    elif how["train"] and any(_head(path) != "params" for path in frozen):
      raise ValueError(
        "this model has no `still`, so its frozen layers would update their "
        "statistics: freeze layers without BatchNorm"
      )
    whole |= {f"params/{path}": leaf for path, leaf in leaves.items()}
    run = functools.partial(running.apply, nested(whole), *xs, **how)
    run = functools.partial(call_changed, run, changes.values())
    changing = factors.keys() | {_leaf(p) for p in trained if _head(p) == "params"}
    return run, trained, changing

  def apply(variables, *xs, train, key=None, weight=None, features=None):
    how = {"train": train, "key": key, "weight": weight}
    run, trained, changing = prepared(variables, xs, **how)
    outputs, stats = run() if features is None else with_input(run, changing, features)
    moved = {path: leaf for path, leaf in by_path(stats).items() if path in trained}
    return outputs, nested(moved)

  def features(variables, x, key, weight):
    how = {"train": True, "key": key, "weight": weight}
    run, _, changing = prepared(variables, [x], **how)
    return first_input(run, changing)

  return _Partial(init, apply, network.text, features=features, name=network.name)


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


def _head(path):
  return path.partition("/")[0]


def _leaf(path):
  return path.partition("/")[2]


def _module(path):
  return _leaf(path).rpartition("/")[0]


def _name(path):
  return path.rpartition("/")[2]


def _floats(leaf):
  array = np.asarray(leaf)
  with jax.ensure_compile_time_eval():  # a sweep makes its chains inside a trace
    return jnp.asarray(array, np.float32 if array.dtype.kind in "fV" else array.dtype)


def _some(paths):
  more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
  return f"{', '.join(list(paths)[:_SHOWN])}{more}"


def _whole(path):
  """Return an expression for the leaves of the module of a leaf, as an example."""
  module = path.rpartition("/")[0]
  return f"{module}/.*" if module else path


def _check_matched(what, chosen, paths):
  paths = list(paths)
  if not any(map(chosen, paths)):
    example = _whole(paths[-1]) if paths else "head/.*"
    raise ValueError(
      f"{what} matches no path of the model, {_some(paths) or 'which has none'}: write "
      f"an expression for whole paths, as {what}={example!r}"
    )


def _refuse_others(given, wanted):
  """Raise if leaves are missing, unexpected or of another shape, naming all of them."""

  def shape(leaves, path):
    return list(leaves[path].shape)

  both = [path for path in wanted if path in given]
  other = [path for path in both if given[path].shape != wanted[path].shape]
  missing = [path for path in wanted if path not in given]
  unknown = [path for path in given if path not in wanted]
  faults = {
    "lack": [f"{path} {shape(wanted, path)}" for path in missing],
    "hold": [
      f"{path} {shape(given, path)} instead of {shape(wanted, path)}" for path in other
    ],
    "also hold": [f"{path} {shape(given, path)}" for path in unknown],
  }
  said = [f"{what} {_some(found)}" for what, found in faults.items() if found]
  if said:
    first = _leaf([*other, *missing, *unknown][0])
    raise ValueError(
      f"the given parameters {'; '.join(said)}: pass those of this model, or choose "
      "what starts at random by an expression for whole paths, as "
      f"fresh={_whole(first)!r}"
    )
