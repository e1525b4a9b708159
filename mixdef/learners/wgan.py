"""The conditional WGAN-GP: one generator and one critic, or several (PAR-GAN)."""

import functools

import jax
import jax.numpy as jnp
import optax

from mixdef.core import isolation
from mixdef.core.chaining import chain
from mixdef.core.check import check_choice, check_count, check_number
from mixdef.core.hooks import Defense, weighted_mean
from mixdef.core.learner import (
  Learner,
  TrainState,
  descend,
  guarantee_of,
  stage_learners,
)
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.registry import learner
from mixdef.core.text import text_of
from mixdef.defenses.mixing import mixup
from mixdef.learners._chunks import by_chunk, critics_answers, init_networks
from mixdef.learners._gan import (
  Pairs,
  between,
  check_parts,
  gather,
  gradient_penalty,
  latents,
  refuse_parts,
)
from mixdef.models import Networks

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
    ValueError: for numbers out of range, or a defense that a GAN cannot carry; at
      `init`, for networks that do not fit the records or keep what they must not.

  Guarantee: none, unless `dp_sgd` is in the chain: then of the critic, and of the
    generator, which sees the members through the critic alone. Its conditions are then
    drawn uniformly instead of taken from the batch, and its fakes are as many as the
    public batch size.

  Deviation: several critics update the generator's running statistics with the mean of
    theirs, instead of one after another.

  Reference: Gulrajani et al., Improved Training of Wasserstein GANs, 2017, arXiv
    1704.00028; Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.

  >>> from mixdef.models import table_networks
  >>> wgan_gp(table_networks(20, 2), defense=mixup()).latent
  128
  """
  optimizer = check_parts(networks, optimizer)
  defense = chain() if defense is None else chain(defense)
  check_number("wgan_gp: penalty", penalty, 0)
  check_count("wgan_gp: critic_steps", critic_steps)
  check_count("wgan_gp: critics", critics)
  check_choice("wgan_gp: generator_steps", generator_steps, ("after", "first"))
  check_choice("wgan_gp: generator_against", generator_against, ("all", "last"))
  refuse_parts("wgan_gp", defense)
  private = "per_example" in defense.traits
  if critics > 1 and private:
    raise ValueError(
      f"{defense} clips records for one critic, and which of {critics} sees a record "
      "depends on the others: take critics=1"
    )
  generator, critic = networks.generator, networks.critic

  def generate(params, stats, z, y, **how):
    return generator.apply({"params": params, **stats}, z, y, **how)

  def fakes(params, stats, batch, ctx):
    """Generate fakes in training mode, and return them and the new statistics."""
    z = latents(ctx.key, batch.index, networks.latent)
    how = {"train": True, "weight": batch.weight, "mutable": list(stats)}
    return generate(params, stats, z, batch.y, **how)

  def fakes_alone(params, stats, batch, ctx):
    """Generate the fake of each row independently of the other rows' conditions."""

    def alone(row):
      one = jax.tree.map(lambda leaf: leaf[None], row)
      return fakes(params, stats, one, ctx)[0][0]

    return jax.vmap(alone)(batch), stats

  def score(params, x, y):
    return critic.apply({"params": params}, x, y)

  def init(key, spec):
    spec = isolation.public(spec) if private else spec
    params, stats, opt = init_networks(networks, optimizer, key, spec, critics=critics)
    if stats and private:
      raise ValueError(
        "the generator keeps batch statistics, which carry one record's condition into "
        f"another's gradient: {defense} needs norm='group'"
      )

    def defended(key, d):
      own = spec._replace(variables={"params": d})
      return defense.init(key, own) if defense.init else {}

    keys = row_keys(fold_in_name(key, "critic"), jnp.arange(critics))
    return TrainState(params, stats, opt, jax.vmap(defended)(keys, params["d"]), key)

  def critic_step(params, opt, defended, rows, ctx, data, g, stats):
    batch = gather(data, rows, networks.num_classes)
    if defense.batch:
      batch = defense.batch(batch, defended, ctx)
    make = fakes_alone if private else fakes
    fake, stats = jax.lax.stop_gradient(make(g, stats, batch, ctx))
    points = between(ctx.key, batch.x, fake, batch.index)

    def losses_fn(params, batch, ctx):
      x, y = batch.x, batch.y
      apart = score(params, x.real, y) - score(params, x.fake, y)
      losses = -apart
      if defense.loss:
        losses = defense.loss(losses, defended, ctx._replace(batch=batch))
      steep = gradient_penalty(lambda x: score(params, x, y), x.between)
      return losses + penalty * steep, apart

    pairs = batch._replace(x=Pairs(batch.x, fake, points))
    params, opt, defended, value, losses, apart = descend(
      defense, optimizer, losses_fn, {"params": params}, opt, defended, pairs, ctx
    )
    if defense.update:
      known = ctx._replace(
        batch=batch,
        losses=jax.lax.stop_gradient(losses),
        variables={"params": params},
      )
      defended = defense.update(defended, known)
    metrics = {"critic_loss": value, "distance": weighted_mean(apart, batch.weight)}
    return params, opt, defended, stats, batch, metrics

  def generator_step(g, opt, stats, d, batches, ctxs):
    if generator_against == "last":
      d, batches, ctxs = jax.tree.map(lambda leaf: leaf[-1:], (d, batches, ctxs))

    def loss(g):
      def against(d, batch, ctx):
        fake, new = fakes(g, stats, batch, ctx)
        return -weighted_mean(score(d, fake, batch.y), batch.weight), new

      losses, new = jax.vmap(against)(d, batches, ctxs)
      return losses.mean(), new

    grads, new = jax.grad(loss, has_aux=True)(g)
    updates, opt = optimizer.update(grads, opt, g)
    return optax.apply_updates(g, updates), opt, _mean(new)

  def due(ctx):
    if generator_steps == "first":
      return (ctx.step - ctx.epoch * ctx.steps_per_epoch) % critic_steps == 0
    return (ctx.step + 1) % critic_steps == 0

  def step(state, data, rows, ctx):
    rows = by_chunk(rows, critics)
    keys = row_keys(ctx.key, jnp.arange(critics))
    ctxs = _spread(ctx, keys)
    g, opt, stats = state.params["g"], state.opt["g"], state.stats
    d, d_opt, defended, seen, batches, metrics = jax.vmap(
      functools.partial(critic_step, data=data, g=g, stats=stats)
    )(state.params["d"], state.opt["d"], state.defense, rows, ctxs)
    if private:
      batches = jax.vmap(functools.partial(_public, size=ctx.batch_size))(batches, keys)
    new = due(ctx)
    g, opt, stats = jax.lax.cond(
      new,
      lambda: generator_step(g, opt, _mean(seen), d, batches, ctxs),
      lambda: (g, opt, _mean(seen)),
    )
    state = TrainState(
      *({"g": g, "d": d}, stats, {"g": opt, "d": d_opt}, defended, state.key)
    )
    return state, {**_mean(metrics), "generator_steps": new.astype(jnp.float32)}

  structure = f"{critics} critics, {generator_against}" if critics > 1 else "wgan_gp"
  return Learner(
    init=init,
    step=step,
    epoch=None,
    finish=None,
    predict=critics_answers(networks),
    batch=defense.batch,
    stages=stage_learners(
      defense,
      functools.partial(
        *(wgan_gp, networks, optimizer),
        penalty=penalty,
        critic_steps=critic_steps,
        generator_steps=generator_steps,
        critics=critics,
        generator_against=generator_against,
      ),
    ),
    traits=defense.traits,
    text=f"{structure}|{text_of(generator)}|{text_of(critic)}|{defense}",
    generate=lambda state, z, y: generate(state.params["g"], state.stats, z, y),
    latent=networks.latent,
    num_classes=networks.num_classes,
    num_shards=critics,
    guarantee=guarantee_of(defense),
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
    contributors by shuffles of their own. The mixed pairs have the same distribution.

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
    *(networks, optimizer, defense),
    critics=critics,
    critic_steps=critic_steps,
    generator_against=generator_against,
    **options,
  )


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
  count, classes = batch.y.shape
  labels = jax.random.randint(fold_in_name(key, "conditions"), (count,), 0, classes)
  return batch._replace(
    y=jax.nn.one_hot(labels, classes),
    index=jnp.arange(count),  # latents by record id would reveal the drawn members
    weight=(jnp.arange(count) < size).astype(batch.weight.dtype),
  )


def _mean(tree):
  """Average over the critics."""
  return jax.tree.map(lambda leaf: leaf.mean(0), tree)
