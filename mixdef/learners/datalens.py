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
from mixdef.core.text import text_of
from mixdef.learners._chunks import (
  by_chunk,
  critics_answers,
  init_networks,
  public_fakes,
  real_and_fake,
)
from mixdef.learners._gan import check_parts
from mixdef.learners._sanitised import (
  asked_chunk_epsilon,
  check_delta,
  check_members,
  check_plain,
  noisy_steps,
  stated,
)
from mixdef.learners._votes import agreed_direction, top_signs
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
    The `Learner`. It takes no defense. Its metrics are `critic_loss`; `agreed`, the
    fraction of entries per step that have a direction; and `generator_steps`, the
    number of generator steps per step. `predict` has one logit per teacher.

  Raises:
    ValueError: for numbers out of range, `top` above the numbers of a record among
      them; at `init`, for networks that do not fit the records, a delta of one over the
      number of members or more, or a training too short for a step of the generator.

  Guarantee: (epsilon, delta)-differential privacy of the released generator, for one
    record replaced by another where the number of members and who is in which chunk
    stand fixed (a record added or removed moves a second one between chunks: two
    replacements). The record changes one teacher, whose votes on a fake change by at
    most 2 sqrt(top) in Euclidean norm, all its signs turned; epsilon composes such
    Gaussian answers over every fake of every step, without any bound that depends on
    the data. Conditions are drawn uniformly and batch statistics come from fakes.
    Teachers, `predict`, metrics and the model's key are not covered and must not be
    released, nor is the choice of hyper-parameters; floating-point noise is not exactly
    Gaussian.

  Deviation: the official code passes noise / sqrt(2 top) to PATE's accountant, which
    itself assumes a sensitivity of sqrt(2): the product is the 2 sqrt(top) above. A
    plain Gaussian accountant with sqrt(2 top) would halve the square. It also admits
    PATE's bound from the margin of the vote, computed on noised counts; here none. It
    stops at a budget, here training has the length it is given. Its teachers train on
    one batch twice, and ten times in the first epoch, in which the generator already
    moves. z is N(0, I), as for all our GANs, officially uniform; discriminators have no
    BatchNorm.

  Reference: Wang, Wu, Long, Rimanic, Zhang & Li, DataLens: Scalable Privacy Preserving
    Training via Gradient Compression and Aggregation, CCS 2021, arXiv 2103.11109.

  >>> from mixdef.models import table_networks
  >>> datalens(table_networks(20, 2), teachers=50, top=5, noise=60.0).num_shards
  50
  """
  optimizer = check_parts(networks, optimizer)
  _validate(teachers, top, noise, threshold, largest, step_size, delta)
  check_count("datalens: fakes", fakes)
  check_count("datalens: critic_steps", critic_steps)
  check_count("datalens: warm_epochs", warm_epochs, 0)
  numbers = math.prod(networks.shape)
  if top > numbers:
    raise ValueError(
      f"datalens: top is {top}, and a record has {numbers} numbers: give at most these"
    )
  generator, critic = networks.generator, networks.critic

  def logits(d, x, y):
    return critic.apply({"params": d}, x, y)

  def init(key, spec):
    check_members("datalens", delta, spec)
    count = noisy_steps("datalens", spec, warm_epochs, critic_steps) * fakes
    ratio = noise / (2 * math.sqrt(top))
    epsilon = asked_chunk_epsilon(ratio, count=count, delta=delta)
    state = {"datalens": stated(epsilon, delta)}
    made = init_networks(networks, optimizer, key, spec, critics=teachers)
    return TrainState(*made, state, key)

  def teacher_step(d, opt, rows, key, data, g, stats):
    batch, fake = real_and_fake(networks, g, stats, data, rows, key)

    def loss(d):
      real, made = logits(d, batch.x, batch.y), logits(d, fake, batch.y)
      losses = jax.nn.softplus(-real) + jax.nn.softplus(made)
      return weighted_mean(losses, batch.weight)

    value, grads = jax.value_and_grad(loss)(d)
    updates, opt = optimizer.update(grads, opt, d)
    return optax.apply_updates(d, updates), opt, value

  def directions(d, fake, y, key):
    """Return the direction that the teachers agree on, per fake [B,...]."""
    ids = jnp.arange(teachers)

    def votes(d, key):
      def loss(x):
        return jax.nn.softplus(-logits(d, x, y)).mean()

      gradients = -jax.grad(loss)(fake).reshape(fakes, -1)
      keys = row_keys(key, jnp.arange(fakes))
      compress = functools.partial(top_signs, top=top, largest=largest)
      return jax.vmap(compress)(gradients, keys)

    ballots = jax.vmap(votes)(d, row_keys(fold_in_name(key, "signs"), ids))
    count = functools.partial(agreed_direction, noise=noise, threshold=threshold)
    keys = row_keys(fold_in_name(key, "noise"), jnp.arange(fakes))
    return jax.vmap(count, in_axes=(1, 0))(ballots, keys).reshape(fake.shape)

  def generator_step(g, opt, stats, d, ctx):
    key = fold_in_name(ctx.key, "generator")
    z, y = public_fakes(networks, key, fakes)

    def made(g):
      how = {"train": True, "mutable": list(stats)}
      return generator.apply({"params": g, **stats}, z, y, **how)

    fake, pull, stats = jax.vjp(made, g, has_aux=True)
    agreed = directions(d, fake, y, key)
    (grads,) = pull(-2 * step_size * agreed)  # the gradient of L_G at its own fakes
    updates, opt = optimizer.update(grads, opt, g)
    return optax.apply_updates(g, updates), opt, stats, jnp.abs(agreed).mean()

  def step(state, data, rows, ctx):
    g, stats = state.params["g"], state.stats
    keys = row_keys(ctx.key, jnp.arange(teachers))
    d, d_opt, losses = jax.vmap(
      functools.partial(teacher_step, data=data, g=g, stats=stats)
    )(state.params["d"], state.opt["d"], by_chunk(rows, teachers), keys)
    place = ctx.step - warm_epochs * ctx.steps_per_epoch
    due = (place >= 0) & ((place + 1) % critic_steps == 0)
    g, g_opt, stats, agreed = jax.lax.cond(
      due,
      lambda: generator_step(g, state.opt["g"], stats, d, ctx),
      lambda: (g, state.opt["g"], stats, jnp.zeros(())),
    )
    params, opt = {"g": g, "d": d}, {"g": g_opt, "d": d_opt}
    metrics = {
      "critic_loss": losses.mean(),
      "agreed": agreed,
      "generator_steps": due.astype(jnp.float32),
    }
    return TrainState(params, stats, opt, state.defense, state.key), metrics

  def generate(state, z, y):
    return generator.apply({"params": state.params["g"], **state.stats}, z, y)

  return Learner(
    init=init,
    step=step,
    epoch=None,
    finish=None,
    predict=critics_answers(networks),
    text=f"datalens(teachers={teachers}, top={top}, noise={noise})|"
    f"{text_of(generator)}|{text_of(critic)}",
    generate=generate,
    latent=networks.latent,
    num_classes=networks.num_classes,
    num_shards=teachers,
    guarantee=(lambda state: state.defense["datalens"]) if noise else None,
  )


def _validate(teachers, top, noise, threshold, largest, step_size, delta):
  check_count("datalens: teachers", teachers)
  check_count("datalens: top", top)
  check_plain("datalens: noise", noise)
  check_number("datalens: noise", noise, 0)
  check_number("datalens: threshold", threshold, 0, 1)
  check_number("datalens: largest", largest, above=0)
  check_number("datalens: step_size", step_size, above=0)
  check_delta("datalens", delta)
