"""Dimension-wise probability and prediction: metrics of synthetic binary tables."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.utility.column_regressions import fit_columns


def dwp(real: ArrayLike, synthetic: ArrayLike) -> dict[str, Any]:
  """Compare the fraction of ones of every column: dimension-wise probability.

  A generator that samples every column independently is perfect by this metric; `dwpre`
  measures how columns depend on each other. Fractions of N records scatter around the
  diagonal by sqrt(p (1 - p) / N) on either side, for any generator.

  Args:
    real: zeros and ones [N,D].
    synthetic: zeros and ones [M,D]; if you have probabilities, threshold them at 0.5 or
      sample from them first.

  Returns:
    real, synthetic: Pr(x_k = 1) of each column, [D] in [0,1];
    correlation: in [-1,1], NaN if all columns of one side have the same fraction;
    rmse: in [0,1].

  Raises:
    ValueError: for other values than 0 and 1, or unequal widths.

  Reference: Choi et al., "Generating Multi-label Discrete Patient Records using
    Generative Adversarial Networks", 2017, arXiv 1703.06490.

  >>> result = dwp([[0, 1], [1, 1]], [[0, 1], [0, 1]])
  >>> result["real"].tolist(), result["synthetic"].tolist()
  ([0.5, 1.0], [0.0, 1.0])
  """
  real, synthetic = _tables(real=real, synthetic=synthetic)
  shares = [table.mean(0, dtype=np.float64) for table in (real, synthetic)]
  return _compared(*shares)


def dwpre(
  real: ArrayLike,
  synthetic: ArrayLike,
  test: ArrayLike,
  *,
  columns: ArrayLike | None = None,
  c: float = 1.0,
) -> dict[str, Any]:
  """Compare how well columns can be predicted: dimension-wise prediction.

  For each column k, one logistic regression of x_k on all other columns is trained on
  real records and one on synthetic records. Both are tested on held-out real records by
  F1. A point on the diagonal means that synthetic records are equally informative about
  the column. F1 is lower with fewer records, so pass equally many synthetic and real
  ones.

  Args:
    real: zeros and ones [N,D], the generator's training records.
    synthetic: zeros and ones [M,D]; if you have probabilities, threshold them at 0.5 or
      sample from them first.
    test: zeros and ones [T,D], real records that neither was trained on.
    columns: int [C], the columns to predict; None means all D. Time grows with N D C:
      select some columns of a large table.
    c: weight of a record against the penalty |w|^2 / 2, > 0; 1 as in scikit-learn.

  Returns:
    columns: int [C];
    real, synthetic: F1 of each, [C] in [0,1];
    correlation, rmse: over the columns, as in `dwp`;
    constant_real, constant_synthetic: number of columns for which the training records
      hold only one value, so that nothing can be learned; their F1 is 0;
    absent: number of columns that hold no 1 in `test`; their F1 is 0, too.

  Raises:
    ValueError: for other values than 0 and 1, unequal widths, or columns out of range.

  Deviation: medGAN's text names logistic regression and F1; regularisation and
    threshold (0.5) are scikit-learn's defaults, and F1 of a constant column is ours.
  Reference: Choi et al., "Generating Multi-label Discrete Patient Records using
    Generative Adversarial Networks", 2017, arXiv 1703.06490.

  >>> real = np.tile([[0, 0, 0], [1, 1, 0]], (20, 1))
  >>> result = dwpre(real, np.zeros_like(real), real)
  >>> result["real"].tolist(), result["synthetic"].tolist(), result["constant_real"]
  ([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], 1)
  """
  real, synthetic, test = _tables(real=real, synthetic=synthetic, test=test)
  if not c > 0:
    raise ValueError(f"c={c}; pass a positive weight")
  columns = _columns(columns, real.shape[1])
  f1_real, constant_real = _f1_of_columns(real, test, columns, c)
  f1_synthetic, constant_synthetic = _f1_of_columns(synthetic, test, columns, c)
  return {
    "columns": columns,
    **_compared(f1_real, f1_synthetic),
    "constant_real": constant_real,
    "constant_synthetic": constant_synthetic,
    "absent": int((~test[:, columns].any(0)).sum()),
  }


def _f1_of_columns(
  table: np.ndarray, test: np.ndarray, columns: np.ndarray, c: float
) -> tuple[np.ndarray, int]:
  """Return F1 [C] of regressions on a table, and its number of constant columns."""
  varying = np.ptp(table[:, columns], 0) > 0
  f1 = np.zeros(len(columns))
  learnt = columns[varying]
  if learnt.size:
    weights = fit_columns(table, learnt, c=c)
    called = test @ weights[:-1] + weights[-1] > 0
    truth = test[:, learnt] > 0
    hits = (called & truth).sum(0)
    f1[varying] = 2 * hits / np.maximum(called.sum(0) + truth.sum(0), 1)
  return f1, int((~varying).sum())


def _compared(real: np.ndarray, synthetic: np.ndarray) -> dict[str, Any]:
  alike = np.ptp(real) == 0 or np.ptp(synthetic) == 0
  return {
    "real": real,
    "synthetic": synthetic,
    "correlation": np.nan if alike else float(np.corrcoef(real, synthetic)[0, 1]),
    "rmse": float(np.sqrt(((real - synthetic) ** 2).mean())),
  }


def _tables(**tables: ArrayLike) -> list[np.ndarray]:
  """Return binary tables with equal numbers of columns, as float32."""
  checked: list[np.ndarray] = []
  for name, values in tables.items():
    table = np.asarray(values)
    if table.ndim != 2 or not table.size:
      raise ValueError(f"{name} has shape {table.shape}; pass [N,D]")
    other = (table != 0) & (table != 1)
    if other.any():
      row, column = (int(i) for i in np.argwhere(other)[0])
      raise ValueError(
        f"{name}[{row}, {column}] is {table[row, column]}; pass zeros and ones: "
        f"{name} > 0.5"
      )
    checked.append(table.astype(np.float32))
    if table.shape[1] != checked[0].shape[1]:
      raise ValueError(
        f"{name} has {table.shape[1]} columns and real {checked[0].shape[1]}; pass the "
        "same columns"
      )
  return checked


def _columns(columns: ArrayLike | None, width: int) -> np.ndarray:
  chosen = np.arange(width) if columns is None else np.asarray(columns)
  if chosen.ndim != 1 or not chosen.size or chosen.dtype.kind not in "ui":
    raise ValueError(f"columns={columns!r}; pass a list of column numbers, or None")
  if chosen.min() < 0 or chosen.max() >= width:
    raise ValueError(
      f"columns reach {chosen.min()} to {chosen.max()} of 0 to {width - 1}"
    )
  return chosen
