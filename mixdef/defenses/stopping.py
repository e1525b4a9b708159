"""Early stopping: release a snapshot from before the end of training."""

import jax
import jax.numpy as jnp

from mixdef.core.check import check_count
from mixdef.core.hooks import Defense, defense, weighted_mean
from mixdef.core.traits import Traits

_EPOCHS = 20


@defense(neutral="early_stopping(1000)")
def early_stopping(epoch=None, *, patience=None) -> Defense:
  """Release the weights of an early epoch: a fixed one, or the best on auxiliary rows.

  ```
  fixed      theta after `epoch` epochs
  patience   theta after argmin_t L_ref(t), up to the first `patience` epochs in a row
             without a new minimum
  ```

  Training itself runs to its end, so schedules over the epochs are unchanged; only the
  snapshot is released. To save time, train for fewer epochs.

  Args:
    epoch: number of completed epochs, so 1 is the end of the first one (`ctx.epoch` 0).
      A shorter training releases its last weights. The default is 20 if `patience` is
      not given; published snapshots are at 5, 10, 15, 20, 30, 40, 50, 75, 100, 150,
      200, 250.
    patience: select the epoch by the mean loss on the auxiliary rows instead.

  Returns:
    The defense; with `patience` it needs auxiliary records.

  Raises:
    ValueError: for both arguments at once, or an argument that is not a positive
      integer.

  Guarantee: none. The auxiliary rows influence which weights are released; they are
    never audited. After `dp_sgd` a snapshot is post-processing: the epsilon of the
    whole training covers it.

  Deviation: with `patience`, an epoch whose loss is not finite is never selected.

  Reference: Song, Mittal, Systematic Evaluation of Privacy Risks of Machine Learning
    Models, 2021, arXiv 2003.10595.

  >>> str(early_stopping(5))
  'early_stopping(epoch=5)'
  """
  if epoch is not None and patience is not None:
    raise ValueError(
      f"early_stopping: epoch={epoch} and patience={patience} both select the "
      "snapshot: pass only one"
    )
  if patience is None:
    epoch = _EPOCHS if epoch is None else epoch
    check_count("early_stopping: epoch", epoch)
    return _fixed(epoch)
  check_count("early_stopping: patience", patience)
  return _best(patience)


def _fixed(epochs):
  def init(key, spec):
    del key
    return spec.variables

  def epoch(state, ctx):
    return _choose(ctx.epoch < epochs, ctx.variables, state)

  def release_params(variables, state, ctx):
    del variables, ctx
    return state

  return Defense(
    "",
    init=init,
    epoch=epoch,
    release_params=release_params,
    traits=Traits(post_processing=True),
  )


def _best(patience):
  def init(key, spec):
    del key
    return {"best": spec.variables, "loss": jnp.inf, "bad": jnp.int32(0)}

  def epoch(state, ctx):
    x, y, auxiliary = ctx.data
    losses = -jnp.take_along_axis(ctx.predict(x), y[:, None], -1)[:, 0]
    loss = weighted_mean(losses, auxiliary.astype(losses.dtype))
    better = (state["bad"] < patience) & (loss < state["loss"])
    return {
      "best": _choose(better, ctx.variables, state["best"]),
      "loss": jnp.where(better, loss, state["loss"]),
      "bad": jnp.where(better, 0, state["bad"] + 1),
    }

  def release_params(variables, state, ctx):
    del variables, ctx
    return state["best"]

  return Defense(
    "",
    init=init,
    epoch=epoch,
    release_params=release_params,
    traits=Traits(needs_auxiliary=True, post_processing=True),
  )


def _choose(condition, new, old):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
