"""A plain pair of functions `(init, apply)` as a `Network`."""

from typing import Any

import jax
import jax.numpy as jnp

from mixdef.core.text import text_of
from mixdef.data import to_float
from mixdef.models.network import (
  OFF,
  ON,
  Network,
  flags,
  parameters_of,
  phase,
  refuse_unknown,
)

_KEYS = ("key", "rng")


def adapt_pair(pair: Any, inputs: int = 1) -> Network:
  """Create a `Network` from `init(key, x) -> params` and `apply(params, x) -> outputs`.

  `init` may omit the argument `x`. `apply` may also take a training flag, under the
  names that linen modules may use, `weight` [B], and `key` or `rng`, the random key of
  a step, which is None in inference. A pair has no variables other than parameters.

  Args:
    pair: the two functions.
    inputs: number of arrays that `apply` takes after the parameters.

  Raises:
    ValueError: for a function that needs what a learner does not know.
  """
  make, run = pair
  taken = list(parameters_of(run, bound=True).items())
  known = {*ON, *OFF, *_KEYS, "weight"}
  name = f"apply of {text_of(pair)}"
  refuse_unknown(name, dict([*taken[1:2], *taken[1 + inputs :]]), known)
  takes = {n for n, _ in taken[1 + inputs :]}
  wanted = [
    one
    for one in parameters_of(make, bound=True).values()
    if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    and one.default is one.empty
  ]
  if len(wanted) not in (1, 1 + inputs):
    raise ValueError(
      f"init of {text_of(pair)} takes {len(wanted)} arguments: let it take a key, or a "
      "key and x"
    )

  def init(key, *xs):
    params = make(key, *map(to_float, xs[: len(wanted) - 1]))
    return {"params": jax.tree.map(jnp.asarray, params)}

  def apply(variables, *xs, train, key=None, weight=None):
    given = {"weight": weight, **dict.fromkeys(_KEYS, key if train else None)}
    options = {n: value for n, value in given.items() if n in takes}
    options |= phase(flags(takes), train)
    return run(variables["params"], *map(to_float, xs), **options), {}

  text = text_of(tuple(pair))
  return Network(init, apply, text, name=text)
