"""The two networks of a GAN may be of any library."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from flax import nnx
from gan_cases import CLASSES, FEATURES, LATENT, NETWORKS, SGD, halves, train

import mixdef
from mixdef.models import Networks, adapt


class Generator(nnx.Module):
  def __init__(self, rngs, rate=0.2):
    self.hidden = nnx.Linear(LATENT + CLASSES, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)
    self.out = nnx.Linear(8, FEATURES, rngs=rngs)

  def __call__(self, z, y):
    x = self.norm(self.hidden(jnp.concatenate([z, y], -1)))
    return nnx.sigmoid(self.out(self.drop(nnx.relu(x))))


class Critic(nnx.Module):
  def __init__(self, rngs, rate=0.0):
    self.hidden = nnx.Linear(FEATURES + CLASSES, 8, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)
    self.out = nnx.Linear(8, 1, rngs=rngs)

  def __call__(self, x, y):
    x = nnx.relu(self.hidden(jnp.concatenate([x, y], -1)))
    return self.out(self.drop(x))[:, 0]


class Normed(Critic):
  def __init__(self, rngs):
    super().__init__(rngs)
    self.norm = nnx.BatchNorm(FEATURES, rngs=rngs)

  def __call__(self, x, y):
    return super().__call__(self.norm(x), y)


class Scalar(eqx.Module):
  layers: eqx.nn.MLP

  def __init__(self, key):
    self.layers = eqx.nn.MLP(FEATURES + CLASSES, "scalar", 8, 1, key=key)

  def __call__(self, x, y):
    return self.layers(jnp.concatenate([x, y]))


PAIR = (
  lambda key, z, y: jax.random.normal(key, (z.shape[1] + y.shape[1], FEATURES)),
  lambda params, z, y: jax.nn.sigmoid(jnp.concatenate([z, y], -1) @ params),
)


def networks(generator, critic):
  return Networks(generator, critic, LATENT, CLASSES, (FEATURES,))


def as_pair(module):
  """The same linen module as two functions."""
  adapted = adapt(module, inputs=2)
  return (
    lambda key, a, b: adapted.init(key, a, b)["params"],
    lambda params, a, b: adapted.apply({"params": params}, a, b, train=True)[0],
  )


@pytest.mark.slow
def test_functions_train_as_the_modules_that_they_apply():
  twin = NETWORKS._replace(
    generator=as_pair(NETWORKS.generator), critic=as_pair(NETWORKS.critic)
  )
  one, other = (
    train(mixdef.wgan_gp(each, SGD, critic_steps=1)) for each in (NETWORKS, twin)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    one.states.params,
    other.states.params,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "generator", "critic"),
  [
    (mixdef.wgan_gp, Generator, Critic),
    (mixdef.par_gan, PAIR, Scalar),
    (mixdef.priv_gan, Generator, Critic),
    (mixdef.gs_wgan, PAIR, Critic),
  ],
)
def test_two_libraries_make_a_gan(make, generator, critic):
  wide = make is mixdef.gs_wgan
  options = {"critics": 2, "critic_steps": 1} if wide else {}
  pair = networks(generator, critic)
  trained = train(make(pair, optax.sgd(0.03), **options), strategy="vmap")
  learner, state = trained[0].learner, trained[0].state
  z = jax.random.normal(jax.random.key(0), (5, LATENT))
  made = learner.generate(state, z, jax.nn.one_hot(jnp.arange(5) % CLASSES, CLASSES))
  assert made.shape == (5, FEATURES)
  assert np.isfinite(made).all()
  for leaf in jax.tree.leaves(trained.states.stats):
    assert np.abs(leaf[0] - leaf[1]).max() > 0


@pytest.mark.slow
def test_a_critic_of_nnx_is_clipped_record_by_record(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  learner = mixdef.wgan_gp(
    networks(PAIR, Critic), SGD, mixdef.parse("dp_sgd(1.0, delta=1e-3)")
  )
  trained = train(learner, members=halves(2), strategy="vmap")
  assert trained[0].guarantee["epsilon"] > 0
  reasons = {line for line in said if line.startswith("ghost clipping")}
  assert len(reasons) == 1
  assert "is called inside another transformation" in reasons.pop()


@pytest.mark.parametrize(
  ("critic", "message"),
  [
    (lambda rngs: Critic(rngs, 0.5), "the critic draws random numbers in training"),
    (Normed, "the critic has state besides its parameters"),
    (3, "model is 3 of type int"),
  ],
)
def test_a_critic_that_cannot_score_is_refused(critic, message):
  with pytest.raises((TypeError, ValueError), match=message):
    train(mixdef.wgan_gp(networks(PAIR, critic), SGD))
