"""The networks: sizes, equality of lowerings, batch statistics, dropout, errors."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.kernels import standardized
from mixdef.kernels.group_norm import GroupNorm
from mixdef.models import CATALOGUE, cnn, densenet, mlp, resnet, wide_resnet
from mixdef.models.layers import drop_channels

SEQUENCES = ("gru", "transformer")  # tests/models/test_sequence_networks.py
SMALL = {
  **{name: make for name, make in CATALOGUE.items() if name not in SEQUENCES},
  "mlp": lambda **kw: mlp(16, 8, **kw),
  "cnn": cnn,
  "resnet": lambda **kw: resnet(8, **kw),
  "wide_resnet": lambda **kw: wide_resnet(10, 1, **kw),
  "densenet": lambda **kw: densenet(10, 4, **kw),
}
NORMALIZED = ("resnet", "wide_resnet", "densenet")
IMAGES_ONLY = ("cnn", *NORMALIZED)


def draw(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def start(model, x):
  """Draw variables in numpy; compiling every initialiser would take longest."""
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    if path[-1].key in ("scale", "var"):
      return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), jnp.float32)
    spread = shape.size // shape.shape[-1]
    return jnp.asarray(rng.normal(size=shape.shape) / spread**0.5, jnp.float32)

  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def num_parameters(model, *shape):
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def assert_close(actual, desired, tolerance=1e-4):
  for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
    scale = max(float(jnp.abs(d).max()), 1e-3)
    np.testing.assert_allclose(a, d, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
  ("shape", "flat"), [((32, 32, 3), 1152), ((28, 28, 1), 800), ((8, 8, 1), 128)]
)
def test_cnn_has_the_parameters_counted_by_hand(shape, flat):
  convolutions = 5 * 5 * shape[2] * 32 + 32 + 5 * 5 * 32 * 32 + 32
  dense = flat * 128 + 128 + 128 * 10 + 10
  assert num_parameters(cnn(), *shape) == convolutions + dense


@pytest.mark.parametrize(
  ("model", "published"),
  [
    (mlp(), 3072 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
    (resnet(20), 269_722),
    (wide_resnet(16, 4), 2_748_890),
  ],
)
def test_parameter_counts_on_cifar(model, published):
  assert num_parameters(model, 32, 32, 3) == published


def test_densenet_ends_in_the_69_features_of_weighted_smoothing():
  shapes = jax.eval_shape(densenet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert shapes["params"]["Dense_0"]["kernel"].shape == (69, 10)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(8, 8), (9, 7, 3)])
def test_logits_have_one_column_per_class(name, shape):
  x = draw(2, *shape)
  model = SMALL[name](num_classes=3)
  assert jax.eval_shape(model.apply, start(model, x), x).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_fresh_networks_have_finite_moderate_logits(name):
  model, x = SMALL[name](), draw(2, 8, 8, 3)
  run = jax.jit(lambda key: model.apply(model.init(key, x), x))
  logits = run(jax.random.key(0))
  assert jnp.isfinite(logits).all()
  assert 1e-3 < jnp.abs(logits).max() < 100


def test_fresh_cnn_is_xavier_uniform_with_the_relu_gain_on_convolutions():
  params = jax.jit(cnn().init)(jax.random.key(0), draw(1, 8, 8, 3))["params"]
  fans = {"Conv_0": (75, 800), "Conv_1": (800, 800), "Dense_0": (128, 128)}
  for layer, (fan_in, fan_out) in fans.items():
    gain = 2**0.5 if layer.startswith("Conv") else 1.0
    bound = gain * (6 / (fan_in + fan_out)) ** 0.5
    largest = float(jnp.abs(params[layer]["kernel"]).max())
    assert 0.98 * bound < largest <= bound * (1 + 1e-6)
    assert not params[layer]["bias"].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_lowerings_give_equal_networks_and_gradients(name):
  # 16x16: the flattened map of the CNN has rows, columns and channels to mix up.
  x, y = draw(3, 16, 16, 2), jnp.array([0, 1, 2])
  variables = start(SMALL[name](num_classes=3), x)

  def run(lowering):
    model = SMALL[name](num_classes=3, lowering=lowering)

    def loss(params):
      logits = model.apply({"params": params}, x, train=True)
      return -jax.nn.log_softmax(logits)[jnp.arange(3), y].mean(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

  desired = run("native")
  assert_close(run("canonical"), desired, 1e-3)
  assert_close(run("im2col"), desired, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("mlp", {}),
    ("cnn", {}),
    *((name, {"norm": n}) for name in NORMALIZED for n in ("group", "batch", "none")),
    *((name, {"weight_standardization": True}) for name in IMAGES_ONLY),
  ],
)
def test_parameters_live_in_plain_leaf_layers_used_once(name, fields):
  model = SMALL[name](**fields)
  calls = collections.Counter()

  def watch(call, args, kwargs, context):
    y = call(*args, **kwargs)
    own = context.module.variables.get("params", {})
    if any(not isinstance(leaf, dict) for leaf in own.values()):
      calls[context.module.path] += 1
      conv = standardized.Conv if fields.get("weight_standardization") else nn.Conv
      assert type(context.module) in (conv, nn.Dense, GroupNorm, nn.BatchNorm)
      assert not any(isinstance(leaf, dict) for leaf in own.values())
      assert len(args) == 1
      assert args[0].shape[0] == y.shape[0] == 2
    return y

  x = draw(2, 8, 8, 1)
  variables = start(model, x)
  with nn.intercept_methods(watch):
    jax.eval_shape(model.apply, variables, x)
  assert set(calls.values()) == {1}
  assert len(calls) == len(variables["params"])


def trainer(model, variables):
  """Return a compiled (x, weight) -> (logits, new statistics)."""

  def run(x, weight):
    return model.apply(variables, x, train=True, weight=weight, mutable=["batch_stats"])

  return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZED)
def test_padded_rows_never_enter_batch_statistics(name):
  x, weight = draw(6, 8, 8, 1), jnp.array([1.0, 1, 1, 1, 0, 0])
  model = SMALL[name](norm="batch")
  run = trainer(model, start(model, x))
  alone, stats_alone = run(x[:4], None)
  padded = x.at[4:].set(100.0)
  logits, stats = run(padded, weight)
  assert_close(logits[:4], alone)
  assert_close(stats, stats_alone)
  # The control: as real rows they do change the statistics.
  _, leaked = run(padded, jnp.ones(6))
  gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), leaked, stats_alone)
  assert max(jax.tree.leaves(gap)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZED)
def test_a_batch_of_padding_alone_keeps_statistics_finite_and_learns_nothing(name):
  x, weight = draw(6, 8, 8, 1), jnp.zeros(6)
  model = SMALL[name](norm="batch")
  run = trainer(model, start(model, x))
  logits, stats = run(x, weight)
  _, other = run(50 * x + 3, weight)
  assert jnp.isfinite(logits).all()
  for leaf, same in zip(jax.tree.leaves(stats), jax.tree.leaves(other), strict=True):
    assert jnp.isfinite(leaf).all()
    np.testing.assert_array_equal(leaf, same)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZED)
def test_pitfall_01_inference_ignores_the_rest_of_the_batch(name):
  x = draw(6, 8, 8, 1)
  model = SMALL[name](norm="batch")
  run = jax.jit(lambda x: model.apply(start(model, x), x))
  alone = run(x[:1])
  assert_close(run(x)[:1], alone)
  assert_close(run(x.at[1:].multiply(30.0))[:1], alone)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "field"),
  [
    *((name, "dropout") for name in SMALL),
    *((name, "spatial_dropout") for name in IMAGES_ONLY),
  ],
)
def test_pitfall_85_dropout_is_off_at_inference_and_differs_by_rng(name, field):
  x = draw(4, 8, 8, 1)
  plain = SMALL[name]()
  variables = start(plain, x)
  model = plain.clone(**{field: 0.5})
  np.testing.assert_array_equal(
    model.apply(variables, x), plain.apply(variables, x, train=True)
  )

  @jax.jit
  def train(seed):
    return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})

  np.testing.assert_array_equal(train(0), train(0))
  assert jnp.abs(train(0) - train(1)).max() > 1e-3


def test_spatial_dropout_keeps_or_drops_whole_channels():
  class Drop(nn.Module):
    @nn.compact
    def __call__(self, x):
      return drop_channels(x, 0.5, train=True)

  x = jnp.ones((8, 3, 3, 16))
  y = Drop().apply({}, x, rngs={"dropout": jax.random.key(0)})
  np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1, :1], y.shape))
  assert set(np.unique(y)) == {0.0, 2.0}
  # Channels are drawn for every image: 128 coins, five sigma around one half.
  assert abs(float((y[:, 0, 0] > 0).mean()) - 0.5) < 5 * 0.5 / 128**0.5
  assert len(np.unique(y[:, 0, 0], axis=0)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_weight_standardization_keeps_the_parameters_and_ignores_kernel_means(name):
  x, plain = draw(2, 8, 8, 1), SMALL[name](lowering="native")
  model = plain.clone(weight_standardization=True)
  variables = start(plain, x)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)

  def move(path, leaf):
    kernel = path[-2].key.startswith("Conv") and path[-1].key == "kernel"
    return 2 * leaf + jnp.arange(1.0, 1 + leaf.shape[-1]) / 8 if kernel else leaf

  moved = jax.tree_util.tree_map_with_path(move, variables)
  run = jax.jit(model.apply)
  assert_close(run(moved, x), run(variables, x))
  # The control: the plain network reads means and sizes of its kernels.
  run = jax.jit(plain.apply)
  assert jnp.abs(run(moved, x) - run(variables, x)).max() > 1e-2


def test_weight_standardization_starts_from_the_draws_of_the_plain_network():
  x, key = draw(1, 8, 8, 1), jax.random.key(0)
  networks = (cnn(), cnn(weight_standardization=True))
  plain, standard = (jax.jit(model.init)(key, x) for model in networks)
  jax.tree.map(np.testing.assert_array_equal, plain, standard)


def test_standardized_kernels_have_mean_0_and_norm_1_over_their_fan_in():
  kernel = 3 + 0.7 * draw(3, 5, 4, 6)
  result = standardized.standardize(kernel)
  for channel in range(6):
    w = np.float64(kernel[..., channel])
    expected = (w - w.mean()) / np.sqrt(w.size * w.var())
    np.testing.assert_allclose(result[..., channel], expected, atol=1e-6)


def test_a_constant_kernel_is_standardized_to_zeros_with_a_finite_gradient():
  kernel = jnp.full((3, 3, 2, 4), 0.5)
  assert not standardized.standardize(kernel).any()
  slope = jax.grad(lambda k: (standardized.standardize(k) * draw(4)).sum())(kernel)
  assert jnp.isfinite(slope).all()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: mlp(64, 0), "widths is 0;"),
    (lambda: mlp(64.5), "widths is 64.5;"),
    (lambda: mlp(num_classes=0), "num_classes is 0;"),
    (lambda: mlp(dropout=1.0), "dropout is 1.0;"),
    (lambda: cnn(dropout=-0.1), "dropout is -0.1;"),
    (lambda: cnn(spatial_dropout=2), "spatial_dropout is 2;"),
    (lambda: cnn(lowering="fast"), "lowering is 'fast';"),
    (lambda: cnn().clone(dropout=1.5), "dropout is 1.5;"),
    (lambda: resnet(21), r"depth=21 must be 6n\+2: 8, 14, 20"),
    (lambda: resnet(2), "depth=2"),
    (lambda: resnet(norm="layer"), "norm is 'layer';"),
    (lambda: wide_resnet(18), r"depth=18 must be 6n\+4: 10, 16, 22"),
    (lambda: wide_resnet(16, 0), "width is 0;"),
    (lambda: densenet(4), "depth=4"),
    (lambda: densenet(22, -1), "growth is -1;"),
  ],
)
def test_bad_fields_are_refused_in_one_line(make, message):
  with pytest.raises(ValueError, match=message) as error:
    make()
  assert "\n" not in str(error.value)


def test_records_that_are_not_images_are_refused():
  with pytest.raises(ValueError, match=r"\(2, 64\); use mlp"):
    cnn().init(jax.random.key(0), jnp.zeros((2, 64)))


@pytest.mark.parametrize("name", SMALL)
def test_pitfall_02_no_network_mixes_records_when_asked(name):
  x = draw(4, 8, 8, 1)
  model = SMALL[name]()
  slope = jax.jit(
    jax.grad(lambda x: model.apply(start(model, x), x)[0].sum())
  )  # of the first record's answer in every record
  assert jnp.abs(slope(x)[0]).max() > 0
  np.testing.assert_array_equal(slope(x)[1:], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "wide_resnet"])
def test_pitfall_157_second_order_gradients_are_finite_on_constant_images(name):
  x = jnp.full((2, 8, 8, 1), 0.5)
  model = SMALL[name]()
  variables = start(model, x)

  def penalty(variables):
    slope = jax.grad(lambda x: model.apply(variables, x).sum())(x)
    return ((jnp.sqrt((slope**2).sum((1, 2, 3)) + 1e-12) - 1) ** 2).mean()

  for leaf in jax.tree.leaves(jax.jit(jax.grad(penalty))(variables)):
    assert jnp.isfinite(leaf).all()


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["native", "im2col"])
@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_lowerings_of_plain_operations_have_forward_mode(name, lowering):
  x = draw(2, 8, 8, 1)
  model = SMALL[name](lowering=lowering)
  variables = start(model, x)
  tangent = jax.eval_shape(
    lambda x: jax.jvp(lambda x: model.apply(variables, x), (x,), (x,))[1], x
  )
  assert tangent.shape == (2, 10)
