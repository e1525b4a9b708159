"""Per-record statistics of a model's outputs, in float64 on the host."""

import numpy as np
from numpy.typing import ArrayLike

HIDDEN = float(np.log(np.finfo(np.float32).smallest_subnormal))
"""Log-probability, relative to the row's largest, that replaces an entry of -inf:
-103.28, from the smallest positive float32."""


def statistics(log_probs: ArrayLike, labels: ArrayLike) -> dict[str, np.ndarray]:
  """Compute phi, hinge and correctness of a block of outputs.

      phi = f_y - LSE_{k != y} f_k = log p_y - log(1 - p_y)
      hinge = f_y - max_{k != y} f_k,                correct = 1[argmax f = y]

  Adding a constant to a row of f changes none of them. All increase with membership. A
  tied argmax goes to the first class.

  Args:
    log_probs: [..., K] logits or log-probabilities of K >= 2 classes, of any float
      type; never modified. An entry of -inf is a probability that the model does not
      show or that underflowed. It is read as `HIDDEN` = -103.28 below the row's largest
      entry, or as the row's lowest finite entry if that is lower, so that phi stays
      finite and no hidden class overtakes a shown one. If you have probabilities p,
      pass log p.
    labels: integers in 0..K-1, broadcast against the leading axes.

  Returns:
    {"phi", "hinge"} float64 and {"correct"} bool, of the leading shape.

  Raises:
    ValueError: for NaN, +inf, a row of only -inf, or labels outside 0..K-1.

  Deviation: official LiRA adds 1e-45 inside both logs of a probability, which distorts
    every phi beyond 100 or -100; here only the entries that are exactly 0 are replaced.
    It also exponentiates in the precision of the logits.

  Reference: Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership Inference Attacks
    From First Principles", 2022, arXiv 2112.03570.

  >>> s = statistics(np.log([.7, .2, .1]), 1)
  >>> round(float(s["phi"]), 6), round(float(s["hinge"]), 6), bool(s["correct"])
  (-1.386294, -1.252763, False)
  """
  f = _finite_rows(log_probs)
  label = _label_column(labels, f)
  f_y = np.take_along_axis(f, label, axis=-1)[..., 0]
  hit = f.argmax(-1) == label[..., 0]
  np.put_along_axis(f, label, -np.inf, axis=-1)
  runner_up = f.max(-1)
  f -= runner_up[..., None]
  others = np.log(np.exp(f, out=f).sum(-1))
  margin = f_y - runner_up
  scaled = margin - others
  return {"phi": scaled, "hinge": margin, "correct": hit}


def loss_of_phi(values: np.ndarray) -> np.ndarray:
  """Return the loss `-log p_y = log(1 + e^-phi)` that corresponds to phi.

  This is LSE(f) - f_y without cancellation, so records on which the model is nearly
  certain keep their order instead of tying at 0.

  >>> float(loss_of_phi(np.array(0.847298)).round(6))
  0.356675
  """
  return np.logaddexp(0.0, -values)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Return log-probabilities float32 over the last axis; -inf stays -inf."""
  f = logits - logits.max(-1, keepdims=True)
  return (f - np.log(np.exp(f).sum(-1, keepdims=True))).astype(np.float32)


def refuse(name: str, bad: np.ndarray, what: str, fix: str) -> None:
  """Raise a ValueError with the count and first position where `bad` holds.

  Args:
    name: the caller's name for the array.
    bad: bool array, True where the array is unusable.
    what: the unusable value, for the message.
    fix: how the caller can fix it.

  Raises:
    ValueError: if any entry of `bad` is True.
  """
  if bad.any():
    first = [int(i) for i in np.unravel_index(bad.argmax(), bad.shape)]
    raise ValueError(f"{name} has {int(bad.sum())} {what}, the first at {first}; {fix}")


def _finite_rows(log_probs: ArrayLike) -> np.ndarray:
  """Copy the outputs to float64, with row maximum 0 and every entry finite."""
  f = np.array(log_probs, dtype=np.float64)
  if f.ndim == 0 or f.shape[-1] < 2:
    raise ValueError(f"log_probs have shape {f.shape}; pass [..., K] with K >= 2")
  refuse("log_probs", np.isnan(f), "NaN", "the model diverged or its input is broken")
  refuse("log_probs", np.isposinf(f), "+inf", "pass logits or log-probabilities")
  largest = f.max(-1, keepdims=True)
  fix = "every row needs a finite entry"
  refuse("log_probs", np.isneginf(largest[..., 0]), "rows of -inf", fix)
  f -= largest
  hidden = np.isneginf(f)
  if hidden.any():
    lowest = np.where(hidden, HIDDEN, f).min(-1, keepdims=True)
    f = np.where(hidden, lowest, f)
  return f


def _label_column(labels: ArrayLike, f: np.ndarray) -> np.ndarray:
  """Return the labels as [..., 1] indices into the last axis of f."""
  labels = np.asarray(labels)
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"labels are {labels.dtype}; pass integer classes")
  outside = (labels < 0) | (labels >= f.shape[-1])
  refuse("labels", outside, f"values outside 0..{f.shape[-1] - 1}", "relabel them")
  return np.broadcast_to(labels, f.shape[:-1])[..., None]
