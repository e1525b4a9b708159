"""Privacy-aware sparsity tuning: an L1 penalty on the weights that widen the gap."""

import jax
import jax.numpy as jnp

from mixdef.core.check import check_number
from mixdef.core.hooks import Defense, defense
from mixdef.core.traits import Traits


@defense(neutral="past(0.0, start=0.0)")
def past(coefficient=1e-3, *, start=2 / 3) -> Defense:
  """Shrink, late in training, the weights that most widen the generalization gap.

  ```
  L = mean loss + coefficient sum_i gamma_i |theta_i|      from `start` on; plain before
  G = |mean loss of the members - mean loss of the auxiliary rows|
  gamma_i = |M(i)| |dG/dtheta_i| / sum_{j in M(i)} |dG/dtheta_j|
  ```

  M(i) are the parameters of the layer that holds i, so the mean of gamma over a layer
  is 1. gamma is constant within a step: no gradient flows through it. Both gradients
  use one forward pass; a step of the second phase costs one more backward pass.

  Args:
    coefficient: at least 0; 0 gives no defense. The default is mild and was not tuned
      here [ours]; it may be traced.
    start: fraction of the epochs without the penalty, in [0, 1]. The default is the
      paper's schedule, 100 of 150 epochs.

  Returns:
    The defense, which needs auxiliary records. The value it reports is the mean loss
    without the penalty, so that curves can be compared with other trainings.

  Raises:
    ValueError: for an argument out of range.

  Guarantee: none. The auxiliary rows influence the training and are never audited.
    Every gradient depends on the whole batch, so per-example clipping raises an error.

  Deviation: gamma uses |dG/dtheta| and is updated at every step; the paper specifies
    neither. G is computed on the batch, in training mode, from the losses after the
    other parts of the chain. For a layer without gradient, and for G = 0, gamma is 1,
    which is plain L1. sign(0) = 0. Biases and normalisation parameters are penalised
    too, as the sum is over all parameters.

  Reference: Hu, Zhang, Wei, Defending Membership Inference Attacks via Privacy-aware
    Sparsity Tuning, 2024, arXiv 2410.06814.

  >>> str(past(0.01, start=0.5))
  'past(coefficient=0.01, start=0.5)'
  """
  check_number("past: coefficient", coefficient, 0)
  check_number("past: start", start, 0, 1)

  def value_and_grad(losses_fn):
    def run(params, batch, state, ctx):
      del state
      losses, pull, aux = jax.vjp(
        lambda params: losses_fn(params, batch, ctx), params, has_aux=True
      )
      member, other = _mean_weights(batch.weight), _mean_weights(batch.auxiliary)
      (grads,) = pull(member)

      def penalised():
        sign = jnp.sign((losses * (member - other)).sum())
        (of_gap,) = pull(sign * (member - other))
        return jax.tree.map(
          lambda grad, leaf, gamma: grad + coefficient * gamma * jnp.sign(leaf),
          grads,
          params,
          sensitivity(of_gap),
        )

      grads = jax.lax.cond(ctx.progress >= start, penalised, lambda: grads)
      return ((losses * member).sum(), (losses, aux)), grads

    return run

  return Defense(
    "",
    value_and_grad=value_and_grad,
    traits=Traits(couples="batch", needs_auxiliary=True, auxiliary_rows=True),
  )


def sensitivity(gradient):
  """Return the magnitude of each entry of a gradient, relative to its layer's mean.

  A layer is the innermost dictionary that holds a leaf; a layer of zeros gets 1
  everywhere.

  >>> gamma = sensitivity({"a": {"w": jnp.array([1.0, -3.0]), "b": jnp.array([2.0])}})
  >>> gamma["a"]["w"].tolist(), gamma["a"]["b"].tolist()
  ([0.5, 1.5], [1.0])
  """
  layers = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    layers.setdefault(path[:-1], []).append(leaf)

  def relative(path, leaf):
    layer = layers[path[:-1]]
    mean = sum(jnp.abs(one).sum() for one in layer) / sum(one.size for one in layer)
    return jnp.where(mean > 0, jnp.abs(leaf) / jnp.where(mean > 0, mean, 1.0), 1.0)

  return jax.tree_util.tree_map_with_path(relative, gradient)


def _mean_weights(rows):
  """Return weights [B] that average over the marked rows; zeros if there are none."""
  return rows / jnp.maximum(rows.sum(), 1.0)
