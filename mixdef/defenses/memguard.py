"""MemGuard: bounded noise on the outputs that deceives an attack network."""

import jax
import jax.numpy as jnp
import optax

from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense, defense
from mixdef.core.randomness import hash_rows, row_keys
from mixdef.core.traits import Traits

_WIDTHS = (256, 128, 64)
_HALF = 32  # members, and equally many auxiliary rows, per step of the attack network
_LEARNING_RATE = 1e-3
_STEP = 0.1
_LABEL_WEIGHT = 10.0
_FIRST_WEIGHT, _ROUNDS = 0.1, 7  # weights of the distortion: 0.1, 1, ..., 1e5


@defense(neutral="memguard(0.0)")
def memguard(budget=1.0, *, steps=300, epochs=400) -> Defense:
  """Change outputs until an attack network is undecided, within an expected budget.

  After training, a network g learns to distinguish members from auxiliary rows by the
  sorted probabilities; h is its log-odds. For a query with log-probabilities f and
  label y = argmax f:

  ```
  minimise over e   |h(q)| + 10 max(0, max_{k != y} (f+e)_k - (f+e)_y) + c3 d
                    q = softmax(f + e),   d = ||q - softmax(f)||_1
  e <- e - 0.1 grad / ||grad||     from e = 0, until h changes sign with the label kept
  c3 = 0.1, 1, ..., 1e5            while that succeeds; the last success is kept
  release q with probability min(budget / d, 1), if |h(q)| < |h(f)|; else softmax(f)
  ```

  The random decision is determined by the model's key and a hash of the record, so a
  repeated query has the same output: independent decisions would reveal the original.

  Args:
    budget: bound on the expected L1 distortion of a record, at least 0; 0 changes
      nothing and 2 is not a restriction. The paper reports 1, 0.7, 0.5, 0.3, 0.1, 0.
    steps: steps per minimization, at least 1. A query always runs 7 minimizations,
      because the running time must not reveal what the output hides.
    epochs: passes over the auxiliary rows when g is trained, at least 1.

  Returns:
    The defense, which needs auxiliary records. Its state is g.

  Raises:
    ValueError: for an argument out of range.

  Guarantee: none on membership. The label is unchanged, so label-only attacks are
    exactly as strong as without it. The distortion is within the budget in expectation
    over the coin, for every record. An attacker who trains on defended outputs, or uses
    an attack other than g, may still succeed. g is trained on the members without noise
    and affects all outputs, so `dp_sgd` must give up its epsilon.

  Deviation: g is 256-128-64-1 as in the official code, which trains it by SGD at 0.001;
    here it is Adam at 0.001, on 32 members and 32 auxiliary rows a step, drawn with
    replacement [ours]. Every c3 starts from e = 0 [ours]. The label is compared after
    rounding, so rounding cannot change it. g is trained on outputs that no other part
    has changed: in a chain, other output parts must come after it.

  Reference: Jia, Salem, Backes, Zhang, Gong, MemGuard: Defending against Black-Box
    Membership Inference Attacks via Adversarial Examples, 2019, arXiv 1909.10594.

  >>> str(memguard(0.5))
  'memguard(budget=0.5)'
  """
  check_number("memguard: budget", budget, 0)
  check_count("memguard: steps", steps)
  check_count("memguard: epochs", epochs)

  def init(key, spec):
    return _make_net(key, (spec.num_classes, *_WIDTHS, 1))

  def finish(net, ctx):
    answers = ctx.predict(ctx.data.x)
    return _train(net, answers, ctx.members, ctx.data.auxiliary, epochs, ctx.key)

  def release_output(log_probs, net, ctx):
    moved = disguise(net, log_probs, steps)
    share = release_share(jnp.abs(jnp.exp(moved) - jnp.exp(log_probs)).sum(-1), budget)
    coin = jax.vmap(jax.random.uniform)(row_keys(ctx.key, hash_rows(ctx.queries)))
    return jnp.where((coin < share)[:, None], moved, log_probs)

  return Defense(
    "",
    init=init,
    finish=finish,
    release_output=release_output,
    traits=Traits(couples="records", needs_auxiliary=True),
  )


def release_share(distortion, budget):
  """Return the probability with which a perturbed output [B] may be released.

  It is min(budget / distortion, 1), for the L1 distortion: the expected distortion is
  at most the budget.

  >>> [round(float(p), 6) for p in release_share(jnp.array([1.25, 0.5, 0.0]), 0.5)]
  [0.4, 1.0, 1.0]
  """
  tiny = jnp.finfo(distortion.dtype).tiny
  return jnp.minimum(budget / jnp.maximum(distortion, tiny), 1.0)


def log_odds(net, log_probs):
  """Return the attack network's log-odds of membership [B] for outputs [B,K]."""
  values = jnp.sort(jnp.exp(log_probs))
  for weights, bias in net[:-1]:
    values = jax.nn.relu(values @ weights + bias[None])
  weights, bias = net[-1]
  return (values @ weights + bias[None])[:, 0]


def disguise(net, log_probs, steps):
  """Return log-probabilities [B,K] about which the network is less certain.

  Args:
    net: the attack network, `(weights, bias)` of each layer.
    log_probs: [B,K].
    steps: steps per minimization.

  Returns:
    [B,K] with the label of each row; the row itself where the search found nothing.
  """
  label = log_probs.argmax(-1)
  is_label = jax.nn.one_hot(label, log_probs.shape[-1], dtype=bool)
  # Apply the softmax once more, as `look` does, so that the distortion at e = 0 is
  # exactly 0; otherwise the sign of a rounding error would choose the first step.
  probs, before = jnp.exp(jax.nn.log_softmax(log_probs)), log_odds(net, log_probs)

  def look(noise):
    """Return the output with this noise, its log-odds, and whether it is admissible."""
    moved = jax.nn.log_softmax(log_probs + noise)
    after = log_odds(net, moved)
    done = (after * before <= 0) & (moved.argmax(-1) == label)
    return moved, after, done

  def cost(noise, weight):
    moved, after, done = look(noise)
    own = jnp.where(is_label, moved, 0.0).sum(-1)
    lead = jnp.where(is_label, -jnp.inf, moved).max(-1) - own
    distortion = jnp.abs(jnp.exp(moved) - probs).sum(-1)
    costs = jnp.abs(after) + _LABEL_WEIGHT * jax.nn.relu(lead) + weight * distortion
    return costs.sum(), done

  def search(weight):
    def step(_, noise):
      grad, done = jax.grad(cost, has_aux=True)(noise, weight)
      size = jnp.linalg.norm(grad, axis=-1, keepdims=True)
      move = _STEP * grad / jnp.where(size > 0, size, 1.0)
      return jnp.where(done[:, None], noise, noise - move)

    return jax.lax.fori_loop(0, steps, step, jnp.zeros_like(log_probs))

  def attempt(i, carry):
    best, alive = carry
    noise = search(_FIRST_WEIGHT * 10.0**i)
    alive &= look(noise)[2]
    return jnp.where(alive[:, None], noise, best), alive

  start = jnp.zeros_like(log_probs), jnp.ones_like(label, dtype=bool)
  moved, after, done = look(jax.lax.fori_loop(0, _ROUNDS, attempt, start)[0])
  closer = done & (jnp.abs(after) < jnp.abs(before))
  return jnp.where(closer[:, None], moved, log_probs)


def _train(net, log_probs, member, auxiliary, epochs, key):
  """Train the network on equally many members and auxiliary rows."""
  optimizer = optax.adam(_LEARNING_RATE)
  kinds = [(jnp.argsort(~kind), kind.sum()) for kind in (member, auxiliary)]

  def loss(net, rows):
    odds = log_odds(net, log_probs[rows]).reshape(2, _HALF)
    return jax.nn.softplus(jnp.stack([-odds[0], odds[1]])).mean()

  def step(i, carry):
    net, opt = carry
    keys = jax.random.split(jax.random.fold_in(key, i))
    rows = [
      order[jax.random.randint(key, (_HALF,), 0, count)]
      for key, (order, count) in zip(keys, kinds, strict=True)
    ]
    grads = jax.grad(loss)(net, jnp.concatenate(rows))
    updates, opt = optimizer.update(grads, opt)
    return optax.apply_updates(net, updates), opt

  steps = epochs * -(-kinds[1][1] // _HALF)
  return jax.lax.fori_loop(0, steps, step, (net, optimizer.init(net)))[0]


def _make_net(key, sizes):
  he = jax.nn.initializers.he_normal()
  layers = zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False)
  return [(he(key, (i, o)), jnp.zeros(o)) for key, i, o in layers]
