"""The networks of GANs take soft conditions and judge each record alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.models import image_networks, table_networks

CLASSES = 3
TABLES = table_networks(6, CLASSES, hidden=8, latent=3, conditional=True)
PICTURES = image_networks((8, 8), CLASSES, width=2, latent=3)
BOTH = pytest.mark.parametrize("networks", [TABLES, PICTURES], ids=["table", "image"])
KEY = jax.random.key(0)


def draw(networks, count=4, seed=0):
  """Draw records, latents and conditions on the simplex."""
  x_key, z_key, y_key = jax.random.split(jax.random.key(seed), 3)
  return (
    jax.random.uniform(x_key, (count, *networks.shape)),
    jax.random.normal(z_key, (count, networks.latent)),
    jax.random.dirichlet(y_key, jnp.ones(CLASSES), (count,)),
  )


@functools.cache
def variables_of(networks):
  x, z, y = draw(networks)
  generator = jax.jit(networks.generator.init)(KEY, z, y)
  return generator, jax.jit(networks.critic.init)(KEY, x, y)


def first_layer(networks, *, critic):
  """A condition [B,K] to what the first layer makes of it beside a fixed input."""
  x, z, _ = draw(networks)
  module = networks.critic if critic else networks.generator
  variables = variables_of(networks)[critic]
  name = "Conv_0" if critic and networks is PICTURES else "Dense_0"

  @jax.jit
  def answer(y):
    _, kept = module.apply(
      variables,
      *(x if critic else z, y),
      capture_intermediates=lambda layer, _: layer.name == name,
      mutable="intermediates",
    )
    return kept["intermediates"][name]["__call__"][0]

  return answer


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("critic", [False, True], ids=["generator", "critic"])
def test_pitfall_100_the_first_layer_is_linear_in_the_condition(networks, critic):
  answer = first_layer(networks, critic=critic)
  one, other = (jnp.eye(CLASSES)[jnp.full(4, k)] for k in (0, 2))
  mixed = answer(0.3 * one + 0.7 * other)
  np.testing.assert_allclose(mixed, 0.3 * answer(one) + 0.7 * answer(other), atol=1e-5)
  assert not np.allclose(answer(one), answer(other), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("critic", [False, True], ids=["generator", "critic"])
def test_pitfall_100_a_one_hot_condition_looks_its_row_up(critic):
  """A class adds the row of the first kernel that belongs to it, and nothing else."""
  answer = first_layer(TABLES, critic=critic)
  kernel = variables_of(TABLES)[critic]["params"]["Dense_0"]["kernel"]
  nothing = answer(jnp.zeros((4, CLASSES)))
  for label in range(CLASSES):
    added = answer(jnp.eye(CLASSES)[jnp.full(4, label)]) - nothing
    row = kernel[len(kernel) - CLASSES + label]
    np.testing.assert_allclose(added, jnp.broadcast_to(row, added.shape), atol=1e-5)


@BOTH
def test_a_critic_judges_each_record_alone(networks):
  x, _, y = draw(networks)
  variables = variables_of(networks)[1]
  score = jax.jit(functools.partial(networks.critic.apply, variables))
  whole = score(x, y)
  assert whole.shape == (4,)
  others = score(x.at[1:].set(1 - x[1:]), y.at[1:].set(y[1:, ::-1]))
  np.testing.assert_allclose(others[0], whole[0], rtol=1e-5)
  assert not np.isclose(others[1], whole[1], rtol=1e-3)


@BOTH
def test_records_are_in_the_unit_range_and_vary(networks):
  _, z, y = draw(networks)
  records = networks.generator.apply(variables_of(networks)[0], 20 * z, y)
  assert records.shape == (4, *networks.shape)
  assert records.min() >= 0
  assert records.max() <= 1
  assert np.abs(records[0] - records[1]).max() > 0.1


def test_batch_statistics_leave_padding_out():
  _, z, y = draw(PICTURES)
  make = jax.jit(
    functools.partial(PICTURES.generator.apply, train=True, mutable=["batch_stats"])
  )
  variables, weight = variables_of(PICTURES)[0], jnp.array([1.0, 1, 0, 1])
  one = make(variables, z, y, weight=weight)
  other = make(variables, z.at[2].set(50.0), y.at[2].set(9.0), weight=weight)
  for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  members = np.array([0, 1, 3])
  np.testing.assert_allclose(one[0][members], other[0][members], rtol=1e-5)
  counted = make(variables, z.at[2].set(50.0), y, weight=jnp.ones(4))
  assert not np.allclose(counted[0][members], one[0][members], atol=1e-3)


def test_an_attacked_generator_uses_running_statistics():
  _, z, y = draw(PICTURES)
  make = jax.jit(functools.partial(PICTURES.generator.apply, variables_of(PICTURES)[0]))
  np.testing.assert_allclose(make(z, y)[0], make(z.at[1:].add(5.0), y)[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "stages"),
  [((8, 8), 1), ((28, 28), 3), ((32, 32, 3), 3), ((64, 64, 3), 4), ((10, 6, 1), 2)],
)
def test_every_size_of_picture_has_its_stages(shape, stages):
  networks = image_networks(shape, CLASSES, width=2, latent=3)
  assert networks.shape == shape
  x, z, y = draw(networks, count=2)
  generated, made = jax.eval_shape(networks.generator.init_with_output, KEY, z, y)
  scores, judged = jax.eval_shape(networks.critic.init_with_output, KEY, x, y)
  assert generated.shape == x.shape
  assert scores.shape == (2,)
  ups = [name for name in made["params"] if name.startswith("ConvTranspose")]
  downs = [name for name in judged["params"] if name.startswith("Conv_")]
  assert len(ups) == stages
  assert len(downs) == stages + 1


def test_the_networks_for_celeba_are_the_official_ones():
  """Sizes of generative.md's 64x64 networks at width 64, added up by hand."""
  networks = image_networks((64, 64, 3), 2, latent=256)
  x, z, y = draw(networks, count=1)
  y = y[:, :2]
  made = jax.eval_shape(networks.generator.init, KEY, z, y)["params"]
  judged = jax.eval_shape(networks.critic.init, KEY, x, y)["params"]
  channels = [512, 256, 128, 64]
  up = sum(25 * a * b for a, b in itertools.pairwise([*channels, 3]))
  norms = 2 * sum(channels)
  assert _size(made) == (256 + 2) * 16 * 512 + up + 3 + norms
  widths = [3 + 2, 64, 128, 256, 512]
  down = sum(25 * a * b + b for a, b in itertools.pairwise(widths))
  assert _size(judged) == down + 2 * (128 + 256 + 512) + 16 * 512 + 1


def _size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_group_normalisation_keeps_no_statistics():
  networks = image_networks((8, 8), CLASSES, width=2, latent=3, norm="group")
  _, z, y = draw(networks)
  assert jax.eval_shape(networks.generator.init, KEY, z, y).keys() == {"params"}


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ((8,), {}, r"shape=\(8,\) is not that of an image"),
    ((1, 8), {}, "not that of an image"),
    ((8, 8), {"width": 0}, "width is 0; pass an integer"),
    ((8, 8), {"latent": 0}, "latent is 0; pass an integer"),
    ((8, 8), {"norm": "none"}, "norm is 'none'"),
  ],
)
def test_sizes_out_of_range_are_refused(shape, options, message):
  with pytest.raises(ValueError, match=message):
    image_networks(shape, CLASSES, **options)
