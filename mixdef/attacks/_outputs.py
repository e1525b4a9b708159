"""Outputs of externally trained models: validation and reduction to statistics."""

import itertools
import pathlib
from typing import Any

import numpy as np

from mixdef.attacks import _per_record
from mixdef.core import validate
from mixdef.core.files import path_of
from mixdef.core.reading import read_npz

_FIRST = 256  # records that usually suffice to reject a wrong scale
_DISTINCT = 50  # values beyond which [0, 1] or equal sums are no coincidence

_LINEAR = {
  "probabilities": (lambda f: f, "pass np.log(np.maximum(p, 1e-30)), or the logits"),
  "percentages": (lambda f: f / 100, "pass np.log(np.maximum(p / 100, 1e-30))"),
}
_LOGARITHMS = {
  "negated log-probabilities": (
    lambda f: np.exp(-f),
    "pass them with the opposite sign",
  ),
  "log-probabilities of base 2": (np.exp2, "multiply them by np.log(2)"),
  "log-probabilities of base 10": (lambda f: 10**f, "multiply them by np.log(10)"),
}
"""Mistakes such as passing probabilities for logits, and how to fix them."""


_OPTIONAL = (
  *("audited", "ids", "groups"),
  *("population_logits", "population_labels", "target"),
)


def read_file(path: str | pathlib.Path) -> dict[str, Any]:
  """Read the arguments of `Signals.from_logits` from an npz file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: naming the file and what is wrong with it.
  """
  path = path_of(path)
  arrays: dict[str, Any] = read_npz(path, fix="write it with numpy.savez")
  missing = [name for name in ("logits", "keep", "labels") if name not in arrays]
  if missing:
    other = "; outputs of one model alone are for audit_release"
    raise ValueError(
      f"{path} has no array {missing[0]!r}; it needs logits, keep, labels"
      f"{other if 'member_logits' in arrays else ''}"
    )
  unknown = set(arrays) - {"logits", "keep", "labels", *_OPTIONAL}
  if unknown:
    raise ValueError(
      f"{path} has an unknown array {sorted(unknown)[0]!r}; the optional arrays are "
      f"{', '.join(_OPTIONAL)}"
    )
  if "population_logits" in arrays or "population_labels" in arrays:
    for name in ("population_logits", "population_labels"):
      if name not in arrays:
        raise ValueError(f"{path} has no {name}; a population needs logits and labels")
    pair = arrays.pop("population_logits"), arrays.pop("population_labels")
    arrays["population"] = pair
  shape, keep = np.shape(arrays["logits"])[:2], arrays.pop("keep")
  if keep.ndim == 1 and shape[:1] == keep.shape:
    raise ValueError(
      f"{path}: logits have shape {arrays['logits'].shape} and keep {keep.shape}; pass "
      "[S, N, K] and [S, N]: of one model, logits[None] and keep[None]"
    )
  arrays["members"] = validate.mask(keep, shape, "keep")
  return arrays


def read(
  logits: Any, labels: Any, members: Any, *, name: str = "logits"
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
  """Reduce logits to per-record statistics, one model at a time.

  Args:
    logits: [S, N, K] or [S, N, Q, K], logits or log-probabilities of K >= 2 classes.
    labels: int [N].
    members: bool [S, N].
    name: the caller's name for the logits, used in messages.

  Returns:
    {"phi", "hinge", "correct"} [S, N, Q] and {"log_probs"} float32 [S, N, K] of view 0;
    labels and members as arrays.

  Raises:
    ValueError: if the array is not logits of these labels and models, with the fix.
  """
  logits = validate.numbers(logits, name)
  if logits.dtype == bool:
    raise ValueError(
      f"{name} are bool, which are decisions, not logits; pass logits [S, N, K]"
    )
  members = validate.bools(members, "members")
  labels = validate.labels(labels, "labels")
  _check_axes(logits, labels, members, name)
  classes = logits.shape[-1]
  outside = labels >= classes
  fix = "number the classes from 0"
  if logits.ndim == 4 and labels.max() < logits.shape[2]:
    fix = f"if the classes are on axis 2, pass {name}.swapaxes(2, 3)"
  _per_record.refuse("labels", outside, f"values outside 0..{classes - 1}", fix)
  _refuse_nan(logits, name)
  stacks: dict[str, np.ndarray] = {}
  for model, block in enumerate(logits):
    f = (block if block.ndim == 3 else block[:, None]).astype(np.float64)
    refuse_scales(f, f"{name}[{model}]")
    infinite = np.isposinf(f)
    _per_record.refuse(f"{name}[{model}]", infinite, "+inf", "clip them before saving")
    one = _per_record.statistics(f, labels[:, None])
    one["log_probs"] = _per_record.log_softmax(f[:, 0])
    for key, values in one.items():
      if model == 0:
        stacks[key] = np.empty((len(logits), *values.shape), values.dtype)
      stacks[key][model] = values
  return stacks, labels, members


def _check_axes(
  logits: np.ndarray, labels: np.ndarray, members: np.ndarray, name: str
) -> None:
  """Find which of the three arrays does not match the others and report its shape."""
  shape = logits.shape
  if 0 in shape:
    raise ValueError(f"{name} have shape {shape}; pass [S, N, K] without empty axes")
  if shape[:2] == members.shape and members.shape[1:] != labels.shape:
    raise ValueError(f"labels have shape {labels.shape}; pass [{members.shape[1]}]")
  validate.membership(members, len(labels))
  if shape[:2] != members.shape or logits.ndim not in (3, 4) or shape[-1] < 2:
    models, records = members.shape
    raise ValueError(
      f"{name} have shape {shape}; pass [{models}, {records}, K] or "
      f"[{models}, {records}, Q, K] with K >= 2{_axes_fix(shape, members.shape, name)}"
    )


def _axes_fix(shape: tuple[int, ...], outer: tuple[int, ...], name: str) -> str:
  """Return how to reshape an array to [S, N, K], or "" if that is ambiguous."""
  one_logit = "of one logit z for two classes, np.stack([np.zeros_like(z), z], -1)"
  if shape == outer:
    return f": {one_logit}"
  if shape == (*outer, 1):
    return f": {one_logit} with z = {name}[..., 0]"
  if outer == (1, *shape[:1]):
    return f": of one model, {name}[None]"
  for axes in itertools.permutations(range(len(shape))):
    if tuple(shape[axis] for axis in axes[:2]) == outer and len(axes) > 2:
      return f": {name}.transpose{axes}"
  return ""


def _refuse_nan(logits: np.ndarray, name: str) -> None:
  """Reject NaN, reporting their count and first position without a full mask."""
  counts = [int(np.isnan(block).sum()) for block in logits]
  if any(counts):
    model = int(np.flatnonzero(counts)[0])
    place = np.argwhere(np.isnan(logits[model]))[0].tolist()
    raise ValueError(
      f"{name} has {sum(counts)} NaN, the first at {[model, *place]}; drop the models "
      "or views that diverged"
    )


def refuse_scales(f: np.ndarray, name: str) -> None:
  """Reject outputs [N, Q, K] of a model if a whole view is on another scale.

  Logits do not sum to a constant over the classes, nor do all of them lie in [0, 1].
  Rounding to 16 bits or two digits is tolerated. If all mass is on one class,
  logarithms of any base look alike.
  """
  with np.errstate(invalid="ignore"):  # +inf is rejected later
    natural = _sum_to_one(np.exp(f - np.maximum(f.max(-1, keepdims=True), 0)))
  for scales, possible in ((_LINEAR, True), (_LOGARITHMS, ~natural)):
    for scale, (probabilities, fix) in scales.items():
      with np.errstate(over="ignore"):
        if not (possible & _sum_to_one(probabilities(f[:_FIRST]))).any():
          continue
        found = possible & _sum_to_one(probabilities(f))
      if found.any():
        view = "" if found.all() else f" (view {int(found.argmax())})"
        raise ValueError(f"{name}{view} holds {scale}; {fix}")
  for view in np.flatnonzero((f >= 0).all((0, 2))):
    one = f[:, view]
    total, unit = one.sum(-1).mean(), one.max() <= 1
    scaled = total > 0 and _sum_to_one(one[:, None] / total)[0]
    if not (scaled or unit) or len(np.unique(one)) <= _DISTINCT:
      continue
    where = name if f.shape[1] == 1 else f"{name} (view {view})"
    if unit:
      raise ValueError(
        f"{where} holds values in [0, 1] only, like confidences; pass the logits, of "
        "separate sigmoids np.log(p) - np.log1p(-p)"
      )
    raise ValueError(
      f"{where} holds rows that sum to {total:.4g}, like probabilities times "
      f"{total:.4g}; pass np.log(np.maximum(p / {total:.4g}, 1e-30)), or the logits"
    )


def _sum_to_one(p: np.ndarray) -> np.ndarray:
  """Return for which views [Q] all rows of p [N, Q, K] lie on the simplex."""
  off = p.sum(-1) - 1
  return (
    (p >= 0).all((0, 2)) & (np.abs(off) <= 0.05).all(0) & (np.abs(off.mean(0)) <= 0.01)
  )
