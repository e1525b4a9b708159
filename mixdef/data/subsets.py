"""Which records each model is trained on."""

import numpy as np

from mixdef.data.seeds import stream


def subsets(
  num_models, num_records, *, seed=0, design="bernoulli", fraction=0.5, eligible=None
):
  """Draw the membership matrix of an ensemble.

  bernoulli: keep[s, i] ~ Bernoulli(fraction), independently. Row s depends on (seed, s)
  alone, so adding models later changes none that exist.

  balanced: uniforms u [S, N] are ranked along the models, keep[s, i] iff
  rank < fraction * S, so that each record is in the same number of models. Under
  leave-one-out that number gives the target's membership away: rebalance the
  references.

  Args:
    num_models: S >= 1.
    num_records: N >= 1.
    seed: non-negative int.
    design: "bernoulli" or "balanced".
    fraction: expected share of members in (0, 1]; 1/2 from the paper.
    eligible: [N] bool, records that may be members (`data.audited`). None means all.

  Returns:
    keep [S, N] bool. Row sizes differ and are never cut to a common length.

  Raises:
    ValueError: an argument is out of range, or a model has no record.

  Deviation: where fraction * S is not an integer (odd S) the papers are silent; each
    record then draws its count as floor or ceil, so that the share is exact on average.
  Reference: Carlini et al., Membership Inference Attacks From First Principles, 2022,
    arXiv 2112.03570.

  >>> subsets(4, 6, design="balanced").sum(axis=0).tolist()
  [2, 2, 2, 2, 2, 2]
  """
  for name, value in (("num_models", num_models), ("num_records", num_records)):
    if value < 1:
      raise ValueError(f"{name}={value}; take at least 1")
  if not 0 < fraction <= 1:
    raise ValueError(f"fraction={fraction}; take a share in (0, 1]")
  if design not in _DESIGNS:
    raise ValueError(f"design={design!r}; take one of {', '.join(_DESIGNS)}")
  keep = _DESIGNS[design](num_models, num_records, seed, fraction)
  if eligible is not None:
    eligible = np.asarray(eligible)
    if eligible.dtype != bool or eligible.shape != (num_records,):
      raise ValueError(
        f"eligible is {eligible.dtype} {eligible.shape}; give a bool mask"
        f" [{num_records}]"
      )
    keep &= eligible
  return validate_keep(keep, num_records)


def splits(num_records, parts, *, size=None, seed=0):
  """Cut a random order of the records into disjoint parts of equal size.

  The four splits of ML-Leaks (target train and test, shadow train and test) are
  `splits(len(data), 4)`: all of them come from the training file.

  Args:
    num_records: N.
    parts: number of parts >= 1.
    size: records in each part; None takes N // parts, leaving out N mod parts records.
    seed: non-negative int.

  Returns:
    [parts, size] int64 indices, all different.

  Raises:
    ValueError: there are fewer than parts * size records, or a part is empty.

  Reference: Salem et al., ML-Leaks, 2019, arXiv 1806.01246.

  >>> splits(42_100, 4, size=10_520).shape
  (4, 10520)
  """
  if parts < 1:
    raise ValueError(f"parts={parts}; take at least 1")
  size = num_records // parts if size is None else size
  if size < 1 or parts * size > num_records:
    raise ValueError(
      f"{parts} disjoint parts of {size} do not fit {num_records} records; take"
      f" 1 <= size <= {num_records // parts}"
    )
  order = stream(seed, "splits").permutation(num_records)
  return order[: parts * size].reshape(parts, size)


def validate_keep(keep, num_records):
  """Return `keep` as a numpy array after checking that it fits the records.

  Args:
    keep: [S, N] bool, True where model s trains on record i.
    num_records: N of the data.

  Returns:
    keep [S, N] bool.

  Raises:
    ValueError: wrong type or shape, or a model without records.
  """
  keep = np.asarray(keep)
  if keep.dtype != bool:
    raise ValueError(f"keep has type {keep.dtype}; give bool, for example weights > 0")
  if keep.ndim != 2 or keep.shape[1] != num_records or not len(keep):
    raise ValueError(
      f"keep has shape {keep.shape}; give [models, {num_records}], one column a record"
    )
  empty = np.flatnonzero(~keep.any(axis=1))
  if empty.size:
    raise ValueError(
      f"keep[{empty[0]}] selects 0 records; every model needs at least one"
    )
  return keep


def _bernoulli(num_models, num_records, seed, fraction):
  rows = (stream(seed, "bernoulli", s).random(num_records) for s in range(num_models))
  return np.stack([row < fraction for row in rows])


def _balanced(num_models, num_records, seed, fraction):
  random = stream(seed, "balanced")
  uniforms = random.random((num_models, num_records))
  ranks = uniforms.argsort(axis=0).argsort(axis=0)
  counts = np.floor(fraction * num_models + random.random(num_records))
  return ranks < counts


_DESIGNS = {"bernoulli": _bernoulli, "balanced": _balanced}
