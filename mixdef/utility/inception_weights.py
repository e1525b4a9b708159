"""Weights of FID's Inception network, from a file that the user provides."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.files import path_of
from mixdef.core.reading import read_npz
from mixdef.utility.extractors import OFFICIAL, Extractor, fingerprint
from mixdef.utility.inception import Inception

SOURCE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of pt_inception-2015-12-05-6726825d.pth, the weights that define FID."""

_SIDE = 299
_SMALLEST = 75  # with a smaller side, a later block has nothing to pool

# Entries of the file that features do not need: the classes and a training counter.
_UNUSED = ("fc.", "num_batches_tracked")

# PyTorch's names of the network's variables.
_ENTRIES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def inception_features(path: str | pathlib.Path) -> Extractor:
  """Make the extractor of FID from weights that you downloaded and converted.

  pytorch-fid publishes them as pt_inception-2015-12-05-6726825d.pth (95,628,359 bytes).
  Reading its format can execute code, so this library does not read it. Where PyTorch
  is installed, these lines write an npz:

      import hashlib, numpy, torch
      file = "pt_inception-2015-12-05-6726825d.pth"
      source = hashlib.sha256(open(file, "rb").read()).hexdigest()
      numpy.savez("inception.npz", source=source, **torch.load(file))

  Guarantee: the extractor is called `inception`, which `fid` demands, if the entry
    `source` is the SHA-256 of that file. This tells mistakes (the weights of
    torchvision, random ones), not a forged entry. Without it the extractor is called
    `inception_unverified` and its distance `fd_inception_unverified`. The SHA-256 in
    `weights`, for reports, is of the arrays themselves: two who hold the same weights
    see the same.

  Args:
    path: path of the npz: one array for each entry of the state dict, by its name.

  Returns:
    The extractor, F = 2048. Images of any size are resized to 299x299, bilinear between
    pixel centres and without antialiasing, and mapped from [0,1] to [-1,1]; grayscale
    images are repeated to three channels.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: naming the first entry that is missing, unknown or of another shape.

  Deviation: resizing is that of pytorch-fid. The original in TensorFlow 1 had no offset
    of half a pixel: small images came out shifted by nearly half a pixel of theirs.
  Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
    Local Nash Equilibrium", 2017, arXiv 1706.08500.
  """
  path = path_of(path)
  entries = read_npz(path, fix="inception_features describes how to create it")
  source = str(entries.pop("source", ""))
  variables = _variables(entries, path)
  name = OFFICIAL if source == SOURCE else f"{OFFICIAL}_unverified"
  return Extractor(name, functools.partial(_apply, variables), fingerprint(variables))


@jax.jit
def _apply(variables, x):
  channels = x.shape[-1]
  if channels not in (1, 3):
    raise ValueError(f"images have {channels} channels; Inception needs 1 or 3")
  x = jnp.repeat(_resize(x), 3 // channels, -1)
  return Inception().apply(variables, 2 * x - 1)


def _resize(x):
  batch, _, _, channels = x.shape
  shape = batch, _SIDE, _SIDE, channels
  exact = jax.lax.Precision.HIGHEST
  return jax.image.resize(x, shape, "bilinear", antialias=False, precision=exact)


def _variables(entries: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, Any]:
  """Map the entries of a state dict to the network's variables."""
  entries = {
    name: array
    for name, array in entries.items()
    if not name.startswith(_UNUSED[0]) and not name.endswith(_UNUSED[1])
  }

  def take(place, like):
    *modules, leaf = [key.key for key in place[1:]]
    name = ".".join([*modules, _ENTRIES[leaf]])
    if name not in entries:
      raise ValueError(f"{path} has no entry {name!r}; it is not FID's Inception")
    array = entries.pop(name)
    if leaf == "kernel" and array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)  # PyTorch stores [out, in, height, width]
    if array.shape != like.shape:
      raise ValueError(
        f"{name!r} of {path} has shape {array.shape}, as {leaf}, not {like.shape}; it "
        "is not FID's Inception"
      )
    return jnp.asarray(array, jnp.float32)

  variables = jax.tree_util.tree_map_with_path(take, _template())
  if entries:
    raise ValueError(
      f"{path} has an entry {next(iter(entries))!r}, which FID's Inception lacks: use "
      "its weights, not those of torchvision"
    )
  return variables


def _template() -> dict[str, Any]:
  example = jax.ShapeDtypeStruct((1, _SMALLEST, _SMALLEST, 3), jnp.float32)
  return jax.eval_shape(Inception().init, jax.random.key(0), example)
