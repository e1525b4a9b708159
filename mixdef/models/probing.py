"""Checks of a network's behavior by abstract evaluation, before training starts."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.randomness import random_key
from mixdef.models.network import Network, first_line

_SUM_TO_ONE = 1e-3  # tolerance for the sum of a row of probabilities


def called(run: Callable, example: Any) -> Any:
  """Return what a first call of a model returns, with its errors in one line.

  Args:
    run: calls the model.
    example: the records [B,...] that it is called with.

  Raises:
    ValueError: if the model cannot be called with such records.
  """
  try:
    return run()
  except Exception as error:  # the user's code raises errors of any type
    if _is_own(error):
      raise
    reason = first_line(error)
    if not isinstance(error, TypeError | ValueError):
      reason = f"{type(error).__name__}: {reason}"
    raise ValueError(
      f"the model cannot be called with x {example.dtype}{list(example.shape)}: "
      f"{reason}"
    ) from error


def _is_own(error):
  """Return whether an adapter raised an error, and not the model."""
  place = error.__traceback__
  while place.tb_next:
    place = place.tb_next
  module, name = place.tb_frame.f_globals["__name__"], place.tb_frame.f_code.co_name
  return module.startswith("mixdef.") and name != "__call__"


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
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      where = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"the parameter {where} is {leaf.dtype}, which cannot be trained: make it a "
        "float, or keep it out of the parameters"
      )
  # A batch of one reveals squeezed axes; a batch of K + 1 reveals swapped axes.
  for rows in (1, num_classes + 1):
    x = jax.ShapeDtypeStruct((rows, *example.shape[1:]), example.dtype)
    predicted = functools.partial(_predicted, network)
    logits = called(functools.partial(jax.eval_shape, predicted, variables, x), x)
    _check_logits(logits, rows, num_classes)
    _check_training(network, variables, x, num_classes)
  _refuse_probabilities(network, example)


def _predicted(network, variables, x):
  return network.apply(variables, x, train=False)[0]


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
  def train(variables, x, weight, key):
    return network.apply(variables, x, train=True, key=key, weight=weight)

  rows = x.shape[0]
  weight = jax.ShapeDtypeStruct((rows,), jnp.float32)
  key = jax.eval_shape(lambda: random_key(0))
  logits, updated = jax.eval_shape(train, variables, x, weight, key)
  _check_logits(logits, rows, num_classes)
  for name, value in variables.items():
    before, after = map(_shapes, (value, updated.get(name, value)))
    if before != after:
      raise ValueError(
        f"the model keeps {name!r}, which a step on {rows} records changes from "
        f"{before[:200]} to {after[:200]}: keep arrays of fixed shapes, and sow only "
        "to 'intermediates'"
      )


def _shapes(tree):
  return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree))


def _refuse_probabilities(network, example):
  """Raise if output rows sum to 1 for random weights and records."""
  records = np.random.default_rng(0).random((2, *example.shape[1:]), np.float32)
  highest = 255 if example.dtype == np.uint8 else 1
  records = (highest * records).astype(example.dtype)

  def outputs(key):
    variables = network.init(key, records[:1])
    return _predicted(network, variables, records)

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
