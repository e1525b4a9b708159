"""Parameters in files: npz, safetensors, or an Orbax checkpoint."""

import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from mixdef.core import extras
from mixdef.core.files import exists, on_bucket, path_of, read_bytes, whole_file
from mixdef.core.reading import read_npz

_FIX = "pass an .npz, a .safetensors or the folder of an Orbax checkpoint"


def read_weights(path: str | pathlib.Path) -> dict[str, Any]:
  """Return the arrays of a file by path, or the tree of an Orbax checkpoint.

  Names with dots instead of slashes, as in safetensors, are read as paths. Pickled
  files are never read.

  Args:
    path: `.npz`, `.safetensors`, or the folder of an Orbax checkpoint.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: for another kind of file, or a damaged one.
    ModuleNotFoundError: naming the package that reads this kind.
  """
  place = path_of(path)
  if not exists(place):
    raise FileNotFoundError(f"{place} is missing: {_FIX}")
  if place.is_dir():
    return _orbax(place)
  if place.suffix == ".npz":
    found = read_npz(place, fix=_FIX)
  elif place.suffix == ".safetensors":
    found = _safetensors(place)
  else:
    raise ValueError(f"{place} is of an unknown kind: {_FIX}")
  slashes = any("/" in name for name in found)
  return {name if slashes else name.replace(".", "/"): v for name, v in found.items()}


def given_weights(params: Any) -> Mapping[str, Any]:
  """Return the parameters in a file, in the state of an NNX module, or a dictionary.

  Args:
    params: a path, as in `read_weights`; a state of NNX; or a dictionary of arrays.

  Raises:
    ValueError: for anything else.
  """
  if isinstance(params, str) or hasattr(params, "__fspath__"):
    return read_weights(params)
  if hasattr(params, "flat_state"):
    from flax import nnx

    params = nnx.to_pure_dict(params)
  if not hasattr(params, "items"):
    raise ValueError(
      f"params is a {type(params).__name__}: pass a path or a dictionary of arrays"
    )
  return params


def _safetensors(place):
  extras.require("safetensors")
  import safetensors
  from safetensors.numpy import load

  try:
    return load(read_bytes(place))
  except safetensors.SafetensorError as error:
    raise ValueError(f"{place} is damaged ({error}): {_FIX}") from None


def _orbax(place):
  import orbax.checkpoint as ocp

  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(str(place) if on_bucket(place) else place.resolve())
  except (ValueError, OSError, KeyError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{place} is not an Orbax checkpoint ({reason}): {_FIX}") from None


def save_weights(path: str | pathlib.Path, params: Any) -> None:
  """Write parameters as an `.npz` of arrays by path, which `start_from` reads.

  Args:
    path: a new or existing file; it is replaced atomically.
    params: nested dictionaries of arrays, such as `run.state.params`.
  """
  named = jax.tree_util.tree_leaves_with_path(params)
  arrays = {
    jax.tree_util.keystr(place, simple=True, separator="/"): np.asarray(leaf)
    for place, leaf in named
  }
  with whole_file(path_of(path)) as file:
    np.savez(file, **cast(Any, arrays))
