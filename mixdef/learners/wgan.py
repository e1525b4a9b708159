"""The conditional WGAN-GP: one generator and one critic, or several (PAR-GAN)."""

import functools

import jax
import jax.numpy as jnp
import optax

from mixdef.core import isolation
from mixdef.core.chaining import chain
from mixdef.core.check import check_choice, check_count, check_number
from mixdef.core.hooks import Defense, weighted_mean
from mixdef.core.learner import Learner, TrainState, stage_learners
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.registry import learner
from mixdef.defenses.mixing import mixup
from mixdef.learners._gan import (
  Pairs,
  alternate,
  between,
  by_shard,
  check_parts,
  defended_step,
  fakes_of,
  gan_learner,
  gather,
  generator_due,
  init_networks,
  minimize,
  public_conditions,
  put,
  refuse_parts,
  wasserstein,
)
from mixdef.models import Networks, table_networks

ADAM = optax.adam(4e-4, b1=0.5, b2=0.999)
"""The optimizer of the mixup GAN, for both networks."""


@learner(of="generators")
def wgan_gp(
  networks: Networks,
  optimizer: optax.GradientTransformation = ADAM,
  defense: Defense | None = None,
  *,
  penalty: float = 10.0,
  critic_steps: int = 5,
  generator_steps: str = "after",
  critics: int = 1,
  generator_against: str = "all",
) -> Learner:
  """Create the learner of a conditional Wasserstein GAN with gradient penalty.

  ```
  L_D = mean[-D(x, y) + D(G(z, y), y)] + penalty * mean[(||grad D(x^, y)||_2 - 1)^2]
  x^  = u x + (1 - u) G(z, y),   u ~ U[0,1] and z ~ N(0, I) per record
  L_G = -mean D(G(z, y), y)
  ```

  A step of training is one step of every critic on the defended batch. The defense may
  mix records and conditions, act on the losses [B] before the penalty is added, and
  clip and noise the gradient; `ctx.log_probs` is None in its hooks. After every
  `critic_steps` steps, the generator takes one step with the latents and conditions of
  the current batch.

  Args:
    networks: generator and critic.
    optimizer: optax optimizer of all networks.
    defense: a defense or chain; None means undefended.
    penalty: weight of the gradient penalty, at least 0.
    critic_steps: critic steps per generator step.
    generator_steps: "after" the 5th, 10th, ... step counted from the start of training
      (the paper), or "first": on the 1st, 6th, ... of every epoch (the official shadow
      scripts).
    critics: number of critics, each trained on its own shard of the members.
    generator_against: "all" for the mean of the losses of all critics, or "last" for
      the loss of the last critic only.

  Returns:
    The `Learner`. Its metrics are `critic_loss` including the penalty; `distance`, the
    mean of D(real) - D(fake); and `generator_steps`, the number of generator steps per
    step.

  Raises:
    ValueError: for numbers out of range, or a defense that GANs do not support; at
      `init`, for networks that do not fit the records, or with state that is not
      allowed.

  Guarantee: none, unless `dp_sgd` is in the chain. Then its guarantee covers the critic
    and the generator, which depends on the members only through the critic. In that
    case, the conditions of fakes are drawn uniformly instead of taken from the batch,
    and the number of fakes is the public batch size.

  Deviation: with several critics, the generator's running statistics are updated with
    the mean over critics, instead of one critic after another.

  Reference: Gulrajani et al., Improved Training of Wasserstein GANs, 2017, arXiv
    1704.00028; Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.

  >>> from mixdef.models import table_networks
  >>> wgan_gp(table_networks(20, 2), defense=mixup()).latent
  128
  """
  networks, optimizer = check_parts(networks, optimizer)
  defense = chain() if defense is None else chain(defense)
  check_number("wgan_gp: penalty", penalty, 0)
  check_count("wgan_gp: critic_steps", critic_steps)
  check_count("wgan_gp: critics", critics)
  check_choice("wgan_gp: generator_steps", generator_steps, ("after", "first"))
  check_choice("wgan_gp: generator_against", generator_against, ("all", "last"))
  refuse_parts("wgan_gp", defense)
  private = defense.traits.per_example
  if critics > 1 and private:
    raise ValueError(
      f"{defense} clips records for one critic, but which of {critics} critics sees a "
      "record depends on the other records: use critics=1"
    )

  def fakes_alone(g, stats, batch, key):
    """Generate the fake of each row independently of the other rows' conditions."""

    def alone(row):
      one = jax.tree.map(lambda leaf: leaf[None], row)
      return fakes_of(networks, g, stats, one, key)[0][0]

    return jax.vmap(alone)(batch), stats

  def init(key, spec):
    spec = isolation.public(spec) if private else spec
    params, stats, opt = init_networks(networks, optimizer, key, spec, critics=critics)
    if stats and private:
      raise ValueError(
        "the generator keeps batch statistics, which make one record's gradient depend "
        f"on another's condition: {defense} needs GroupNorm or LayerNorm instead of "
        "BatchNorm (norm='group' of the networks of mixdef)"
      )

    def defended(key, d):
      own = spec._replace(variables={"params": d})
      return defense.init(key, own) if defense.init else {}

    keys = row_keys(fold_in_name(key, "critic"), jnp.arange(critics))
    return TrainState(params, stats, opt, jax.vmap(defended)(keys, params["d"]), key)

  def critic_step(critic, rows, ctx, data, g, stats):
    batch = gather(data, rows, networks.num_classes)
    *_, defended = critic
    if defense.batch:
      batch = defense.batch(batch, defended, ctx)
    make = fakes_alone if private else functools.partial(fakes_of, networks)
    fake, stats = jax.lax.stop_gradient(make(g, stats, batch, ctx.key))
    pairs = Pairs(batch.x, fake, between(ctx.key, batch.x, fake, batch.index))

    def losses_fn(params, batch, ctx):
      real, made, steep = wasserstein(networks, params, batch.x, batch.y)
      losses = made - real
      if defense.loss:
        losses = defense.loss(losses, defended, ctx._replace(batch=batch))
      return losses + penalty * steep, real - made

    critic, metrics = defended_step(
      defense, optimizer, losses_fn, critic, batch, ctx, pairs
    )
    return critic, stats, batch, metrics

  def generator_step(state, metrics, batches, ctxs):
    d = state.params["d"]
    if generator_against == "last":
      d, batches, ctxs = jax.tree.map(lambda leaf: leaf[-1:], (d, batches, ctxs))

    def loss(g):
      def against(d, batch, ctx):
        fake, new = fakes_of(networks, g, state.stats, batch, ctx.key)
        return -weighted_mean(networks.score(d, fake, batch.y), batch.weight), new

      losses, new = jax.vmap(against)(d, batches, ctxs)
      return losses.mean(), new

    g, opt, _, new = minimize(loss, optimizer, state.params["g"], state.opt["g"])
    return put(state, "g", g, opt, stats=_mean(new)), metrics

  def step(state, data, rows, ctx):
    keys = row_keys(ctx.key, jnp.arange(critics))
    ctxs = _spread(ctx, keys)
    own = {"data": data, "g": state.params["g"], "stats": state.stats}
    (d, opt, defended), stats, batches, metrics = jax.vmap(
      functools.partial(critic_step, **own)
    )((state.params["d"], state.opt["d"], state.defense), by_shard(rows, critics), ctxs)
    if private:
      batches = jax.vmap(functools.partial(_public, size=ctx.batch_size))(batches, keys)
    due = generator_due(ctx, critic_steps)
    if generator_steps == "first":
      due = (ctx.step - ctx.epoch * ctx.steps_per_epoch) % critic_steps == 0
    state = put(state, "d", d, opt, stats=_mean(stats), defense=defended)
    move = functools.partial(generator_step, batches=batches, ctxs=ctxs)
    return alternate(due, move, state, _mean(metrics))

  options = {
    "penalty": penalty,
    "critic_steps": critic_steps,
    "generator_steps": generator_steps,
    "critics": critics,
    "generator_against": generator_against,
  }
  again = functools.partial(wgan_gp, networks, optimizer, **options)
  return gan_learner(
    f"{critics} critics, {generator_against}" if critics > 1 else "wgan_gp",
    networks,
    init,
    step,
    defense=defense,
    stages=stage_learners(defense, again),
    num_shards=critics,
  )


@learner(of="generators")
def mixup_gan(
  networks: Networks,
  optimizer: optax.GradientTransformation = ADAM,
  alpha=1.0,
  **options,
) -> Learner:
  """Create the learner of the mixup GAN: `wgan_gp` with mixed pairs for the critic.

  Args:
    networks: generator and critic.
    optimizer: optax optimizer of both; defaults to the paper's.
    alpha: parameter of `mixup`; 0 is bit-identical to `wgan_gp`.
    **options: options of `wgan_gp`.

  Returns:
    The `Learner`. The critic's records are mixed with other records of the batch, with
    one lam per step, and so are their conditions.

  Guarantee: none.

  Deviation: the official code mixes two batches that are shuffled independently; here
    each batch is mixed with a permutation of itself, and `mixup(pairs=True)` draws both
    contributors by independent shuffles. The mixed pairs have the same distribution.

  Reference: Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.
  """
  return wgan_gp(networks, optimizer, mixup(alpha), **options)


@learner(of="generators")
def par_gan(
  networks: Networks,
  optimizer: optax.GradientTransformation = ADAM,
  defense: Defense | None = None,
  *,
  critics: int = 5,
  critic_steps: int = 4,
  generator_against: str = "all",
  **options,
) -> Learner:
  """Create the learner of PAR-GAN: several critics, each on one shard of the members.

  Args:
    networks: generator and critic.
    optimizer: optax optimizer of all networks. The official image experiments use
      RMSprop at 1e-5 for 10,000 epochs; the default is that of the undefended GAN it is
      compared with.
    defense: a defense or chain.
    critics: K, the number of shards of equal size, with one critic each; officially 5
      for images, 10 for toy data.
    critic_steps: steps of every critic per generator step.
    generator_against: "all" is the paper's mean over critics; "last" is the variant of
      the mixup GAN's repository, whose generator sees the last critic only.
    **options: options of `wgan_gp`.

  Returns:
    The `Learner`; `predict` has one column per critic.

  Guarantee: none.

  Reference: Chen et al., PAR-GAN: Improving the Generalization of Generative
    Adversarial Networks Against Membership Inference Attacks, KDD 2021.
  """
  return wgan_gp(
    networks,
    optimizer,
    defense,
    critics=critics,
    critic_steps=critic_steps,
    generator_against=generator_against,
    **options,
  )


@learner(of="generators")
def mlp_wgan_gp(
  num_features: int,
  num_classes: int,
  optimizer: optax.GradientTransformation = ADAM,
  defense: Defense | None = None,
  *,
  hidden: int = 256,
  latent: int = 128,
  conditional: bool = False,
  **options,
) -> Learner:
  """Create the learner of a WGAN-GP with two dense networks, for tables.

  Args:
    num_features: D, the number of columns of the table, with values in [0,1].
    num_classes: K of the data.
    optimizer: optax optimizer of both networks.
    defense: a defense or chain; None means undefended.
    hidden: width of the hidden layers.
    latent: dimension of z.
    conditional: whether both networks see the condition.
    **options: options of `wgan_gp`.

  Returns:
    The `Learner`: `wgan_gp` applied to `table_networks`.

  Guarantee: that of `wgan_gp`.

  >>> mlp_wgan_gp(736, 100, critic_steps=2).latent
  128
  """
  networks = table_networks(
    num_features,
    num_classes,
    hidden=hidden,
    latent=latent,
    conditional=conditional,
  )
  return wgan_gp(networks, optimizer, defense, **options)


def _spread(ctx, keys):
  """Stack one `Ctx` per critic along a leading axis; only the keys differ."""
  same = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, keys.shape), ctx._replace(key=0)
  )
  return same._replace(key=keys)


def _public(batch, key, size):
  """Return data-independent conditions and latents on the first `size` rows.

  Further rows are unused, because the capacity of a batch depends on the members.
  """
  count = len(batch.y)
  return batch._replace(
    y=public_conditions(key, *batch.y.shape),
    index=jnp.arange(count),  # latents by record id would reveal the drawn members
    weight=(jnp.arange(count) < size).astype(batch.weight.dtype),
  )


def _mean(tree):
  """Average over the critics; integers and keys are the same for all."""

  def mean(leaf):
    return leaf.mean(0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[0]

  return jax.tree.map(mean, tree)
