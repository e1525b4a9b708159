"""The networks for tables are what their formulas say; `mlp_wgan_gp` trains them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gan_cases import CLASSES, DATA, FEATURES, ctx_at, device, rows_of, same, start

import mixdef
from mixdef.defenses import mixup
from mixdef.learners import mlp_wgan_gp, wgan_gp
from mixdef.models import medgan_networks, table_networks

B, WIDTH, LATENT = 5, 7, 4
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(B, LATENT)).astype(np.float32)
X = RNG.random((B, FEATURES), dtype=np.float32)
Y = np.eye(CLASSES, dtype=np.float32)[RNG.integers(CLASSES, size=B)]
SOFT = 0.3 * Y + 0.7 * Y[::-1]


def drawn(module, *inputs):
  """Parameters without zeros, which would hide what they multiply or add."""
  variables = module.init(jax.random.key(0), *inputs)
  return jax.tree.map(
    lambda leaf: leaf + 0.1 * RNG.random(leaf.shape, np.float32), variables
  )


def dense(params, layer, x):
  kernel, bias = (np.asarray(params[f"Dense_{layer}"][k]) for k in ("kernel", "bias"))
  return x @ kernel + bias


def sigmoid(a):
  return 1 / (1 + np.exp(-a))


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_table_networks_by_hand(conditional):
  networks = table_networks(
    *(FEATURES, CLASSES), hidden=WIDTH, latent=LATENT, conditional=conditional
  )
  for module, inputs, slope, release in (
    (networks.generator, Z, 0.0, sigmoid),
    (networks.critic, X, 0.2, lambda a: a[:, 0]),
  ):
    variables = drawn(module, inputs, SOFT)
    x = np.concatenate([inputs, SOFT], 1) if conditional else inputs
    for layer in range(2):
      x = dense(variables["params"], layer, x)
      x = np.where(x > 0, x, slope * x)
    by_hand = release(dense(variables["params"], 2, x))
    np.testing.assert_allclose(module.apply(variables, inputs, SOFT), by_hand, 1e-4)


def test_a_one_hot_condition_is_a_row_of_the_kernel():
  """Pitfall 100: a condition enters by a product, which one-hot rows make a lookup."""
  generator = table_networks(
    *(FEATURES, CLASSES), hidden=WIDTH, latent=LATENT, conditional=True
  ).generator
  variables = drawn(generator, Z, Y)
  kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])
  looked_up = kernel[LATENT + Y.argmax(1)]
  hidden = Z @ kernel[:LATENT] + looked_up + variables["params"]["Dense_0"]["bias"]
  hidden = np.maximum(dense(variables["params"], 1, np.maximum(hidden, 0)), 0)
  by_hand = sigmoid(dense(variables["params"], 2, hidden))
  np.testing.assert_allclose(generator.apply(variables, Z, Y), by_hand, rtol=1e-4)


@pytest.mark.slow
def test_medgan_networks_by_hand():
  networks = medgan_networks(FEATURES, CLASSES, latent=LATENT, hidden=(WIDTH, 3))
  encoder = drawn(networks.encoder, X)
  code = np.tanh(dense(encoder["params"], 0, X))
  np.testing.assert_allclose(networks.encoder.apply(encoder, X), code, rtol=1e-4)
  decoder = drawn(networks.decoder, Z)
  by_hand = dense(decoder["params"], 0, Z)
  np.testing.assert_allclose(networks.decoder.apply(decoder, Z), by_hand, rtol=1e-4)
  mean = RNG.random(FEATURES, np.float32)
  critic = drawn(networks.critic, X, mean)
  hidden = np.concatenate([X, np.tile(mean, (B, 1))], 1)
  for layer in range(2):
    hidden = np.maximum(dense(critic["params"], layer, hidden), 0)
  by_hand = dense(critic["params"], 2, hidden)[:, 0]
  np.testing.assert_allclose(networks.critic.apply(critic, X, mean), by_hand, 1e-4)


def test_the_code_generator_has_shortcuts_and_masks_padding():
  generator = medgan_networks(FEATURES, CLASSES, latent=LATENT).generator
  variables = drawn(generator, Z)
  params, kept = variables["params"], variables["batch_stats"]
  weight = np.array([1, 1, 0, 1, 0], np.float32)
  x = z = Z[weight > 0]
  moved = {}
  for layer in range(3):
    x = z @ np.asarray(params[f"Dense_{layer}"]["kernel"])
    name = f"BatchNorm_{layer}"
    moved[name] = {
      k: 0.9 * kept[name][k] + 0.1 * v
      for k, v in (("mean", x.mean(0)), ("var", x.var(0)))
    }
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    x = x * params[name]["scale"] + params[name]["bias"]
    z = z + (np.tanh(x) if layer == 2 else np.maximum(x, 0))
  code, new = generator.apply(
    variables, Z, train=True, weight=weight, mutable="batch_stats"
  )
  np.testing.assert_allclose(code[weight > 0], z, rtol=1e-3, atol=1e-5)
  assert same(new["batch_stats"], moved, atol=1e-5)


@pytest.mark.parametrize(
  ("make", "sizes", "line"),
  [
    (table_networks, {"hidden": 0}, "hidden is 0"),
    (table_networks, {"num_features": 2.0}, r"num_features is 2\.0"),
    (medgan_networks, {"latent": -1}, "latent is -1"),
    (medgan_networks, {"hidden": (8, 0)}, "hidden is 0"),
    (medgan_networks, {"num_classes": 0}, "num_classes is 0"),
  ],
)
def test_sizes_out_of_range(make, sizes, line):
  with pytest.raises(ValueError, match=line):
    make(**{"num_features": FEATURES, "num_classes": CLASSES, **sizes})


@pytest.mark.slow
def test_mlp_wgan_gp_is_wgan_gp_of_the_table_networks():
  named = mlp_wgan_gp(
    *(FEATURES, CLASSES), defense=mixup(), hidden=WIDTH, latent=LATENT, critic_steps=2
  )
  networks = table_networks(FEATURES, CLASSES, hidden=WIDTH, latent=LATENT)
  built = wgan_gp(networks, defense=mixup(), critic_steps=2)
  state = start(named)
  assert same(state, start(built))
  one, other = (
    jax.jit(learner.step)(state, device(DATA), rows_of(5), ctx_at(1))
    for learner in (named, built)
  )
  assert same(one, other)
  x, labels = jnp.asarray(DATA.x), jnp.eye(CLASSES)[jnp.asarray(DATA.y)]
  assert same(named.predict(state, x), named.predict(state, x, y=labels))


@pytest.mark.slow
def test_an_undefended_mlp_wgan_gp_knows_its_members():
  """The negative control: without it, nothing is learned from a defended one."""
  rng = np.random.default_rng(1)
  x = (rng.random((64, 40)) < 0.3).astype(np.float32)
  data = mixdef.data.Dataset.from_arrays(x, np.zeros(64, int), num_classes=1)
  members = np.arange(64) < 32
  run = mixdef.fit(
    mlp_wgan_gp(40, 1, hidden=32, latent=8), data, members, epochs=100, batch_size=8
  )
  scores = run.log_probs(x)[:, 0]
  above = scores[members][:, None] > scores[~members]
  assert above.mean() > 0.8
