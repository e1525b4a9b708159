"""Defenses of a GAN's critic: `relaxloss_gan`, and the loss that it uses."""

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense, Stage, defense, take, weighted_mean
from mixdef.core.randomness import fold_in_name, random_key, row_keys
from mixdef.core.traits import Traits


def critic_losses(learner, state, x, y, *, num_fakes: int = 1):
  """Return l(x) = -D(x, y) + mean_z D(G(z, y), y) of every record and critic.

  Args:
    learner: learner of a GAN.
    state: its `TrainState`.
    x: records [B,...].
    y: their labels, int [B], or conditions [B,K].
    num_fakes: number of latents in the mean; the same ones for every record and model.

  Returns:
    [B,C] for C critics, lower for members.
  """
  if y.ndim == 1:
    y = jax.nn.one_hot(y, learner.num_classes)

  def fake_scores(z):
    z = jnp.broadcast_to(z, (len(x), learner.latent))
    return learner.predict(state, learner.generate(state, z, y), y=y)

  latents = fake_latents(learner, jnp.arange(num_fakes))
  fake = jax.lax.map(fake_scores, latents).mean(0)
  return fake - learner.predict(state, x, y=y)


def fake_latents(learner, fakes):
  """Return the latents [F,latent] of the fakes with these indices.

  They are one fixed stream, so that a record's loss does not depend on other queries.
  """
  keys = row_keys(fold_in_name(random_key(0), "fakes"), fakes)
  return jax.vmap(lambda key: jax.random.normal(key, (learner.latent,)))(keys)


@defense
def relaxloss_gan(threshold=None, *, references=4) -> Defense:
  """Ascend where the critic fits a record better than a model not trained on it.

  ```
  d_i = -D(x_i, y_i) + D(G(z_i, y_i), y_i)
  s_i = +1 if d_i < tau_i else -1,     no gradient flows through s_i
  L_D = mean[s_i D(x_i, y_i) - s_i D(G(z_i, y_i), y_i)] + the gradient penalty
  ```

  The penalty keeps its sign, and the generator is trained as usual.

  Args:
    threshold: tau. None trains references first and uses, for each record, the mean d
      of those that did not train on it; a number is one tau for all records, an array
      [N] holds one for each.
    references: number of GANs trained before, each on half of the members and with the
      rest of the chain, so that each record is out of half of them; an even number, at
      least 2. Used only if `threshold` is None.

  Returns:
    The defense, with one stage before it if the thresholds come from references.

  Raises:
    ValueError: for no threshold, or an odd number of references; at `init`, if no
      references were trained or the array is of another length.

  Guarantee: none.

  Deviation: the official thresholds come from unprotected GANs trained on random halves
    of a pool that holds other records, too; here the defender needs only their own
    members. Records outside the training set have the mean of all thresholds.

  Reference: the RelaxLoss baseline of Mixup Training for Generative Models to Defend
    Membership Inference Attacks, INFOCOM 2023; Chen, Yu, Fritz, RelaxLoss, 2022, arXiv
    2207.05801.

  >>> str(relaxloss_gan(-2.0))
  'relaxloss_gan(threshold=-2.0)'
  """
  fixed = threshold is not None and np.ndim(threshold) == 0
  if threshold is not None and not np.size(threshold):
    raise ValueError(
      "relaxloss_gan: threshold is empty; pass a number, or one per record"
    )
  if fixed:
    check_number("relaxloss_gan: threshold", threshold)
  check_count("relaxloss_gan: references", references)
  if references % 2:
    raise ValueError(
      f"relaxloss_gan: references is {references}; pass an even number, so that every "
      "record is excluded from half of them"
    )

  def init(key, spec):
    del key
    if fixed:
      return jnp.broadcast_to(jnp.float32(threshold), (spec.num_records,))
    if threshold is not None:
      if np.shape(threshold) != (spec.num_records,):
        raise ValueError(
          f"relaxloss_gan: threshold has shape {np.shape(threshold)}; pass one per "
          f"record, {spec.num_records}"
        )
      return jnp.asarray(threshold, jnp.float32)
    if spec.table is None:
      raise ValueError(
        "relaxloss_gan has no thresholds: train with fit or fit_many, which train the "
        "references first, or pass threshold"
      )
    return spec.table[:, 0]

  def loss(losses, state, ctx):
    return jnp.where(losses < take(state, ctx.batch), -losses, losses)

  return Defense(
    "",
    stages=() if threshold is not None else (_references(references),),
    init=init,
    loss=loss,
    traits=Traits(critic=True),
  )


def _references(count):
  def rows(key, members, auxiliary):
    """Assign each record to half of the models, chosen at random."""
    del auxiliary
    draws = jax.random.uniform(key, (count, members.shape[0]))
    return members & (draws.argsort(0).argsort(0) < count // 2)

  def table(key, log_probs, rows, members):
    """Return the mean loss of each record over the references it is out of, [N, 1]."""
    del key
    losses, out = log_probs.mean(-1), ~rows & members
    means = (losses * out).sum(0) / jnp.maximum(out.sum(0), 1)
    means = jnp.where(members, means, weighted_mean(means, members.astype(jnp.float32)))
    return means[:, None]

  return Stage(rows, table, models=count, query=critic_losses, columns=1)
