"""Saved scores of finished attacks, each file with a fingerprint of its inputs."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import logging

from mixdef.attacks import Signals
from mixdef.core.files import whole_file
from mixdef.core.reading import Damaged, digest, read_npz
from mixdef.training import Ensemble

_FIRST = ("phi", "members", "audited")
# Names of records change no score, and these other fields have their own digests.
_APART = (*_FIRST, "ids", "target", "population", "reconstruction")


def marks_of(signals: Signals, options: Mapping[str, Any], **more: Any) -> dict:
  """Return digests that identify the inputs of a run of attacks.

  Args:
    signals: the signals that the attacks read.
    options: keyword arguments by the attack's plain name.
    **more: settings that JSON can hold.
  """
  found = {
    f"{attack}.{name}": _mark(value)
    for attack, chosen in options.items()
    for name, value in chosen.items()
  }
  return {
    "signals": digest(*(getattr(signals, name) for name in _FIRST)),
    "answers": _answers(signals),
    "population": signals.population and _mark(signals.population),
    "options": found or None,
    "mixdef": metadata.version("mixdef"),
    "jax": jax.__version__,
    **more,
  }


def mark_of_models(ensemble: Ensemble) -> str:
  """Hash the inputs of attacks that query the models themselves."""
  data, stored = ensemble.data, ensemble.stored
  if stored:  # the folder knows the digest of each model's arrays
    leaves = [np.array([notes["arrays"] for notes in stored.notes])]
  else:
    leaves = jax.tree.leaves((ensemble.states, ensemble.values))
  return digest(ensemble.learner.text, data.x, data.y, *map(_bits, leaves))


def read_scores(
  path: pathlib.Path, made_from: Mapping[str, Any], shape: Sequence[int]
) -> tuple[np.ndarray, float] | None:
  """Read scores and the seconds they took; return None if no usable ones exist.

  Damaged scores, and those made from other inputs, are reported and not used.

  Args:
    path: path of the file.
    made_from: the required fingerprint of the inputs.
    shape: shape of the scores, (S, N).
  """
  again = "the attack is run again"
  try:
    kept = read_npz(path, what="is damaged", fix=again)
  except FileNotFoundError:
    return None
  except Damaged as error:
    logging.warning("%s", error)
    return None
  if str(kept.get("made_from")) != _text(made_from):
    logging.warning("%s was computed from other inputs; %s", path, again)
    return None
  scores, seconds = kept.get("scores"), kept.get("seconds")
  right = scores is not None and (scores.dtype, scores.shape) == (np.float64, shape)
  if not right or seconds is None or seconds.dtype != np.float64 or seconds.ndim:
    logging.warning("%s is damaged: it has no scores %s; %s", path, shape, again)
    return None
  return scores, float(seconds)


def write_scores(
  path: pathlib.Path, made_from: Mapping[str, Any], scores: np.ndarray, seconds: float
) -> None:
  """Write scores and the seconds they took, atomically."""
  with whole_file(path) as file:
    np.savez(
      file,
      scores=np.asarray(scores, np.float64),
      seconds=np.float64(seconds),
      made_from=_text(made_from),
    )


def file_name(attack: str) -> str:
  """Return the file name of an attack; a text with arguments is named by its digest.

  >>> file_name("rmia")
  'rmia.npz'
  >>> file_name("rmia(gamma=4.0)")
  'rmia-deb50420.npz'
  """
  name = re.split(r"\W", attack, maxsplit=1, flags=re.ASCII)[0]
  if name == attack:
    return f"{name}.npz"
  return f"{name}-{hashlib.sha256(attack.encode()).hexdigest()[:8]}.npz"


def _text(made_from) -> str:
  return json.dumps(made_from, sort_keys=True)


def _mark(value) -> Any:
  """Return a digest of a value's content."""
  if isinstance(value, Signals):
    first = (getattr(value, name) for name in _FIRST)
    others = "" if value.population is None else _mark(value.population)
    return digest(*first, _answers(value), others)
  if isinstance(value, np.ndarray | jax.Array):
    return digest(_bits(value))
  if isinstance(value, Mapping):
    return {str(name): _mark(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_mark(item) for item in value]
  return repr(value)


def _answers(signals) -> str:
  """Hash all other contents of the signals."""
  parts = []
  for field in dataclasses.fields(signals):
    value = getattr(signals, field.name)
    if field.name not in _APART and value is not None:
      parts += [field.name, value]
  return digest(*parts)


def _bits(leaf) -> np.ndarray:
  key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )
  return np.asarray(jax.random.key_data(leaf) if key else leaf)
