"""An entry of a store: one npz file that holds a pytree of arrays and a few notes.

An entry is written completely or not at all. Checksums detect later damage to the
arrays or the notes.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from mixdef.core.files import whole_file
from mixdef.core.randomness import KEY_IMPLEMENTATION
from mixdef.core.reading import (
  Damaged,
  check_form,
  digest,
  parse_json,
  read_npz,
  seal,
  unsealed,
)

_NOTES = "notes.json"  # the last array of the file: the bytes of the notes
_DIGEST = "arrays"  # the note that detects replaced arrays
_WHAT, _FIX = "cannot be read", "it is created again"


def write(path: pathlib.Path, tree, notes: dict) -> None:
  """Write a pytree, replacing any existing entry at the path.

  Args:
    path: path of the entry, an npz file.
    tree: pytree of arrays; random keys are written as their bits.
    notes: anything JSON can represent.
  """
  arrays: dict[str, Any] = {name: _bits(leaf) for name, leaf in _named(tree).items()}
  text = json.dumps(seal({**notes, _DIGEST: _digest(arrays)}))
  with whole_file(path) as file:
    np.savez(file, **arrays | {_NOTES: np.frombuffer(text.encode(), np.uint8)})


def read(path: pathlib.Path, template):
  """Read a pytree; `template` gives its structure, shapes and types.

  Raises:
    Damaged: if the file is missing, cut short or altered, or holds another tree.
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
    Damaged: if the file is missing, cut short or altered.
  """
  arrays, notes = _read(path)
  if _digest(arrays) != notes[_DIGEST]:
    raise _damaged(path, "its arrays are not those that were written")
  return arrays


def read_notes(path: pathlib.Path, form: Any = dict) -> dict:
  """Read the notes of an entry.

  Args:
    path: path of the entry.
    form: required form of the notes, as in `check_form`.

  Raises:
    Damaged: if the file is missing, its notes are altered or of another form.
  """
  _, notes = _read(path, [_NOTES])
  try:
    check_form(notes, form)
  except ValueError as error:
    raise _damaged(path, error) from None
  return notes


def _read(path, names=None):
  """Return the arrays and the notes of an entry."""
  try:
    arrays = read_npz(path, what=_WHAT, fix=_FIX, names=names)
    text = arrays.pop(_NOTES).tobytes()
    return arrays, unsealed(parse_json(text, {_DIGEST: str}))
  except FileNotFoundError:
    raise _damaged(path, "it is missing") from None
  except KeyError:
    raise _damaged(path, "no notes say what it was made from") from None
  except Damaged:
    raise
  except ValueError as error:
    raise _damaged(path, error) from None


def _damaged(path, reason) -> Damaged:
  return Damaged(f"{path} {_WHAT}: {reason}; {_FIX}")


def _digest(arrays) -> str:
  """Hash names and arrays; small float types as the bits stored in the file."""
  parts = []
  for name, array in sorted(arrays.items()):
    small = array.dtype.kind == "V"
    parts += [name, array.view(f"u{array.dtype.itemsize}") if small else array]
  return digest(*parts)


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
