"""A binary classifier that separates members from non-members by model outputs."""

import warnings
from typing import NamedTuple

import numpy as np

_ITERATIONS = 30
_L2 = 1.0  # with n examples the objective is mean loss + _L2/(2n) ||weights||^2


class AttackNet(NamedTuple):
  """Weights of a fitted attack model: ReLU layers, then one output, the log-odds.

  Attributes:
    weights: [inputs, outputs] of each layer; one layer is a logistic regression.
    biases: [outputs] of each layer.
  """

  weights: tuple[np.ndarray, ...]
  biases: tuple[np.ndarray, ...]

  @property
  def num_parameters(self) -> int:
    """Number of weights and biases."""
    return sum(part.size for part in (*self.weights, *self.biases))

  def log_odds(self, features: np.ndarray) -> np.ndarray:
    """Return log P(member)/P(non-member) float64 [N] of [N, F] at a prior of 1/2."""
    values = features
    for layer, (weights, biases) in enumerate(
      zip(self.weights, self.biases, strict=True)
    ):
      if layer:
        values = np.maximum(values, 0.0)
      # Avoid a matrix product: its rounding depends on the row's position, so equal
      # records would not get equal scores.
      total = np.tile(biases, (len(values), 1))
      for column, row in zip(values.T, weights, strict=True):
        total += column[:, None] * row
      values = total
    return values[:, 0]


def fit_attack_net(
  features: np.ndarray, member: np.ndarray, *, n_hidden: int, most: int
) -> AttackNet:
  """Fit an attack model; the result does not depend on the order of the examples.

  Args:
    features: float64 [R, F].
    member: bool [R] with both values present.
    n_hidden: number of ReLU units in the hidden layer; 0 gives a logistic regression,
      which for two outcomes equals softmax regression.
    most: maximum number of examples; if more are given, this many are taken at even
      spacing from the sorted list.

  Returns:
    The `AttackNet`.

  Raises:
    ValueError: if n_hidden < 0.
  """
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.neural_network import MLPClassifier
  from threadpoolctl import threadpool_limits

  if n_hidden < 0:
    raise ValueError(f"n_hidden={n_hidden}; pass 0 for no hidden layer, or more")
  order = np.lexsort((member, *features.T))
  if len(order) > most:
    order = order[np.linspace(0, len(order) - 1, most).astype(int)]
  net = MLPClassifier(
    hidden_layer_sizes=(n_hidden,) if n_hidden else (),
    solver="lbfgs",
    alpha=_L2,
    max_iter=_ITERATIONS,
    random_state=0,
  )
  # Use one thread: the problem is small, and sums then do not depend on machine load.
  with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
    warnings.simplefilter("ignore", ConvergenceWarning)  # the recipe fixes the number
    net.fit(features[order], member[order])
  # Remove the shadow's prior: the target may have another fraction of members.
  prior = np.log(member[order].sum() / (~member[order]).sum())
  *biases, last = net.intercepts_
  return AttackNet(tuple(net.coefs_), (*biases, last - prior))
