"""GS-WGAN: many private critics, and a generator that receives sanitized gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from mixdef.core.check import check_choice, check_count, check_number, is_static
from mixdef.core.hooks import weighted_mean
from mixdef.core.learner import Learner, TrainState
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.registry import learner
from mixdef.learners._gan import (
  Pairs,
  alternate,
  between,
  by_shard,
  check_parts,
  gan_learner,
  generator_due,
  init_networks,
  minimize,
  public_fakes,
  put,
  real_and_fake,
  wasserstein,
)
from mixdef.learners._sanitised import (
  check_delta,
  check_plain,
  drawn_shard_epsilon,
  known_shard_epsilon,
  noisy_steps,
  sanitise,
  stated,
)
from mixdef.models import Networks

ADAM = optax.adam(1e-4, b1=0.5, b2=0.9)
"""The optimizer of GS-WGAN, for all networks."""

_DRIFT = 0.001  # weight of D(real)^2, which keeps critic scores near zero


@learner(of="generators")
def gs_wgan(
  networks: Networks,
  optimizer: optax.GradientTransformation = ADAM,
  *,
  critics: int = 1000,
  noise_multiplier: float = 1.07,
  clip: float = 1.0,
  delta: float = 1e-5,
  fakes: int = 32,
  queried: str = "drawn",
  critic_steps: int = 5,
  warm_epochs: int = 0,
  penalty: float = 10.0,
  average: float = 0.999,
) -> Learner:
  """Create the learner of GS-WGAN, whose generator receives only sanitized gradients.

  The members are split into one shard per critic. A round of training is

  ```
  critic_steps steps of one critic k on its shard:
    L_D = mean[-D_k(x, y) + D_k(G(z, y), y)] + penalty * mean[(||grad D_k|| - 1)^2]
          + 0.001 mean[D_k(x, y)^2]
  one step of G on B fakes x' with uniform conditions:
    L_G = -mean D(x', y),  its gradient by each x' clipped to C/B and noised with
    standard deviation noise_multiplier * 2 C/B before backpropagation through G
  ```

  The critics take turns, in a new random order per cycle, so a step computes only one
  critic, regardless of their number; on a CPU it still moves the memory of all critics.
  `generate` uses the exponential moving average of G.

  Args:
    networks: generator and critic. The official z has dimension 10.
    optimizer: optax optimizer of all networks.
    critics: number of shards of equal size, with one critic each.
    noise_multiplier: sigma, the noise over the sensitivity 2C/B; 0 gives no guarantee.
    clip: C > 0.
    delta: delta of the guarantee, below one over the number of members.
    fakes: B, the number of fakes per generator step.
    queried: "drawn": each fake queries an independently drawn critic, as the accounting
      assumes; "trained": all fakes query the critic that was just trained, as in the
      official code.
    critic_steps: critic steps per generator step.
    warm_epochs: initial epochs in which all critics train side by side against the
      untrained generator, which is not updated.
    penalty: weight of the gradient penalty, at least 0.
    average: decay of the moving average per step of G, in [0,1); 0 keeps the last
      weights.

  Returns:
    The `Learner`. It takes no defense. Its metrics are `critic_loss`; `distance`, the
    mean of D(real) - D(fake); and `generator_steps`, the number of generator steps per
    step. `predict` has one column per critic.

  Raises:
    ValueError: for numbers out of range; at `init`, for networks that do not fit the
      records, a delta of one over the number of members or more, or a training too
      short for a step of G.

  Guarantee: (epsilon, delta)-differential privacy of the released generator when one
    record is replaced by another; the number of members and the assignment of records
    to shards are fixed. (Adding or removing a record moves a second record to another
    shard, which counts as two replacements.) Conditions are drawn uniformly and batch
    statistics come from fakes, so members affect G only through the noised gradients.
    The critics, `predict`, the metrics and the model's key are not covered and must not
    be released; the choice of hyper-parameters is not covered either. Floating-point
    noise is not exactly Gaussian. With queried="drawn", epsilon counts B queries per
    round, each to a shard drawn with probability 1/critics, without replacement,
    independently of which critic is being trained. With queried="trained", the queried
    critic is assumed to be public, so epsilon counts B queries per turn of a critic.

  Deviation: the official code draws one critic at random, trains it and lets all fakes
    query it, but its accounting assumes that each fake drew its own critic. The draws
    are neither independent within a round nor hidden from later rounds, because the
    critic has changed. The official setting is therefore no better than 20 * 32 queries
    to one critic (epsilon about 390 at delta 1e-5), rather than the 9.24 of
    queried="drawn". The Poisson bound would give 4.45, but it holds for a different
    mechanism. z is N(0, I), as in all our GANs; officially it is Bernoulli(1/2). The
    official code trains the critics for 2,000 initial steps, each against its own
    generator, without noise; here, they train against the untrained generator.

  Reference: Chen, Orekondy & Fritz, GS-WGAN: A Gradient-Sanitized Approach for Learning
    Differentially Private Generators, NeurIPS 2020, arXiv 2006.08265.

  >>> from mixdef.models import table_networks
  >>> gs_wgan(table_networks(20, 2, latent=10), critics=50).num_shards
  50
  """
  networks, optimizer = check_parts(networks, optimizer)
  _validate(critics, noise_multiplier, clip, delta, fakes, queried, critic_steps)
  check_number("gs_wgan: penalty", penalty, 0)
  check_number("gs_wgan: average", average, 0, 1)
  if is_static(average) and average == 1:
    raise ValueError("gs_wgan: average is 1, which keeps the untrained G; pass less")
  check_count("gs_wgan: warm_epochs", warm_epochs, 0)

  def spent(spec):
    count = noisy_steps("gs_wgan", spec, delta, warm_epochs, critic_steps)
    if queried == "drawn":
      config = {"shards": critics, "count": count * fakes}
      return drawn_shard_epsilon(noise_multiplier, **config, delta=delta)
    turns = -(-count // critics)
    return known_shard_epsilon(noise_multiplier, count=turns * fakes, delta=delta)

  def init(key, spec):
    state = {"gs_wgan": stated(spent(spec), delta)}
    params, stats, opt = init_networks(networks, optimizer, key, spec, critics=critics)
    params["average"] = params["g"]
    return TrainState(params, stats, opt, state, key)

  def critic_step(d, opt, rows, key, state, data):
    g, stats = state.params["g"], state.stats
    batch, fake = real_and_fake(networks, g, stats, data, rows, key)
    pairs = Pairs(batch.x, fake, between(key, batch.x, fake, batch.index))

    def loss(d):
      real, made, steep = wasserstein(networks, d, pairs, batch.y)
      losses = made - real + penalty * steep + _DRIFT * jnp.square(real)
      return tuple(weighted_mean(v, batch.weight) for v in (losses, real - made))

    d, opt, value, distance = minimize(loss, optimizer, d, opt)
    return d, opt, {"critic_loss": value, "distance": distance}

  def warm_step(state, data, rows, ctx):
    keys = row_keys(ctx.key, jnp.arange(critics))
    d, opt, metrics = jax.vmap(critic_step, (0, 0, 0, 0, None, None))(
      state.params["d"], state.opt["d"], rows, keys, state, data
    )
    return d, opt, jax.tree.map(lambda leaf: leaf.mean(0), metrics)

  def turn_step(state, data, rows, ctx, turn):
    d, opt = state.params["d"], state.opt["d"]
    own_d, own_opt, own_rows = _at((d, opt, rows), turn)
    *new, metrics = critic_step(own_d, own_opt, own_rows, ctx.key, state, data)
    d, opt = jax.tree.map(lambda all, one: all.at[turn].set(one), (d, opt), tuple(new))
    return d, opt, metrics

  def generator_step(state, metrics, ctx, turn):
    key = fold_in_name(ctx.key, "generator")
    z, y = public_fakes(networks, key, fakes)
    noise, d = fold_in_name(key, "noise"), state.params["d"]
    if queried == "drawn":
      drawn = jax.random.randint(fold_in_name(key, "asked"), (fakes,), 0, critics)

    def score(fake):
      if queried == "trained":
        return networks.score(_at(d, turn), fake, y)
      return jax.vmap(lambda d, x, y: networks.score(d, x[None], y[None])[0])(
        _at(d, drawn), fake, y
      )

    def loss(g):
      fake, new = networks.fakes(g, state.stats, z, y, key=key)
      return -score(sanitise(fake, noise, clip, noise_multiplier)).mean(), new

    g, opt, _, stats = minimize(loss, optimizer, state.params["g"], state.opt["g"])
    mean = optax.incremental_update(g, state.params["average"], 1 - average)
    state = put(state, "g", g, opt, stats=stats)
    return state._replace(params={**state.params, "average": mean}), metrics

  def step(state, data, rows, ctx):
    rows = by_shard(rows, critics)
    # Counted from the end of the warm epochs, because rounds start then.
    place = ctx.step - warm_epochs * ctx.steps_per_epoch
    turn = _turn(state.key, jnp.maximum(place, 0) // critic_steps, critics)
    if warm_epochs:
      d, opt, metrics = jax.lax.cond(
        place < 0,
        lambda: warm_step(state, data, rows, ctx),
        lambda: turn_step(state, data, rows, ctx, turn),
      )
    else:
      d, opt, metrics = turn_step(state, data, rows, ctx, turn)
    due = generator_due(ctx, critic_steps, warm_epochs)
    move = functools.partial(generator_step, ctx=ctx, turn=turn)
    return alternate(due, move, put(state, "d", d, opt), metrics)

  return gan_learner(
    f"gs_wgan(critics={critics}, noise_multiplier={noise_multiplier}, "
    f"queried={queried})",
    networks,
    init,
    step,
    released="average",
    num_shards=critics,
    guarantee=(lambda state: state.defense["gs_wgan"]) if noise_multiplier else None,
  )


def _turn(key, turn, critics):
  """Return the critic of this turn: each critic once per cycle, in random order."""
  cycle, place = jnp.divmod(turn, critics)
  order = jax.random.fold_in(fold_in_name(key, "turns"), cycle)
  return jax.random.permutation(order, critics)[place]


def _at(tree, places):
  """Select the leaves of one or several critics."""
  return jax.tree.map(lambda leaf: leaf[places], tree)


def _validate(critics, noise_multiplier, clip, delta, fakes, queried, critic_steps):
  check_count("gs_wgan: critics", critics)
  check_count("gs_wgan: fakes", fakes)
  check_count("gs_wgan: critic_steps", critic_steps)
  check_choice("gs_wgan: queried", queried, ("drawn", "trained"))
  check_plain("gs_wgan: noise_multiplier", noise_multiplier)
  check_plain("gs_wgan: clip", clip)
  check_number("gs_wgan: noise_multiplier", noise_multiplier, 0)
  check_number("gs_wgan: clip", clip, above=0)
  if math.inf in (noise_multiplier, clip):
    raise ValueError(
      f"gs_wgan: noise_multiplier is {noise_multiplier} and clip {clip}, and their "
      "product is the noise: pass finite numbers"
    )
  check_delta("gs_wgan", delta)
