"""privGAN: several GANs that hide from a privacy network which of them made a fake."""

import functools

import jax
import jax.numpy as jnp
import optax

from mixdef.core.check import check_choice, check_count, check_number, is_static
from mixdef.core.hooks import weighted_mean
from mixdef.core.learner import Learner, TrainState
from mixdef.core.optimizers import start
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.registry import learner
from mixdef.learners._gan import (
  UNSHARED,
  by_shard,
  check_parts,
  gan_learner,
  gather,
  init_networks,
  latents,
  minimize,
  put,
)
from mixdef.models import Networks

ADAM = optax.adam(2e-4, b1=0.5)
"""The optimizer of privGAN, for all networks."""

_REAL = 0.95  # one-sided label smoothing: a discriminator's target for members


@learner(of="generators")
def priv_gan(
  networks: Networks,
  optimizer: optax.GradientTransformation = ADAM,
  *,
  pairs: int = 2,
  ratio: float = 1.0,
  pretrain_epochs: int | None = None,
  dp_delay: int | None = None,
  release: str = "all",
) -> Learner:
  """Create the learner of privGAN: N GANs whose generators hide which one made a fake.

  The members are split into one shard per pair of a generator G_i and a discriminator
  D_i. A privacy discriminator P predicts the shard or generator of a record:

  ```
  L_P = mean CE(P(x, y), i) over the shards' members      in the first pretrain_epochs,
                                                          which train only P
  L_D = mean[BCE(D_i(x, y), 0.95)] + mean[BCE(D_i(G_i(z, y), y), 0)]
  L_P = mean CE(P(G_i(z, y), y), i)                       after another dp_delay epochs
  L_G = mean BCE(D_i(G_i(z, y), y), 1) + ratio * mean CE(P(G_i(z, y), y), j)
  ```

  with j another pair, drawn per row, and the same z for all pairs. A training step is
  one step of each network that is currently trained, P before the generators.

  Args:
    networks: generator and critic; the critic's output is a logit. P consists of as
      many critics as the number of pairs, with one logit each.
    optimizer: optax optimizer of all networks.
    pairs: N, at least 2.
    ratio: weight of the loss from P, at least 0; 0 means N independent GANs.
    pretrain_epochs: epochs that train only P, at least 0. None means a fifth of the
      epochs passed to `fit`, like the official 50 before 200.
    dp_delay: epochs of the GANs in which P stays as pretrained, at least 0. None means
      two fifths of all epochs, like the official 100.
    release: `generate` uses generator b mod N for row b ("all"), or the same generator,
      drawn by the model's key, for every row ("one").

  Returns:
    The `Learner`. It does not accept a defense. Its metrics are `critic_loss` and
    `generator_loss`, means over the pairs and 0 while only P is trained, and
    `privacy_accuracy`, the accuracy of P on the records of the step. `predict` has one
    logit per D_i.

  Raises:
    ValueError: for numbers out of range; at `init`, for networks that do not fit the
      records, or if no epoch is left for the GANs, or for training P on fakes.

  Guarantee: none.

  Deviation: the official GANs are unconditional; here, each pair and P receive the
    conditions of their rows. The official batches are drawn with replacement, and the
    official L_D is half of ours, a mean over real and fake rows, which makes no
    difference to Adam. The official P is a single network; here, its logits share no
    layers.

  Reference: Mukherjee, Xu, Trivedi, Patowary & Ferres, privGAN: Protecting GANs from
    membership inference attacks at low cost to utility, PETS 2021, arXiv 2001.00071.

  >>> from mixdef.models import table_networks
  >>> priv_gan(table_networks(20, 2), pairs=3).num_shards
  3
  """
  networks, optimizer = check_parts(networks, optimizer)
  _validate(pairs, ratio, pretrain_epochs, dp_delay, release)

  def place(p, x, y):
    """Return P's log-probabilities of the pairs [B,N]."""
    return jax.nn.log_softmax(jax.vmap(networks.score, (0, None, None), 1)(p, x, y))

  def phases(epochs):
    """Return the first epoch of the GANs, and the first in which P sees fakes."""
    alone = epochs // 5 if pretrain_epochs is None else pretrain_epochs
    delay = 2 * epochs // 5 if dp_delay is None else dp_delay
    return alone, alone + delay

  def init(key, spec):
    alone, on_fakes = phases(spec.epochs)
    if on_fakes >= spec.epochs:
      raise ValueError(
        f"priv_gan: P trains alone for {alone} epochs and sees fakes from epoch "
        f"{on_fakes} on, but there are {spec.epochs}: increase epochs, or reduce "
        "pretrain_epochs or dp_delay"
      )

    def network(key):
      made = functools.partial(init_networks, networks, optimizer, spec=spec)
      params, stats, opt = made(key, critics=1)
      params["d"], opt["d"] = jax.tree.map(lambda a: a[0], (params["d"], opt["d"]))
      return params, stats, opt

    keys = row_keys(fold_in_name(key, "pair"), jnp.arange(pairs))
    params, stats, opt = jax.vmap(network)(keys)
    own = fold_in_name(key, "privacy")
    params["p"] = init_networks(networks, optimizer, own, spec, critics=pairs)[0]["d"]
    opt["p"] = start(optimizer, params["p"], own, why=UNSHARED)
    return TrainState(params, stats, opt, {}, key)

  def privacy_step(p, opt, x, batches):
    """Take one step of P on records x [N,B,...] of the pairs."""
    own = jnp.arange(pairs)[:, None]

    def loss(p):
      log_probs = jax.vmap(place, (None, 0, 0))(p, x, batches.y)
      losses = -log_probs[own, jnp.arange(x.shape[1]), own]
      hits = (log_probs.argmax(-1) == own).astype(jnp.float32)
      return tuple(weighted_mean(v, batches.weight) for v in (losses, hits))

    p, opt, _, hits = minimize(loss, optimizer, p, opt)
    return p, opt, hits

  def critic_step(d, opt, batch, fake):
    def loss(d):
      real, made = (networks.score(d, x, batch.y) for x in (batch.x, fake))
      members = _REAL * jax.nn.softplus(-real) + (1 - _REAL) * jax.nn.softplus(real)
      return weighted_mean(members + jax.nn.softplus(made), batch.weight), None

    return minimize(loss, optimizer, d, opt)[:3]

  def generator_step(g, opt, stats, d, own, batch, z, p, key):
    ahead = jax.random.randint(key, batch.weight.shape, 1, pairs)
    other = (own + ahead) % pairs

    def loss(g):
      fake, new = networks.fakes(g, stats, z, batch.y, batch.weight, key)
      losses = jax.nn.softplus(-networks.score(d, fake, batch.y))
      if not (is_static(ratio) and ratio == 0):
        log_probs = place(p, fake, batch.y)
        losses -= ratio * jnp.take_along_axis(log_probs, other[:, None], 1)[:, 0]
      return weighted_mean(losses, batch.weight), new

    return minimize(loss, optimizer, g, opt)

  def gan_step(state, batches, ctx, on_fakes):
    params, opt, stats = state.params, state.opt, state.stats
    z = latents(ctx.key, jnp.arange(batches.weight.shape[1]), networks.latent)
    keys = row_keys(fold_in_name(ctx.key, "fakes"), jnp.arange(pairs))
    fake, _ = jax.vmap(networks.fakes, (0, 0, None, 0, 0, 0))(
      params["g"], stats, z, batches.y, batches.weight, keys
    )
    fake = jax.lax.stop_gradient(fake)
    d, d_opt, d_losses = jax.vmap(critic_step)(params["d"], opt["d"], batches, fake)
    p, p_opt, hits = privacy_step(params["p"], opt["p"], fake, batches)
    # For a few networks, selecting is cheaper than branching.
    p, p_opt = jax.tree.map(
      lambda new, old: jnp.where(ctx.epoch >= on_fakes, new, old),
      (p, p_opt),
      (params["p"], opt["p"]),
    )
    pair = jnp.arange(pairs)
    keys = row_keys(fold_in_name(ctx.key, "others"), pair)
    g, g_opt, g_losses, stats = jax.vmap(
      generator_step, (0, 0, 0, 0, 0, 0, None, None, 0)
    )(params["g"], opt["g"], stats, d, pair, batches, z, p, keys)
    metrics = d_losses.mean(), g_losses.mean(), hits
    params, opt = {"g": g, "d": d, "p": p}, {"g": g_opt, "d": d_opt, "p": p_opt}
    return state._replace(params=params, stats=stats, opt=opt), metrics

  def alone_step(state, batches):
    own = state.params["p"], state.opt["p"]
    p, opt, hits = privacy_step(*own, batches.x, batches)
    return put(state, "p", p, opt), (jnp.zeros(()), jnp.zeros(()), hits)

  def step(state, data, rows, ctx):
    alone, on_fakes = phases(ctx.epochs)
    batches = jax.vmap(lambda own: gather(data, own, networks.num_classes))(
      by_shard(rows, pairs)
    )
    state, metrics = jax.lax.cond(
      ctx.epoch < alone,
      lambda: alone_step(state, batches),
      lambda: gan_step(state, batches, ctx, on_fakes),
    )
    names = "critic_loss", "generator_loss", "privacy_accuracy"
    return state, dict(zip(names, metrics, strict=True))

  def generate(state, z, y):
    own = state.params["g"], state.stats
    if release == "one":
      pair = jax.random.randint(fold_in_name(state.key, "release"), (), 0, pairs)
      g, stats = jax.tree.map(lambda leaf: leaf[pair], own)
      return networks.generate(g, stats, z, y)
    made = jax.vmap(networks.generate, (0, 0, None, None))(*own, z, y)
    row = jnp.arange(len(z))
    return made[row % pairs, row]

  name = f"priv_gan(pairs={pairs}, ratio={ratio}, release={release})"
  return gan_learner(name, networks, init, step, generate=generate, num_shards=pairs)


def _validate(pairs, ratio, pretrain_epochs, dp_delay, release):
  check_count("priv_gan: pairs", pairs)
  if pairs < 2:
    raise ValueError(f"priv_gan: pairs is {pairs}; P must distinguish at least 2")
  check_number("priv_gan: ratio", ratio, 0)
  for name, value in (("pretrain_epochs", pretrain_epochs), ("dp_delay", dp_delay)):
    if value is not None:  # the official fraction of the epochs
      check_count(f"priv_gan: {name}", value, 0)
  check_choice("priv_gan: release", release, ("all", "one"))
