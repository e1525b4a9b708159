"""Checks of a network's behavior by abstract evaluation, before training starts."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from mixdef.core.randomness import random_key
from mixdef.models.adapters import Network

_SUM_TO_ONE = 1e-3  # tolerance for the sum of a row of probabilities


def check_network(network: Network, variables: Any, example, num_classes: int) -> None:
  """Raise if a classifier cannot train a network, or would silently train it wrongly.

  Args:
    network: a network returned by `adapt`.
    variables: its variables.
    example: one record [1,...]; only its shape and type are used.
    num_classes: K of the data.

  Raises:
    ValueError: for outputs other than logits [B,K]; for predictions that draw random
      numbers or rewrite statistics; for statistics that padding would enter, or that
      change their shape; for dropout or statistics that are off in training as well.
  """
  if not variables.get("params"):
    raise ValueError("the model has no parameters: nothing can be trained")
  # A batch of one reveals squeezed axes; a batch of K + 1 reveals swapped axes.
  for rows in (1, num_classes + 1):
    x = jax.ShapeDtypeStruct((rows, *example.shape[1:]), example.dtype)
    logits = _predicted(network, variables, x)
    _check_logits(logits, rows, num_classes)
    _check_training(network, variables, x, num_classes)
  _refuse_probabilities(network, example)


def _predicted(network, variables, x):
  try:
    return jax.eval_shape(
      lambda variables, x: network.apply(variables, x, train=False), variables, x
    )
  except errors.InvalidRngError as error:
    raise ValueError(
      f"the model draws random numbers in prediction ({_first_line(error)}): add an "
      "argument train to its __call__, which is False in prediction"
    ) from error
  except errors.FlaxError as error:
    raise ValueError(
      f"the model changes its state in prediction ({_first_line(error)}): add an "
      "argument train to its __call__, which is False in prediction"
    ) from error


def _check_logits(logits, rows, num_classes):
  wanted = f"return logits [B,K], here of shape [{rows},{num_classes}]"
  if not hasattr(logits, "shape"):
    names = f" of {', '.join(map(str, logits))}" if isinstance(logits, dict) else ""
    raise ValueError(f"the model returns a {type(logits).__name__}{names}: {wanted}")
  shape = list(logits.shape)
  if logits.ndim != 2 or logits.shape[0] != rows:
    raise ValueError(f"the model returns {shape} for {rows} records: {wanted}")
  if shape[1] != num_classes:
    raise ValueError(
      f"the model returns {shape[1]} classes, but the data have {num_classes}: build "
      f"it with num_classes={num_classes}"
    )
  if logits.dtype not in (jnp.float32, jnp.float64):
    fix = "logits instead of class numbers"
    if jnp.issubdtype(logits.dtype, jnp.floating):
      fix = "logits.astype(jnp.float32), because log-probabilities would lose digits"
    raise ValueError(f"the model returns {logits.dtype} {shape}: return {fix}")


def _check_training(network, variables, x, num_classes):
  kept = {name: value for name, value in variables.items() if name != "params"}
  rows = x.shape[0]
  found: list[str] = []

  def seen(module, given):
    found.extend(_silent(module, given))

  def train(variables, x, weight, key):
    how = {"weight": weight, "key": key, "mutable": list(kept), "seen": seen}
    return network.apply(variables, x, train=True, **how)

  weight = jax.ShapeDtypeStruct((rows,), jnp.float32)
  key = jax.eval_shape(lambda: random_key(0))
  try:
    logits, updated = jax.eval_shape(train, variables, x, weight, key)
  except errors.FlaxError as error:
    raise ValueError(
      f"the model cannot be applied in training ({_first_line(error)}): it may only "
      "use parameters and collections that it creates with train=False"
    ) from error
  _check_logits(logits, rows, num_classes)
  if found:
    raise ValueError(found[0])
  for name, value in kept.items():
    before, after = map(_shapes, (value, updated.get(name)))
    if before != after:
      raise ValueError(
        f"the model keeps {name!r}, which a step on {rows} records changes from "
        f"{before[:200]} to {after[:200]}: keep arrays of fixed shapes, and sow only "
        "to 'intermediates'"
      )


def _silent(module, given):
  """Yield messages about settings of a layer that must be unintended in training."""
  where = "/".join(module.path) or type(module).__name__
  flag = given.get("deterministic")
  if isinstance(module, nn.Dropout | nn.MultiHeadDotProductAttention):
    rate = getattr(module, "rate", 0) or getattr(module, "dropout_rate", 0)
    if rate and (module.deterministic if flag is None else flag):
      yield (
        f"{where} has dropout at rate {rate} and is also deterministic in training: "
        "add an argument train to the model's __call__ and pass deterministic=not "
        "train, or set the rate to 0"
      )
  if isinstance(module, nn.BatchNorm):
    flag = given.get("use_running_average")
    if module.use_running_average if flag is None else flag:
      yield (
        f"{where} also uses its running average in training, so it never changes: add "
        "an argument train to the model's __call__ and pass use_running_average=not "
        "train"
      )
    elif given.get("mask") is None:
      yield (
        "a model with BatchNorm needs an argument weight=None and must pass mask= to "
        "it: otherwise padded rows would affect its statistics"
      )


def _shapes(tree):
  if tree is None:
    return "nothing"
  return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree))


def _refuse_probabilities(network, example):
  """Raise if output rows sum to 1 for random weights and records."""
  records = np.random.default_rng(0).random((2, *example.shape[1:]), np.float32)
  highest = 255 if example.dtype == np.uint8 else 1
  records = (highest * records).astype(example.dtype)

  def outputs(key):
    variables = network.init(key, records[:1])
    return network.apply(variables, records, train=False)

  # Compilation takes seconds, and only outputs of an exponential can sum to 1.
  if not re.search(
    r"\b(exp2?|logistic)\b", str(jax.make_jaxpr(outputs)(random_key(0)))
  ):
    return
  with jax.ensure_compile_time_eval():
    rows = np.asarray(jax.jit(outputs)(random_key(0)))
  if rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < _SUM_TO_ONE:
    raise ValueError(
      "the model returns probabilities (rows that sum to 1) instead of logits: remove "
      "its softmax"
    )


def _first_line(error):
  return str(error).split(" (http")[0].splitlines()[0]
