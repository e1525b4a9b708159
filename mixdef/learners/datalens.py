"""DataLens: teacher discriminators vote on the direction to move a fake."""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import weighted_mean
from mixdef.core.learner import Learner, TrainState
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.registry import learner
from mixdef.learners._gan import (
  alternate,
  by_shard,
  check_parts,
  gan_learner,
  generator_due,
  init_networks,
  minimize,
  public_fakes,
  put,
  real_and_fake,
)
from mixdef.learners._sanitised import (
  check_delta,
  check_plain,
  known_shard_epsilon,
  noisy_steps,
  stated,
)
from mixdef.models import Networks

ADAM = optax.adam(1e-3, b1=0.5)
"""The optimizer of DataLens, for all networks."""


@learner(of="generators")
def datalens(
  networks: Networks,
  optimizer: optax.GradientTransformation = ADAM,
  *,
  teachers: int = 4000,
  top: int = 200,
  noise: float = 5000.0,
  threshold: float = 0.7,
  largest: float = 1e-5,
  step_size: float = 1e-3,
  delta: float = 1e-5,
  fakes: int = 30,
  critic_steps: int = 2,
  warm_epochs: int = 10,
) -> Learner:
  """Create the learner of DataLens, whose generator follows noised votes of teachers.

  The members are split into one shard per teacher, a discriminator D_t. In every
  training step, all teachers take one step on their shards. After every `critic_steps`
  steps, once the warm epochs are over, the generator takes one step:

  ```
  L_D   = BCE(D_t(x, y), 1) + BCE(D_t(G(z, y), y), 0)
  g_t   = -grad_x' mean BCE(D_t(x', y), 1)            for fakes x' of uniform conditions
  v_t   = stochastic signs of the `top` largest entries of g_t, 0 elsewhere
  s     = sum_t v_t + N(0, noise^2 I);   a = sign(s) where |s| > threshold * T, else 0
  L_G   = ||x' + step_size * a - G(z, y)||^2          the target is fixed
  ```

  The teachers vote on each fake separately.

  Args:
    networks: generator and critic; the critic's output is a logit. The official z has
      dimension 50.
    optimizer: optax optimizer of all networks.
    teachers: T, the number of shards of equal size, with one discriminator each.
    top: k, the number of gradient entries that vote, at most the size of a record.
    noise: standard deviation in votes; 0 gives no guarantee. With fewer teachers, less
      noise gives the same directions, and the same epsilon allows fewer steps.
    threshold: fraction of the teachers, in [0,1].
    largest: upper bound of the scale at which signs become certain.
    step_size: alpha, the distance per entry between a fake and its target.
    delta: delta of the guarantee, below one over the number of members.
    fakes: B, the number of fakes per generator step.
    critic_steps: teacher steps per generator step.
    warm_epochs: initial epochs in which the teachers train against the untrained
      generator.

  Returns:
    The `Learner`. It does not accept a defense. Its metrics are `critic_loss`;
    `agreed`, the fraction of entries per step that have a direction; and
    `generator_steps`, the number of generator steps per step. `predict` has one logit
    per teacher.

  Raises:
    ValueError: for numbers out of range, including a `top` above the size of a record;
      at `init`, for networks that do not fit the records, for a delta of at least one
      over the number of members, or for a training without a generator step.

  Guarantee: (epsilon, delta)-differential privacy of the released generator when one
    record is replaced by another; the number of members and the assignment of records
    to shards are fixed. (Adding or removing a record moves a second record to another
    shard, which counts as two replacements.) The record changes one teacher, whose
    votes on a fake change by at most 2 sqrt(top) in Euclidean norm, if all signs flip.
    Epsilon composes these Gaussian mechanisms over every fake of every step, without
    data-dependent bounds. Conditions are drawn uniformly and batch statistics come from
    fakes. The teachers, `predict`, the metrics and the model's key are not covered and
    must not be released; the choice of hyper-parameters is not covered either.
    Floating-point noise is not exactly Gaussian.

  Deviation: the official code passes noise / sqrt(2 top) to PATE's accountant, which
    itself assumes a sensitivity of sqrt(2); the product is the 2 sqrt(top) above. (With
    sqrt(2 top), a plain Gaussian accountant would use half of the squared sensitivity.)
    The official code can also use PATE's data-dependent bound from the margin of the
    vote, computed on noised counts; we do not. It stops at a privacy budget; here, the
    number of epochs is given. Its teachers train on each batch twice, and ten times in
    the first epoch, during which the generator is already trained. z is N(0, I), as in
    all our GANs; officially it is uniform. Our discriminators have no BatchNorm.

  Reference: Wang, Wu, Long, Rimanic, Zhang & Li, DataLens: Scalable Privacy Preserving
    Training via Gradient Compression and Aggregation, CCS 2021, arXiv 2103.11109.

  >>> from mixdef.models import table_networks
  >>> datalens(table_networks(20, 2), teachers=50, top=5, noise=60.0).num_shards
  50
  """
  networks, optimizer = check_parts(networks, optimizer)
  _validate(teachers, top, noise, threshold, largest, step_size, delta)
  check_count("datalens: fakes", fakes)
  check_count("datalens: critic_steps", critic_steps)
  check_count("datalens: warm_epochs", warm_epochs, 0)
  numbers = math.prod(networks.shape)
  if top > numbers:
    raise ValueError(
      f"datalens: top is {top}, but a record has {numbers} numbers: pass at most "
      f"{numbers}"
    )

  def init(key, spec):
    count = noisy_steps("datalens", spec, delta, warm_epochs, critic_steps) * fakes
    ratio = noise / (2 * math.sqrt(top))
    epsilon = known_shard_epsilon(ratio, count=count, delta=delta)
    state = {"datalens": stated(epsilon, delta)}
    made = init_networks(networks, optimizer, key, spec, critics=teachers)
    return TrainState(*made, state, key)

  def teacher_step(d, opt, rows, key, state, data):
    g, stats = state.params["g"], state.stats
    batch, fake = real_and_fake(networks, g, stats, data, rows, key)

    def loss(d):
      real, made = (networks.score(d, x, batch.y) for x in (batch.x, fake))
      losses = jax.nn.softplus(-real) + jax.nn.softplus(made)
      return weighted_mean(losses, batch.weight), None

    return minimize(loss, optimizer, d, opt)[:3]

  def directions(d, fake, y, key):
    """Return the direction that the teachers agree on, per fake [B,...]."""
    ids = jnp.arange(teachers)

    def votes(d, key):
      def loss(x):
        return jax.nn.softplus(-networks.score(d, x, y)).mean()

      gradients = -jax.grad(loss)(fake).reshape(fakes, -1)
      keys = row_keys(key, jnp.arange(fakes))
      compress = functools.partial(top_signs, top=top, largest=largest)
      return jax.vmap(compress)(gradients, keys)

    ballots = jax.vmap(votes)(d, row_keys(fold_in_name(key, "signs"), ids))
    count = functools.partial(agreed_direction, noise=noise, threshold=threshold)
    keys = row_keys(fold_in_name(key, "noise"), jnp.arange(fakes))
    return jax.vmap(count, in_axes=(1, 0))(ballots, keys).reshape(fake.shape)

  def generator_step(state, metrics, ctx):
    key = fold_in_name(ctx.key, "generator")
    z, y = public_fakes(networks, key, fakes)

    def loss(g):
      fake, stats = networks.fakes(g, state.stats, z, y, key=key)
      agreed = directions(state.params["d"], jax.lax.stop_gradient(fake), y, key)
      # Of L_G, the part that has a gradient at its own fakes.
      return (-2 * step_size * agreed * fake).sum(), (stats, jnp.abs(agreed).mean())

    g, opt, _, (stats, agreed) = minimize(
      loss, optimizer, state.params["g"], state.opt["g"]
    )
    return put(state, "g", g, opt, stats=stats), {**metrics, "agreed": agreed}

  def step(state, data, rows, ctx):
    keys = row_keys(ctx.key, jnp.arange(teachers))
    d, opt, losses = jax.vmap(teacher_step, (0, 0, 0, 0, None, None))(
      state.params["d"], state.opt["d"], by_shard(rows, teachers), keys, state, data
    )
    due = generator_due(ctx, critic_steps, warm_epochs)
    move = functools.partial(generator_step, ctx=ctx)
    metrics = {"critic_loss": losses.mean(), "agreed": jnp.zeros(())}
    return alternate(due, move, put(state, "d", d, opt), metrics)

  return gan_learner(
    f"datalens(teachers={teachers}, top={top}, noise={noise})",
    networks,
    init,
    step,
    num_shards=teachers,
    guarantee=(lambda state: state.defense["datalens"]) if noise else None,
  )


def top_signs(gradient, key, *, top: int, largest: float):
  r"""Compress a teacher's gradient to stochastic signs of its largest entries.

  $$\Pr[+1] = \min\Big(1, \max\Big(0, \frac{1}{2} + \frac{g}{2b}\Big)\Big),
  \qquad b = \min(\max |g|, \text{largest})$$

  Args:
    gradient: [D], the gradient of one teacher for one fake. Each teacher has its own b,
      because its vote must not depend on the other teachers.
    key: random key of the signs.
    top: k, the number of entries of largest absolute value that vote; the others are 0.
    largest: upper bound of b.

  Returns:
    [D] with k entries of -1 or 1; all zeros for a non-finite gradient.
  """
  size = jnp.abs(gradient)
  bound = jnp.minimum(size.max(), largest)
  # A zero gradient has no scale; its signs are equally likely.
  positive = 0.5 + gradient / jnp.where(bound > 0, 2 * bound, 1.0)
  sign = jnp.where(jax.random.uniform(key, gradient.shape) < positive, 1.0, -1.0)
  _, chosen = jax.lax.top_k(size, top)
  votes = jnp.zeros_like(gradient).at[chosen].set(sign[chosen])
  return jnp.where(jnp.isfinite(gradient).all(), votes, 0.0)


def agreed_direction(votes, key, *, noise: float, threshold: float):
  r"""Sum the votes, add N(0, noise^2) per entry, and return signs above a threshold.

  Args:
    votes: [T,D], entries -1, 0 or 1.
    key: random key of the noise.
    noise: standard deviation of the noise, in votes.
    threshold: fraction of the T teachers that the absolute sum must exceed.

  Returns:
    [D], entries -1, 0 or 1.
  """
  counts = votes.sum(0)
  counts = counts + noise * jax.random.normal(key, counts.shape)
  needed = threshold * len(votes)
  return jnp.where(jnp.abs(counts) > needed, jnp.sign(counts), 0.0)


def _validate(teachers, top, noise, threshold, largest, step_size, delta):
  check_count("datalens: teachers", teachers)
  check_count("datalens: top", top)
  check_plain("datalens: noise", noise)
  check_number("datalens: noise", noise, 0)
  check_number("datalens: threshold", threshold, 0, 1)
  check_number("datalens: largest", largest, above=0)
  check_number("datalens: step_size", step_size, above=0)
  check_delta("datalens", delta)
