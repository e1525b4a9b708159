"""Many small logistic regressions at once, solved to machine precision."""

import numpy as np

_TOLERANCE = 1e-10  # on the logits; Newton's last step squares it
_STEPS = 200


def fit_logistic(
  features: np.ndarray, positive: np.ndarray, use: np.ndarray, *, c: float = 1.0
) -> np.ndarray:
  """Fit G logistic regressions with an L2 penalty on the weights, not the intercept.

      min_{w,b} |w|^2 / 2 + C sum_m log(1 + exp(-t_m (w x_m + b))),   t in {-1, 1}

  The solver takes Newton steps damped to log(1 + r)/r of their length, where r is the
  largest change of a logit, so every step descends on any data. A fit depends only on
  its own rows, not on the other fits solved in the same call.

  Args:
    features: [G,M,F].
    positive: bool [G,M], t = 1.
    use: bool [G,M], the rows to include; every fit needs both kinds.
    c: C > 0, the weight of a row.

  Returns:
    The weights w followed by the intercept b: float64 [G,F+1].

  Reference: Sun, Tran-Dinh, "Generalized Self-Concordant Functions: A Recipe for
    Newton-Type Methods", 2019, arXiv 1703.04599 (the damping).

  >>> ones = np.ones((1, 4), bool)
  >>> x, t = np.array([[[0], [0], [1], [1]]]), np.array([[0, 0, 1, 1]], bool)
  >>> fit_logistic(x, t, ones).round(4)
  array([[ 0.8021, -0.4011]])
  """
  x = np.concatenate([features, np.ones((*features.shape[:2], 1))], 2)
  penalty = np.append(np.ones(features.shape[2]), 0.0)
  solution = np.zeros((len(x), x.shape[2]))
  active = np.arange(len(x))
  for _ in range(_STEPS):
    xa, beta, counts = x[active], solution[active], c * use[active]
    p = _sigmoid(_logits(xa, beta))
    transposed = xa.transpose(0, 2, 1)
    error = (counts * (p - positive[active]))[..., None]
    gradient = (transposed @ error)[..., 0] + penalty * beta
    curvature = (counts * p * (1 - p))[..., None]
    hessian = transposed @ (curvature * xa) + np.diag(penalty)
    step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
    change = np.abs(_logits(xa, step) * use[active]).max(1)
    moving = change > _TOLERANCE
    damping = np.log1p(change) / np.where(moving, change, 1.0)
    solution[active] -= np.where(moving, damping, 1.0)[:, None] * step
    active = active[moving]
    if not active.size:
      break
  return solution


def _logits(x, beta):
  return (x @ beta[..., None])[..., 0]


def _sigmoid(z):
  # The tanh form does not overflow for any z.
  return 0.5 * (1 + np.tanh(0.5 * z))
