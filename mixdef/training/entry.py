"""An entry of a store: a pytree of arrays and a few notes, written atomically.

Orbax makes an entry atomic: it is written to a temporary folder and renamed. Orbax's
array handlers reject arrays held by only one of several processes, so the arrays of an
entry are stored in one npz file. Checksums detect later damage to the file or notes.
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from mixdef.core.randomness import KEY_IMPLEMENTATION
from mixdef.core.reading import (
  Damaged,
  check_form,
  digest,
  read_json,
  read_npz,
  seal,
  unsealed,
)

_ARRAYS = "arrays.npz"
_NOTES = "_CHECKPOINT_METADATA"  # the file in which Orbax stores them
_DIGEST = "arrays"  # the note that detects replaced arrays
_WHAT, _FIX = "cannot be read", "it is made anew"


def write(path: pathlib.Path, tree, notes: dict) -> None:
  """Write a pytree, replacing any existing entry at the path.

  Args:
    path: path of the entry, a folder.
    tree: pytree of arrays; random keys are written as their bits.
    notes: anything JSON can represent.
  """
  checkpointer, arguments = _orbax()
  arrays = {name: _bits(leaf) for name, leaf in _named(tree).items()}
  notes = seal({**notes, _DIGEST: _digest(arrays)})
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
    raise _damaged(path, error) from None
  if arrays:
    raise _damaged(path, f"nothing here has a place for {', '.join(arrays)}")
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Read an entry whose tree was a flat dict.

  Raises:
    Damaged: if a file is missing, cut short or altered.
  """
  written = read_notes(path)[_DIGEST]
  try:
    arrays = read_npz(path / _ARRAYS, what=_WHAT, fix=_FIX)
  except FileNotFoundError:
    raise _damaged(path, f"{_ARRAYS} is missing") from None
  if _digest(arrays) != written:
    raise _damaged(path, "its arrays are not those that were written")
  return arrays


def read_notes(path: pathlib.Path, form: Any = dict) -> dict:
  """Read the notes of an entry.

  Args:
    path: path of the entry.
    form: required form of the notes, as in `check_form`.

  Raises:
    Damaged: if they are missing, altered or of another form.
  """
  outer = {"custom_metadata": {_DIGEST: str}}
  try:
    written = read_json(path / _NOTES, form=outer, what=_WHAT, fix=_FIX)
    notes = unsealed(written["custom_metadata"])
    check_form(notes, form)
    return notes
  except FileNotFoundError:
    raise _damaged(path, "no notes say what it was made from") from None
  except Damaged:
    raise
  except ValueError as error:
    raise _damaged(path / _NOTES, error) from None


def _damaged(path, reason) -> Damaged:
  return Damaged(f"{path} {_WHAT}: {reason}; {_FIX}")


def _digest(arrays) -> str:
  """Hash names and arrays; small float types as the bits stored in the file."""
  parts = []
  for name, array in sorted(arrays.items()):
    small = array.dtype.kind == "V"
    parts += [name, array.view(f"u{array.dtype.itemsize}") if small else array]
  return digest(*parts)


@functools.cache
def _orbax():
  """Return the checkpointer of this process, and the class of its arguments."""
  import orbax.checkpoint as ocp

  class Handler(ocp.CheckpointHandler):
    def save(self, directory, args):
      with (directory / _ARRAYS).open("wb") as file:
        np.savez(file, **args.arrays)

    def restore(self, directory, args=None):
      """Do nothing: `read_arrays` reads the file."""

    def finalize(self, directory):
      """Do nothing: the file is complete when `save` returns."""

    def close(self):
      """Do nothing: no resources are held."""

  @ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
  class Arguments(ocp.args.CheckpointArgs):
    def __init__(self, arrays=None):
      self.arrays = arrays

  # Each process writes its own entries, so no process waits for another.
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
  """Return whether an array holds random keys."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(leaf):
  return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _restored(array, like):
  """Restore an array's type, because npz supports neither random keys nor bfloat16."""
  if is_key(like):
    array = jax.random.wrap_key_data(array, impl=KEY_IMPLEMENTATION)
  elif array.dtype.kind == "V":
    array = array.view(like.dtype)
  if (array.shape, array.dtype) != (like.shape, like.dtype):
    raise ValueError(
      f"{array.dtype}{array.shape} where {like.dtype}{like.shape} belongs"
    )
  return array
