"""Parts for pretrained models: where training starts, and what is trained.

`start_from` precedes the other parts of this file; where they stand among the defenses
of a chain makes no difference. Optimizer, weight decay, clipping, noise and memory see
the trained parameters only. An audit does not cover the records of the pretraining:
such a record has influenced the model even if it is not a member of the training set.
"""

import functools
import re
from typing import Any

from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense, defense
from mixdef.core.registry import PARTS
from mixdef.models import partial
from mixdef.models.weights import given_weights


@defense(registry=PARTS)
def start_from(params: Any, fresh: str = "") -> Defense:
  """Let every model start from given parameters.

  Args:
    params: an `.npz`, a `.safetensors`, the folder of an Orbax checkpoint, or a nested
      dictionary of arrays: the parameters by path, as "Dense_0/kernel", or all
      variables of the model, with a collection "params". Pickled files are not read.
    fresh: regular expression that matches the whole paths of leaves that start at
      random, such as "Dense_1/.*" for a new head; their entries in `params` are
      ignored.

  Returns:
    The part. A model with other leaves than those given raises an error that names
    them, and so does a `fresh` that matches no leaf.

  Guarantee: none. An epsilon stated for the training does not cover `params`.

  >>> import numpy as np
  >>> str(start_from({"w": np.ones(3)}, fresh="head/.*")).partition("{")[0]
  'start_from(params='
  """
  given = given_weights(params)
  chosen = _matching("start_from: fresh", fresh) if fresh else None
  return Defense("", network=lambda net: partial.start_from(net, given, chosen))


@defense(registry=PARTS)
def freeze(layers: str) -> Defense:
  """Keep the leaves at their start; they leave the gradient and the optimizer.

  Modules whose leaves are all frozen keep their statistics too, and behave in training
  as in inference: BatchNorm uses its moving statistics and dropout is off.

  Args:
    layers: regular expression that matches the whole paths of the frozen leaves, such
      as "backbone/.*".

  Returns:
    The part. An expression that matches no leaf, or every leaf, raises an error.

  Guarantee: none. Frozen parameters learn nothing about the records.

  >>> freeze("backbone/.*").text
  "freeze(layers='backbone/.*')"
  """
  chosen = _matching("freeze: layers", layers)
  return Defense("", network=lambda net: partial.freeze(net, chosen))


@defense(registry=PARTS)
def head_only(head: str) -> Defense:
  """Train the head alone, and freeze everything else.

  Args:
    head: regular expression that matches the whole paths of the trained leaves, such as
      "Dense_1/.*".

  Returns:
    The part. An expression that matches no leaf, or every leaf, raises an error.

  Guarantee: none. Frozen parameters learn nothing about the records.

  >>> head_only("head/.*").text
  "head_only(head='head/.*')"
  """
  chosen = _matching("head_only: head", head)
  return Defense("", network=lambda net: partial.head_only(net, chosen))


@defense(registry=PARTS)
def lora(
  rank: int = 8, scale: float = 2.0, layers: str = ".*", train: str = ""
) -> Defense:
  """Freeze the model except for low-rank changes of its kernels.

  ```
  W' = W + scale A B,   A [inputs, rank] ~ U(-1, 1) / sqrt(inputs),   B = 0
  ```

  A table of embeddings has A = 0 and B ~ N(0, 1) instead. Biases are frozen.

  Args:
    rank: rank of the change, >= 1.
    scale: alpha / rank of the paper, > 0.
    layers: regular expression that matches the whole paths of the kernels to change.
    train: regular expression that matches the whole paths of leaves that are trained
      themselves, such as "head/.*" for a new head.

  Returns:
    The part. The released model uses W'.

  Guarantee: none. With `dp_sgd`, the gradients of A and B and of what `train` chooses
  are clipped and noised; ghost clipping covers them in models of linen and NNX.

  Deviation: the paper changes the query and value projections of attention; here
    `layers` chooses, by default every kernel and table. [ours] A kernel of more than
    two axes is used as a matrix: its output axes are those of the layer's bias, as in
    attention, or the last axis if there is no bias. Equinox stores kernels as [outputs,
    inputs]; they are changed in this form.

  Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv
    2106.09685.

  >>> lora(4, layers="attention/(query|value)/kernel").text
  "lora(rank=4, layers='attention/(query|value)/kernel')"
  """
  check_count("lora: rank", rank, 1)
  check_number("lora: scale", scale, above=0)
  how = {
    "rank": rank,
    "scale": scale,
    "layers": _matching("lora: layers", layers),
    "train": _matching("lora: train", train) if train else None,
  }
  return Defense("", network=functools.partial(partial.lora, **how))


def _matching(what, expression):
  """Return whether a path matches a regular expression."""
  try:
    compiled = re.compile(expression)
  except (re.error, TypeError) as error:
    raise ValueError(
      f"{what}={expression!r} is not a regular expression ({error}): write one, as "
      "'backbone/.*'"
    ) from None
  return lambda path: compiled.fullmatch(path) is not None
