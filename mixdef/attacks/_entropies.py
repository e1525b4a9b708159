"""Entropy scores of a model's output vectors, in float64 on the host."""

import numpy as np
from numpy.typing import ArrayLike

FLOOR = 1e-30
"""Smallest probability inside a logarithm."""


def entropy_score(log_probs: ArrayLike) -> np.ndarray:
  """Return the negated entropy of the outputs; higher means more confident.

      -H(p) = sum_k p_k log p_k,   0 log 0 = 0

  Args:
    log_probs: [..., K], logits or log-probabilities; -inf is a probability of 0.

  Returns:
    float64 [...] in nats, at most 0.

  >>> float(entropy_score(np.log([.7, .2, .1])).round(6))
  -0.801819
  """
  share, rest = _shares(log_probs)
  return (share * _log(share, rest)).sum(-1)


def mentr_score(log_probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
  """Return the negated modified entropy, which takes the label into account.

      Mentr = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k)

  It is 0 where the model is confident and correct, and large in magnitude where it is
  confident and wrong. Each 1 - p_k is computed as the sum over the other classes, so
  records on which the model is nearly certain keep their order instead of tying at 0.

  Args:
    log_probs: [..., K], logits or log-probabilities; -inf is a probability of 0.
    labels: int [...] in 0..K-1.

  Returns:
    float64 [...] in nats, at most 0; logs are floored at log 1e-30 as in the official
    code.

  Reference: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", 2021, arXiv 2003.10595.

  >>> mentr_score(np.log([[.7, .2, .1]] * 3), [0, 1, 2]).round(6)
  array([-0.162167, -2.140867, -2.959736])
  """
  share, rest = _shares(log_probs)
  label = np.asarray(labels)[..., None]
  terms = share * _log(rest, share)
  own_share, own_rest = (np.take_along_axis(x, label, -1) for x in (share, rest))
  np.put_along_axis(terms, label, own_rest * _log(own_share, own_rest), -1)
  return terms.sum(-1)


def _shares(log_probs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Return p and 1 - p, both [..., K], without subtracting near-equal numbers."""
  f = np.array(log_probs, dtype=np.float64, order="C")
  f -= f.max(-1, keepdims=True)
  p = np.exp(f)
  total = p.sum(-1, keepdims=True)
  rest = total - p
  top = f.argmax(-1)[..., None]
  others = p.copy()
  np.put_along_axis(others, top, 0.0, -1)
  np.put_along_axis(rest, top, others.sum(-1, keepdims=True), -1)
  return p / total, rest / total


def _log(share: np.ndarray, rest: np.ndarray) -> np.ndarray:
  """Return the log of a share, floored, computed from 1 - share if that is smaller."""
  near_one = np.log1p(-np.minimum(rest, 0.5))
  return np.where(share > 0.5, near_one, np.log(np.maximum(share, FLOOR)))
