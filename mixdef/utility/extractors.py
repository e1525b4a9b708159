"""Feature extractors, in whose features images or table rows are compared."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mixdef.data import to_float
from mixdef.training import Run
from mixdef.utility import _arrays

OFFICIAL = "inception"  # reserved for the true weights: see `inception_features`


class Extractor(NamedTuple):
  """A function from records to features, and the name it gives to metrics.

  `apply` maps images [B,H,W,C] in [0,1] or rows [B,D], float32, to [B,F]; row i may
  depend only on record i. `weights` is the SHA-256 of the extractor's weights, for
  reports: metrics of two extractors are not comparable, even if they have the same
  name.
  """

  name: str
  apply: Callable[[Any], Any]
  weights: str = ""


def features(extractor: Extractor, x: ArrayLike, *, block: int = 32) -> np.ndarray:
  """Extract the features of all records.

  Args:
    extractor: the extractor to apply.
    x: images [N,H,W,C] in [0,1] or table rows [N,D], float.
    block: number of records per call, >= 1; affects memory and speed, and features up
      to rounding.

  Returns:
    float32 [N,F]. The last block is padded and the padding is removed again.

  Raises:
    ValueError: for integers, images outside [0,1], values that are not finite, or an
      extractor that returns another shape.

  >>> total = Extractor("total", lambda x: x.sum((1, 2)))
  >>> features(total, np.ones((3, 2, 2, 1), np.float32), block=2).tolist()
  [[4.0], [4.0], [4.0]]
  """
  x = _arrays.records(x, "x")
  if block < 1:
    raise ValueError(f"block={block}; pass at least 1 record per block")
  block = min(block, len(x))
  blocks = []
  for first in range(0, len(x), block):
    own = x[first : first + block]
    filling = np.repeat(own[:1], block - len(own), 0)
    out = np.asarray(extractor.apply(np.concatenate([own, filling])), np.float32)
    if out.ndim != 2 or len(out) != block:
      raise ValueError(
        f"{extractor.name} returned shape {out.shape} for {block} records; it must "
        "return [B,F]"
      )
    blocks.append(out[: len(own)])
  return np.concatenate(blocks)


def classifier_features(run: Run, *, name: str = "classifier") -> Extractor:
  """Make an extractor from a classifier: the inputs of its last dense layer.

  The classifier runs in inference mode and with its released weights. Metrics in these
  features reflect only what this classifier can distinguish. Compare generators with
  the same run only, and, if overfitting matters, with a run that was trained on none of
  the compared records.

  Args:
    run: result of `fit` with `classifier(...)`, on uint8 images, on images in [0,1] or
      on tables.
    name: name of the metrics, `fd_<name>`.

  Returns:
    The extractor; F is the width of the layer before the last, such as 128 of
    `models.cnn`.

  Raises:
    ValueError: if the classifier does not end in `nn.Dense`, is made of several
      networks, or was trained on images outside [0,1]; if the name is that of the
      Inception network.
  """
  if name.startswith(OFFICIAL):
    raise ValueError(f"name={name!r} belongs to the Inception network; choose another")
  _arrays.training_records(run.data.x, "the classifier's data")
  learner = run.learner

  @jax.jit
  def penultimate(state, x):
    seen, networks = [], []

    def watch(layer, args, kwargs, context):
      out = layer(*args, **kwargs)
      if context.method_name == "__call__":
        if not context.module.path:
          networks.append(context.module)
        elif type(context.module) is nn.Dense:
          seen.append((args[0], out.shape))
      return out

    with nn.intercept_methods(watch):
      output = learner.predict(state, x, raw=True)
    if len(networks) != 1:
      raise ValueError(
        f"this is an ensemble of {len(networks)} networks; pass the run of a single "
        "classifier"
      )
    if not seen or seen[-1][1] != output.shape:
      raise ValueError(
        f"{type(networks[0]).__name__} does not end in nn.Dense; write a custom "
        "Extractor"
      )
    return seen[-1][0]

  example = jnp.asarray(to_float(run.data.x[:1]))
  jax.eval_shape(penultimate, run.state, example)
  weights = fingerprint((run.state.params, run.state.stats))
  return Extractor(name, functools.partial(penultimate, run.state), weights)


def fingerprint(tree: Any) -> str:
  """Return the SHA-256 of a pytree of arrays: of their paths, types and values.

  >>> fingerprint({"w": np.zeros(2)})[:8] == fingerprint({"w": np.ones(2)})[:8]
  False
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.asarray(leaf)
    place = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
    digest.update(place.encode() + leaf.tobytes())
  return digest.hexdigest()
