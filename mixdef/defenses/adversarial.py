"""Adversarial regularization: train against an attack network that trains as well."""

import jax
import jax.numpy as jnp
import optax

from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense, defense, weighted_mean
from mixdef.core.randomness import fold_in_name
from mixdef.core.traits import Traits

_ANSWER, _LABEL, _COMMON = (1024, 512, 64), (128, 64), (256, 64, 1)
_SPREAD = 0.01  # std of the initial weights; the biases start at 0


@defense(neutral="adversarial_regularization(0.0)")
def adversarial_regularization(
  coefficient=3.0, *, start=1, attack_steps=1, attack_rate=1e-4
) -> Defense:
  """Penalize the classifier by what an attack network infers from its outputs.

  h reads the output f(x) and the label y and classifies members (1) and others (0):

  ```
  classifier   CE + coefficient (mean_members h(f(x), y) - 0.5)     from epoch `start`
  attack       mean_members (h - 1)^2 + mean_reference h^2          every step, Adam
  h            answer K-1024-512-64, label K-128-64, both 128-256-64-1, sigmoid
  ```

  ReLU between the layers. Neither gradient reaches the other network.

  Args:
    coefficient: weight of the penalty, at least 0; 0 gives no defense. Published: 3 on
      Purchase; in the repository of HAMP 10 on Texas and Location, 6 on CIFAR.
    start: first epoch, from 0, with the penalty. Before it, the classifier trains
      without the penalty, and h already learns from it.
    attack_steps: number of Adam steps of h after each step of the classifier, at least
      1.
    attack_rate: Adam's learning rate for h, above 0; 1e-4 in the official code.

  Returns:
    The defense, which needs auxiliary records. Its state is h with its optimizer.

  Raises:
    ValueError: for an argument out of range.

  Guarantee: none. The loss of a row depends only on the row and on h, but h was trained
    on the outputs of other records without noise: per-example clipping bounds the
    gradient but not the influence of a record, so `dp_sgd` must give up its epsilon.
    The state contains an attack model: release the model without it.

  Deviation: the official schedule is an epoch of plain training, five epochs of h, then
    rounds of 52 batches for h and 2 for the classifier. Here every step trains both, h
    on the rows and outputs of the step: `attack_steps=26` is the official ratio, on one
    batch. The default of 1 has a low cost but a weak h: its initial weights are so
    small that it learns little in a few hundred steps. (90 random records, 120 steps of
    the classifier: training accuracy 1.00 with 1, 0.70 with 26.) h reads
    log-probabilities, the official code logits; they are those of the step, in train
    mode. Members and auxiliary rows have equal total weight, however few auxiliary rows
    are in a batch. The shared layers are an interpretation [ours]; the official code
    has 128-512-256-128-64-1. The label is the training target, which other parts may
    have made soft; with a mixer in the chain h compares mixed members with unmixed
    auxiliary rows [ours].

  Reference: Nasr, Shokri, Houmansadr, Machine Learning with Membership Privacy using
    Adversarial Regularization, 2018, arXiv 1807.05852.

  >>> str(adversarial_regularization(6.0, attack_steps=26))
  'adversarial_regularization(coefficient=6.0, attack_steps=26)'
  """
  what = "adversarial_regularization"
  check_number(f"{what}: coefficient", coefficient, 0)
  check_number(f"{what}: start", start, 0)
  check_count(f"{what}: attack_steps", attack_steps)
  check_number(f"{what}: attack_rate", attack_rate, above=0)
  optimizer = optax.adam(attack_rate)

  def init(key, spec):
    net = make_net(key, spec.num_classes)
    return {"net": net, "opt": optimizer.init(net)}

  def loss(losses, state, ctx):
    gain = membership(state["net"], ctx.log_probs, ctx.batch.y) - 0.5
    return losses + jnp.where(ctx.epoch >= start, coefficient, 0.0) * gain

  def update(state, ctx):
    def step(_, state):
      grads = jax.grad(attack_loss)(state["net"], ctx.log_probs, ctx.batch)
      updates, opt = optimizer.update(grads, state["opt"])
      return {"net": optax.apply_updates(state["net"], updates), "opt": opt}

    return jax.lax.fori_loop(0, attack_steps, step, state)

  return Defense(
    "",
    init=init,
    loss=loss,
    update=update,
    traits=Traits(couples="records", needs_auxiliary=True, auxiliary_rows=True),
  )


def membership(net, log_probs, y):
  """Return h [B], the attack network's probability that each row is a member.

  Args:
    net: result of `make_net`.
    log_probs: log-probabilities [B,K].
    y: labels [B,K] on the simplex.
  """
  sides = [_relu_layers(net["answer"], log_probs), _relu_layers(net["label"], y)]
  hidden = _relu_layers(net["common"][:-1], jnp.concatenate(sides, -1))
  weights, bias = net["common"][-1]
  return jax.nn.sigmoid(hidden @ weights + bias[None])[:, 0]


def attack_loss(net, log_probs, batch):
  """Return the attack network's loss: targets 1 for members, 0 for auxiliary rows."""
  belief = membership(net, log_probs, batch.y)
  members = weighted_mean((belief - 1) ** 2, batch.weight)
  return members + weighted_mean(belief**2, batch.auxiliary)


def make_net(key, classes):
  """Initialize an attack network: `(weights, bias)` per layer of its three parts."""
  both = _ANSWER[-1] + _LABEL[-1]
  sizes = {
    "answer": (classes, *_ANSWER),
    "label": (classes, *_LABEL),
    "common": (both, *_COMMON),
  }
  return {name: _layers(fold_in_name(key, name), size) for name, size in sizes.items()}


def _layers(key, sizes):
  shapes = zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False)
  return [(_SPREAD * jax.random.normal(k, (i, o)), jnp.zeros(o)) for k, i, o in shapes]


def _relu_layers(layers, values):
  for weights, bias in layers:
    values = jax.nn.relu(values @ weights + bias[None])
  return values
