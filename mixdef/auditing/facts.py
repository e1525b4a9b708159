"""Facts from the caller for a report, converted to text and numbers."""

import datetime
import enum
import math
import os
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np

from mixdef.core.hooks import Defense
from mixdef.core.learner import Learner
from mixdef.training.ensemble import READ_OFF

_NUMBERS = {
  "epsilon": math.inf,
  **dict.fromkeys(("delta", "train_accuracy", "test_accuracy", "test_accuracy_std"), 1),
}
"""The facts that the report computes with, and the upper limit of each."""

_COUNTED = (
  *("num_models", "num_records", "num_groups", "num_audited", "num_population"),
  "design",
)
_DEEP = 8
_NOT_COVERED = "not covered"


def plain_facts(setting: Any) -> dict[str, Any]:
  """Convert facts to values that JSON and the page can hold.

  Paths, dates, enumerations, bytes, defenses and sets become text or lists, arrays of
  at most a hundred numbers become lists, and non-finite numbers become their names.

  Args:
    setting: facts by name; values may be nested.

  Raises:
    ValueError: naming the fact that cannot be written, or that the audit counts itself.

  >>> plain_facts({"when": datetime.date(2026, 1, 31), "rate": np.float32(0.5)})
  {'when': '2026-01-31', 'rate': 0.5}
  """
  if setting is None:
    return {}
  if not isinstance(setting, Mapping):
    raise ValueError(f"setting is a {type(setting).__name__}; pass a dict of facts")
  facts = {}
  for name, value in setting.items():
    if not isinstance(name, str):
      raise ValueError(f"setting has the key {name!r}; use strings as keys")
    if name in _COUNTED:
      raise ValueError(
        f"setting has {name!r}, which the audit determines itself: drop it"
      )
    facts[_readable(name)] = _plain(value, f"setting[{name!r}]", 0)
  for name, most in _NUMBERS.items():
    value = facts.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= most):
      raise ValueError(
        f"setting[{name!r}] is {value!r}; the report computes with it: pass a number "
        f"from 0 to {most}, or None"
      )
  return facts


def _plain(value: Any, where: str, depth: int) -> Any:
  if depth > _DEEP:
    raise ValueError(f"{where} is nested too deeply; use at most {_DEEP} levels")
  if isinstance(value, enum.Enum):
    return value.name
  if isinstance(value, (np.generic, np.ndarray, jax.Array)):
    return _of_array(value, where, depth)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else str(value)
  if value is None or isinstance(value, (bool, int)):
    return value
  if isinstance(value, (str, bytes, os.PathLike)):
    return _readable(os.fsdecode(value))
  if isinstance(value, (datetime.date, datetime.time)):
    return value.isoformat()
  if isinstance(value, (Defense, datetime.timedelta, complex)):
    return str(value)
  if isinstance(value, Mapping):
    pairs = value.items()
    return {
      _readable(str(k)): _plain(v, f"{where}[{k!r}]", depth + 1) for k, v in pairs
    }
  if isinstance(value, Set):
    value = sorted(value, key=repr)
  if isinstance(value, (list, tuple)):
    each = enumerate(value)
    return [_plain(one, f"{where}[{i}]", depth + 1) for i, one in each]
  raise ValueError(
    f"{where} is a {type(value).__name__}, which cannot be written; pass text, a "
    "number, or a list or dict of these"
  )


def _of_array(value: Any, where: str, depth: int) -> Any:
  if isinstance(value, jax.Array) and jax.dtypes.issubdtype(
    value.dtype, jax.dtypes.prng_key
  ):
    value = jax.random.key_data(value)
  array = np.asarray(value)
  if array.size > 100:
    raise ValueError(f"{where} is an array {array.shape}; pass a summary of it")
  if array.dtype.kind == "M":
    return np.datetime_as_string(array).tolist()
  if array.dtype.kind not in "biufcSUm":
    array = array.astype(np.float64) if array.dtype.kind == "V" else array
  return _plain(array.tolist(), where, depth + 1)


def _readable(text: str) -> str:
  """Escape characters that UTF-8 cannot encode, which file names may contain."""
  return text.encode("utf-8", "backslashreplace").decode()


def recipe_facts(learner: Learner) -> dict[str, str]:
  """Return the defense and the network of a learner, for the setting of a report.

  >>> import optax
  >>> from mixdef.learners import classifier
  >>> from mixdef.models import mlp
  >>> recipe_facts(classifier(mlp(8), optax.sgd(0.1)))
  {'defense': 'none', 'model': 'MLP'}
  """
  named = {"defense": learner.defense, "model": learner.network}
  return {fact: text for fact, text in named.items() if text}


def of_one_run(stated: Mapping[str, Any]) -> dict[str, Any]:
  """Return a `Run.guarantee`, which says that it does not cover a choice of the run.

  >>> of_one_run({"epsilon": 1.0, "delta": 1e-5})
  {'epsilon': 1.0, 'delta': 1e-05, 'tuning': 'not covered'}
  >>> of_one_run({"epsilon": None, "delta": None})
  {'epsilon': None, 'delta': None}
  """
  private = stated["epsilon"] is not None
  return {**stated, **({"tuning": _NOT_COVERED} if private else {})}


def epsilon_remark(stated: Mapping[str, Any]) -> str:
  """Return the caveats of an epsilon, to print after it; empty if it has none.

  Args:
    stated: a `Run.guarantee`, or a mapping with its entries.

  >>> epsilon_remark({"num_members": "read off the membership", "noise_seed": "given"})
  ' (number of members read off the membership, seed of the noise given)'
  """
  found = {
    "number of members read off the membership": stated.get("num_members") == READ_OFF,
    "seed of the noise given": stated.get("noise_seed") == "given",
    "without the encoding of the columns": "excludes" in stated,
    "of one run, tuning not covered": stated.get("tuning") == _NOT_COVERED,
    "of a record, not of a group": stated.get("unit") == "record",
    "of a person with all records": stated.get("unit") == "person",
  }
  said = ", ".join(words for words, holds in found.items() if holds)
  return f" ({said})" if said else ""
