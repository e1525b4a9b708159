"""One entry of a store: a pytree of arrays and a few notes, all of it or nothing.

Orbax makes an entry atomic: it is written beside its place and renamed into it. Its
array handlers refuse what only one process of several holds, so the arrays of an entry
are one npz file, whose checksums also tell when it was damaged later.
"""

import functools
import pathlib
import zipfile

import jax
import numpy as np

_ARRAYS = "arrays.npz"


class Damaged(ValueError):
  """An entry cannot be read back."""


def write(path: pathlib.Path, tree, notes: dict) -> None:
  """Write a pytree, replacing an entry of the same path.

  Args:
    path: of the entry, a folder.
    tree: pytree of arrays; random keys are written as their bits.
    notes: anything JSON holds.
  """
  checkpointer, arguments = _orbax()
  arrays = {name: _bits(leaf) for name, leaf in _named(tree).items()}
  checkpointer.save(path, args=arguments(arrays), force=True, custom_metadata=notes)


def read(path: pathlib.Path, template):
  """Read a pytree; `template` gives its structure, shapes and types.

  Raises:
    Damaged: if a file is missing, cut short or altered, or holds another tree.
  """
  arrays = read_arrays(path)
  try:
    leaves = [
      _restored(arrays.pop(name), like) for name, like in _named(template).items()
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise Damaged(f"{path} cannot be read: {error}") from None
  if arrays:
    raise Damaged(
      f"{path} holds {', '.join(arrays)}, which nothing here has a place for"
    )
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Read an entry whose tree was a flat dict.

  Raises:
    Damaged: if a file is missing, cut short or altered.
  """
  checkpointer, arguments = _orbax()
  try:
    return checkpointer.restore(path, args=arguments())
  except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise Damaged(f"{path} cannot be read: {error}") from None


def read_notes(path: pathlib.Path) -> dict:
  """Read the notes of an entry.

  Raises:
    Damaged: if they are missing.
  """
  checkpointer, _ = _orbax()
  try:
    notes = checkpointer.metadata(path).custom_metadata
  except (OSError, KeyError, ValueError) as error:
    raise Damaged(f"the notes of {path} cannot be read: {error}") from None
  if not notes:
    raise Damaged(f"{path} cannot be read: no notes say what it was made from")
  return notes


@functools.cache
def _orbax():
  """Make the checkpointer of this process, and the class of its arguments."""
  import orbax.checkpoint as ocp

  class Handler(ocp.CheckpointHandler):
    def save(self, directory, args):
      with (directory / _ARRAYS).open("wb") as file:
        np.savez(file, **args.arrays)

    def restore(self, directory, args=None):
      with (
        (directory / _ARRAYS).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
      ):
        return dict(arrays)

    def finalize(self, directory):
      """Do nothing: the file is whole when `save` returns."""

    def close(self):
      """Do nothing: nothing is held."""

  @ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
  class Arguments(ocp.args.CheckpointArgs):
    def __init__(self, arrays=None):
      self.arrays = arrays

  # Each process writes entries of its own, so none waits for another.
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
  )
  return ocp.Checkpointer(Handler(), multiprocessing_options=alone), Arguments


def _named(tree):
  named = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf
    for path, leaf in named
  }


def is_key(leaf) -> bool:
  """Tell whether an array holds random keys."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(leaf):
  return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _restored(array, like):
  """Give an array back its type: npz knows neither random keys nor bfloat16."""
  if is_key(like):
    array = jax.random.wrap_key_data(array)
  elif array.dtype.kind == "V":
    array = array.view(like.dtype)
  if (array.shape, array.dtype) != (like.shape, like.dtype):
    raise ValueError(
      f"{array.dtype}{array.shape} where {like.dtype}{like.shape} belongs"
    )
  return array
