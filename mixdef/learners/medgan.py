"""medGAN: a GAN that ends in the decoder of an autoencoder, for binary tables."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixdef.core.chaining import chain
from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense, weighted_mean
from mixdef.core.learner import Learner, TrainState
from mixdef.core.optimizers import check_optimizer, start
from mixdef.core.randomness import fold_in_name
from mixdef.core.registry import learner
from mixdef.data import to_float
from mixdef.learners._gan import (
  UNSHARED,
  alternate,
  check_sizes,
  defended_step,
  gan_learner,
  gather,
  generator_due,
  latents,
  minimize,
  put,
  refuse_parts,
)
from mixdef.models.gan_medgan import medgan_networks

ADAM = optax.adam(1e-3)
"""The optimizer of medGAN: one for the autoencoder, the critic and the generator."""


@learner(of="generators")
def medgan(
  num_features: int,
  num_classes: int,
  optimizer: optax.GradientTransformation = ADAM,
  defense: Defense | None = None,
  *,
  pretrain_epochs: int = 100,
  critic_steps: int = 2,
  l2: float = 1e-3,
  latent: int = 128,
  hidden: tuple[int, ...] = (256, 128),
) -> Learner:
  """Create the learner of medGAN, a GAN for sparse binary rows.

  ```
  L_AE = mean[BCE(x, Dec(Enc(x))) summed over columns]      of Enc and Dec, first
  L_D  = mean[-log D(x, mean x)] + mean[-log(1 - D(x', mean x'))]
  L_G  = mean[-log D(x', mean x')]                          of G and Dec
  x'   = Dec(G(z)),   z ~ N(0, I); D and Dec end in a sigmoid
  ```

  plus l2 / 2 times the squared weights of the networks being trained. The critic sees
  every row together with the mean of its batch of real rows or of fakes ("minibatch
  averaging"), so it can detect a generator with little variety.

  The defense acts on the rows of both phases, so with a mixing defense the decoder is
  also trained on mixed rows; its gradient hooks apply only to the critic. Conditions
  are passed through and not read by any network.

  Args:
    num_features: D, the number of columns of the table.
    num_classes: K of the data.
    optimizer: optax optimizer of all networks.
    defense: a defense or chain; None means undefended.
    pretrain_epochs: epochs that train only the autoencoder, at least 0, included in the
      epochs passed to `fit`. Officially 100.
    critic_steps: critic steps per generator step, counted from the start of training.
    l2: weight of the squared weights, at least 0.
    latent: dimension of z, of codes and of the generator's layers.
    hidden: widths of the critic's hidden layers.

  Returns:
    The `Learner`. `predict` returns the critic's logit with a stored mean, that of all
    real batches seen, so a record's score does not depend on the other queried records.
    Its metrics are `autoencoder_loss`; `critic_loss`; `distance`, the mean logit of
    real rows minus that of fakes; and `generator_steps`, the number of generator steps
    per step. Each is 0 in the phase to which it does not belong.

  Raises:
    ValueError: for numbers out of range, or a defense that is not supported; at `init`,
      for records of another size, or if no epoch follows the pre-training.

  Guarantee: none. The stored mean, which is part of the critic, contains the members'
    fraction of ones in every column.

  Deviation: the official code trains the autoencoder with batches of 100 and the GAN
    with batches of 1,000, and takes two critic steps per batch, so its 100 + 1,000
    epochs correspond to 100 + 2,000 here. Here, both phases use the same batch size. A
    step's real batch comes from the epoch's shuffle instead of an independent draw. As
    in the official code, training the generator continues to train the decoder, and
    the critic's fakes use the running statistics of the generator's BatchNorm.

  Reference: Choi et al., Generating Multi-label Discrete Patient Records using
    Generative Adversarial Networks, 2017, arXiv 1703.06490.

  >>> medgan(736, 100, pretrain_epochs=10).latent
  128
  """
  defense = chain() if defense is None else chain(defense)
  optimizer = check_optimizer(optimizer)
  check_count("medgan: pretrain_epochs", pretrain_epochs, 0)
  check_count("medgan: critic_steps", critic_steps)
  check_number("medgan: l2", l2, 0)
  _refuse(defense)
  networks = medgan_networks(num_features, num_classes, latent=latent, hidden=hidden)
  encoder, decoder, generator, critic = networks[:4]

  def decode(params, code) -> Any:
    return decoder.apply({"params": params["decoder"]}, code)

  def fakes(params, stats, z, **how):
    """Return rows [B,D] in [0,1], and new statistics if they are mutable."""
    code = generator.apply({"params": params["g"], **stats["g"]}, z, **how)
    code, *new = code if "mutable" in how else (code,)
    return jax.nn.sigmoid(decode(params, code)), *new

  def score(params, x, mean) -> Any:
    return critic.apply({"params": params}, x, mean)

  def init(key, spec):
    check_sizes(networks, spec)
    if pretrain_epochs >= spec.epochs:
      raise ValueError(
        f"medgan: pretrain_epochs={pretrain_epochs} leaves none of the {spec.epochs} "
        "epochs for the generator: increase epochs or reduce pretrain_epochs"
      )
    x, z = to_float(spec.example), jnp.zeros((1, latent))
    made = {
      "encoder": encoder.init(fold_in_name(key, "encoder"), x),
      "decoder": decoder.init(fold_in_name(key, "decoder"), z),
      "g": dict(generator.init(fold_in_name(key, "generator"), z)),
      "d": critic.init(fold_in_name(key, "critic"), x, x[0]),
    }
    params = {name: variables.pop("params") for name, variables in made.items()}
    trained = {
      "autoencoder": _pick(params, "encoder", "decoder"),
      "g": _pick(params, "g", "decoder"),
      "d": params["d"],
    }
    opt = {
      name: start(optimizer, own, fold_in_name(key, "optimizer", name), why=UNSHARED)
      for name, own in trained.items()
    }
    spec = spec._replace(variables={"params": params["d"]})
    key_of_defense = fold_in_name(key, "defense")
    defended = defense.init(key_of_defense, spec) if defense.init else {}
    stats = {"g": made["g"], "mean": jnp.zeros_like(x[0])}
    return TrainState(params, stats, opt, defended, key)

  def autoencoder_step(state, batch, ctx):
    del ctx

    def loss(params):
      code = encoder.apply({"params": params["encoder"]}, batch.x)
      bits = optax.sigmoid_binary_cross_entropy(decode(params, code), batch.x)
      return weighted_mean(bits.sum(-1), batch.weight) + _decay(l2, params), None

    own = _pick(state.params, "encoder", "decoder")
    own, opt, value, _ = minimize(loss, optimizer, own, state.opt["autoencoder"])
    state = state._replace(
      params={**state.params, **own}, opt={**state.opt, "autoencoder": opt}
    )
    return state, _metrics(autoencoder_loss=value)

  def critic_step(state, batch, ctx):
    z = latents(ctx.key, batch.index, latent)
    (fake,) = fakes(state.params, state.stats, z)

    def losses_fn(params, batch, ctx):
      del ctx
      real = score(params, batch.x, _mean_row(batch.x, batch.weight))
      made = score(params, fake, _mean_row(fake, batch.weight))
      losses = jax.nn.softplus(-real) + jax.nn.softplus(made)
      return losses + _decay(l2, params), real - made

    critic = state.params["d"], state.opt["d"], state.defense
    (d, opt, defended), metrics = defended_step(
      defense, optimizer, losses_fn, critic, batch, ctx
    )
    return put(state, "d", d, opt, defense=defended), _metrics(**metrics)

  def generator_step(state, metrics, batch, ctx):
    z = latents(fold_in_name(ctx.key, "generator"), batch.index, latent)
    how = {"train": True, "weight": batch.weight, "mutable": list(state.stats["g"])}

    def loss(params):
      fake, new = fakes(params, state.stats, z, **how)
      judged = score(state.params["d"], fake, _mean_row(fake, batch.weight))
      losses = jax.nn.softplus(-judged)
      return weighted_mean(losses, batch.weight) + _decay(l2, params), new

    own = _pick(state.params, "g", "decoder")
    own, opt, _, new = minimize(loss, optimizer, own, state.opt["g"])
    return state._replace(
      params={**state.params, **own},
      stats={**state.stats, "g": new},
      opt={**state.opt, "g": opt},
    ), metrics

  def adversarial_step(state, batch, ctx):
    state, metrics = critic_step(state, batch, ctx)
    move = functools.partial(generator_step, batch=batch, ctx=ctx)
    return alternate(generator_due(ctx, critic_steps), move, state, metrics)

  def step(state, data, rows, ctx):
    batch = gather(data, rows, num_classes)
    if defense.batch:
      batch = defense.batch(batch, state.defense, ctx)
    mean = state.stats["mean"]
    news = _mean_row(batch.x, batch.weight) - mean
    state = state._replace(stats={**state.stats, "mean": mean + news / (ctx.step + 1)})
    return jax.lax.cond(
      ctx.epoch < pretrain_epochs,
      autoencoder_step,
      adversarial_step,
      state,
      batch,
      ctx,
    )

  def predict(state, x, *, y=None, raw=False):
    del y, raw  # it has no conditions and no output hooks
    return score(state.params["d"], to_float(x), state.stats["mean"])[:, None]

  return gan_learner(
    "medgan",
    networks,
    init,
    step,
    defense=defense,
    predict=predict,
    generate=lambda state, z, y: fakes(state.params, state.stats, z)[0],
  )


def _refuse(defense):
  """Reject defenses that need a Wasserstein critic or independently scored records."""
  refuse_parts("medgan", defense)
  for part in defense.parts:
    if part.loss is not None:
      raise ValueError(
        f"medgan does not support {part.name}, which acts on the loss of a Wasserstein "
        "critic: use wgan_gp"
      )
    if part.value_and_grad is not None:
      raise ValueError(
        f"medgan does not support {part.name}, which needs independent records, but "
        "medgan's critic sees each record with the mean of its batch: use wgan_gp"
      )


def _mean_row(x, weight):
  """Return the weighted mean [D] of the rows x [B,D]."""
  return jax.vmap(weighted_mean, in_axes=(1, None))(x, weight)


def _decay(l2, params):
  return l2 / 2 * sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params))


def _pick(tree, *names):
  return {name: tree[name] for name in names}


def _metrics(**known):
  """Return the same metrics in both phases, as required within one program."""
  names = ("autoencoder_loss", "critic_loss", "distance", "generator_steps")
  return {name: jnp.float32(known.get(name, 0)) for name in names}
