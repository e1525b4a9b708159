"""One program over the models of an ensemble, split over the devices of this process.

Shadows never talk to each other, so a device runs the same program on its share of them
and no value crosses from one to another. Several hosts each do this with the shadows
that are theirs, see `hosts`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXIS = "shadow"


@functools.cache
def _mesh() -> Mesh:
  devices = np.array(jax.local_devices())
  return Mesh(devices, (_AXIS,), axis_types=(AxisType.Auto,))


def num_devices() -> int:
  """Return how many devices this process trains on."""
  return len(jax.local_devices())


def on_all_devices(tree):
  """Put arrays whole on every device of this process."""
  if num_devices() == 1:
    return jax.tree.map(jnp.asarray, tree)
  return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def evenly(count: int, strategy: str) -> int:
  """Return how many models fill the devices that a strategy uses, at least `count`."""
  each = num_devices() if strategy in ("vmap", "scan") else 1
  return -(-count // each) * each


def spread(tree):
  """Put arrays on the devices of this process, each its share of the models."""
  if num_devices() == 1:
    return jax.device_put(tree)
  return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(_AXIS)))


def on_one_device(tree):
  """Put arrays on the first device, for a program over one model."""
  return tree if num_devices() == 1 else jax.device_put(tree, jax.local_devices()[0])


def compiled(function: Callable, *, shared: int) -> Callable:
  """Compile a function over models; several devices take equal shares of them.

  Args:
    function: of arguments that lead with the models, and of `shared` last ones that all
      models use; it treats each model alike, whatever models are beside it.
    shared: number of those last ones.

  Returns:
    The compiled function. Its `lower` is that of one device. If the devices do not
    divide the models, the last model fills up; see `evenly`.
  """
  if num_devices() == 1:
    return jax.jit(function)
  return _Sharded(function, shared)


class _Sharded:
  def __init__(self, function, shared):
    self._shared = shared
    self.lower = jax.jit(function).lower

    def split(*args):
      own = (PartitionSpec(_AXIS),) * (len(args) - shared)
      every = (PartitionSpec(),) * shared
      return jax.shard_map(
        function,
        mesh=_mesh(),
        in_specs=own + every,
        out_specs=PartitionSpec(_AXIS),
        check_vma=False,
      )(*args)

    self._split = jax.jit(split)

  def __call__(self, *args):
    own, rest = args[: -self._shared], args[-self._shared :]
    count = jax.tree.leaves(own)[0].shape[0]
    padding = -count % num_devices()
    if padding:
      rows = np.minimum(np.arange(count + padding), count - 1)
      own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], own)
    outputs = self._split(*spread(own), *on_all_devices(rest))
    if padding:
      outputs = jax.tree.map(lambda leaf: leaf[:count], outputs)
    return outputs
