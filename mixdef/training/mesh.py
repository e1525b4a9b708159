"""One program over the models of an ensemble, split over the devices of this process.

Shadow models do not communicate, so each device runs the same program on its share of
the models, and no values are exchanged between devices. Each of several hosts does this
with its own shadow models; see `hosts`.
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
  """Return the number of devices that this process trains on."""
  return len(jax.local_devices())


def on_all_devices(tree):
  """Replicate arrays on every device of this process."""
  if num_devices() == 1:
    return jax.tree.map(jnp.asarray, tree)
  return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def evenly(count: int, strategy: str) -> int:
  """Round `count` models up to a multiple of the devices that a strategy uses."""
  each = num_devices() if strategy in ("vmap", "scan") else 1
  return -(-count // each) * each


def spread(tree):
  """Shard arrays over the devices of this process along the axis of models."""
  if num_devices() == 1:
    return jax.device_put(tree)
  return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(_AXIS)))


def on_one_device(tree):
  """Put arrays on the first device, for a program over one model."""
  return tree if num_devices() == 1 else jax.device_put(tree, jax.local_devices()[0])


def compiled(function: Callable, *, shared: int) -> Callable:
  """Compile a function over models, and split the models equally over the devices.

  Args:
    function: takes arguments with a leading axis of models, followed by `shared`
      arguments used by all models. Its result for a model must not depend on the other
      models.
    shared: number of shared arguments.

  Returns:
    The compiled function. Its `lower` is that of one device. If the number of models is
    not a multiple of the number of devices, the last model is repeated as padding; see
    `evenly`.
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
