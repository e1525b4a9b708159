"""Export of functions of one model as programs for worker processes."""

import itertools
from collections.abc import Callable

import jax

from mixdef.kernels import onednn
from mixdef.training.workers.pool import Program, pool

_numbers = itertools.count()


class NotExportable(ValueError):
  """The function cannot be sent to other processes."""


def in_workers(function: Callable, *, shared: int, traced: Callable) -> Callable:
  """Map a function of one model over S of them in the worker processes.

  Args:
    function: a pure function of arrays and random keys. The last `shared` arguments are
      the same for all models; the leaves of the others have a leading axis S.
    shared: number of shared arguments, at least 1.
    traced: equivalent function, used inside JAX transformations.

  Returns:
    The function over S models.

  Raises:
    ValueError: if jax does not run on a CPU.
    NotExportable: on the first call, for a function that calls back into Python.
    RuntimeError: from the function over S models, if a worker dies or fails.
  """
  if jax.default_backend() != "cpu":
    raise ValueError(
      f"strategy='processes' is for CPUs, but jax runs on {jax.default_backend()!r}: "
      "use strategy='auto'"
    )
  exported = {}

  def over_workers(*args):
    leaves, tree = jax.tree.flatten(args)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      return traced(*args)
    own = len(jax.tree.leaves(args[:-shared]))
    kinds = [_kind_of_key(leaf) for leaf in leaves]
    bits = [_bits(leaf) for leaf in leaves]
    shapes = [b.shape[1:] for b in bits[:own]] + [b.shape for b in bits[own:]]
    dtypes = [leaf.dtype for leaf in bits]
    called = tree, *zip(kinds, shapes, dtypes, strict=True)
    if called not in exported:
      specs = list(map(jax.ShapeDtypeStruct, shapes, dtypes))
      exported[called] = _export(function, tree, kinds, specs, own)
    program = exported[called]
    outputs = pool().run(program, bits[:own], bits[own:])
    outputs = map(_with_keys, outputs, program.kinds)
    return jax.tree.unflatten(program.tree, outputs)

  return over_workers


def _export(function, tree, kinds, specs, own):
  """Lower a function to a program of plain arrays that other processes can run."""
  from jax import export

  structure_and_kinds = []

  def flat(*arrays):
    args = jax.tree.unflatten(tree, map(_with_keys, arrays, kinds))
    leaves, structure = jax.tree.flatten(function(*args))
    structure_and_kinds[:] = structure, [_kind_of_key(leaf) for leaf in leaves]
    return [_bits(leaf) for leaf in leaves]

  compiled = jax.jit(flat)
  jax.eval_shape(compiled, *specs)  # raises the function's own errors here
  try:
    ours = [export.DisabledSafetyCheck.custom_call(name) for name in onednn.TARGETS]
    exported = export.export(compiled, platforms=["cpu"], disabled_checks=ours)(*specs)
    blob = bytes(exported.serialize())
  except (NotImplementedError, ValueError) as problem:
    reason = str(problem).splitlines()[0]
    raise NotExportable(
      f"strategy='processes' cannot send {function.__name__!r} to other processes "
      f"({reason}): use --strategy=loop"
    ) from problem
  return Program(
    next(_numbers),
    blob,
    [name for name in onednn.TARGETS if name in exported.mlir_module()],
    specs[:own],
    specs[own:],
    exported.out_avals,
    *structure_and_kinds,
  )


def _kind_of_key(leaf):
  """Return the implementation of random keys, or None for other arrays."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.key_impl(leaf)
  return None


def _bits(leaf):
  return jax.random.key_data(leaf) if _kind_of_key(leaf) else leaf


def _with_keys(array, kind):
  return jax.random.wrap_key_data(array, impl=kind) if kind else array
