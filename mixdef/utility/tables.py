"""Dimension-wise probability and prediction: what a binary table kept of the real."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.utility.column_regressions import fit_columns


def dwp(real: ArrayLike, synthetic: ArrayLike) -> dict[str, Any]:
  """Compare the share of ones of every column: dimension-wise probability.

  A generator that draws every column on its own does perfectly here; `dwpre` looks at
  how columns depend on each other. Shares of N records scatter around the diagonal by
  sqrt(p (1 - p) / N) on either side, whatever the generator.

  Args:
    real: zeros and ones [N,D].
    synthetic: zeros and ones [M,D]; cut probabilities at 0.5 or draw from them first.

  Returns:
    real, synthetic: Pr(x_k = 1) of each column, [D] in [0,1];
    correlation: in [-1,1], NaN where all columns of one side have one share;
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

  For each column k one logistic regression of x_k on all other columns is trained on
  real and one on synthetic records; both are tested on held-out real ones by F1. A
  point on the diagonal says that synthetic records teach as much about the column. With
  fewer records F1 is lower: give as many synthetic as real ones.

  Args:
    real: zeros and ones [N,D], the generator's training records.
    synthetic: zeros and ones [M,D]; cut probabilities at 0.5 or draw from them first.
    test: zeros and ones [T,D], real records that neither saw.
    columns: int [C], which to predict; None means all D. Time grows with N D C: choose
      some columns of a large table.
    c: weight of a record against the penalty |w|^2 / 2, > 0; 1 as in scikit-learn.

  Returns:
    columns: int [C];
    real, synthetic: F1 of each, [C] in [0,1];
    correlation, rmse: over the columns, as in `dwp`;
    constant_real, constant_synthetic: in how many of the columns the training records
      hold one value only, so that nothing can be learnt; their F1 is 0;
    absent: how many of the columns hold no 1 in `test`; their F1 is 0, too.

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
    raise ValueError(f"c={c}; take a positive weight")
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
  """Return F1 [C] of what a table teaches, and how many columns are constant in it."""
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
  """Return tables of zeros and ones of one width, float32."""
  checked: list[np.ndarray] = []
  for name, values in tables.items():
    table = np.asarray(values)
    if table.ndim != 2 or not table.size:
      raise ValueError(f"{name} has shape {table.shape}; give [N,D]")
    other = (table != 0) & (table != 1)
    if other.any():
      row, column = (int(i) for i in np.argwhere(other)[0])
      raise ValueError(
        f"{name}[{row}, {column}] is {table[row, column]}; give zeros and ones: "
        f"{name} > 0.5"
      )
    checked.append(table.astype(np.float32))
    if table.shape[1] != checked[0].shape[1]:
      raise ValueError(
        f"{name} has {table.shape[1]} columns and real {checked[0].shape[1]}; give the "
        "same columns"
      )
  return checked


def _columns(columns: ArrayLike | None, width: int) -> np.ndarray:
  chosen = np.arange(width) if columns is None else np.asarray(columns)
  if chosen.ndim != 1 or not chosen.size or chosen.dtype.kind not in "ui":
    raise ValueError(f"columns={columns!r}; give a list of column numbers, or None")
  if chosen.min() < 0 or chosen.max() >= width:
    raise ValueError(
      f"columns reach {chosen.min()} to {chosen.max()} of 0 to {width - 1}"
    )
  return chosen
