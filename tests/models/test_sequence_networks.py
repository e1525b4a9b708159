"""Networks for token ids and series: what they compute, learn and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixdef
from mixdef.cli import texts
from mixdef.models import cnn, gru, mlp, transformer

TOKENS = np.array([[1, 4, 2, 0, 3], [3, 3, 0, 1, 2], [2, 2, 1, 1, 4]], np.int32)
SERIES = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
SMALL = {
  "transformer": lambda **kw: transformer(1, 8, 2, num_classes=3, **kw),
  "gru": lambda **kw: gru(8, num_classes=3, **kw),
}
CASES = [
  (name, x, size)
  for name in SMALL
  for x, size in ((TOKENS, {"num_tokens": 5}), (SERIES, {}))
]


@pytest.mark.parametrize(("name", "x", "size"), CASES)
def test_logits_are_of_each_record_alone_and_of_its_order(name, x, size):
  model = SMALL[name](**size)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  apply = jax.jit(model.apply)
  logits = apply(variables, x)
  assert logits.shape == (3, 3)
  others = np.concatenate([x[:1], x[:1], x[:1]])
  np.testing.assert_allclose(apply(variables, others)[:1], logits[:1], atol=1e-5)
  turned = apply(variables, x[:, ::-1])
  assert jnp.abs(turned - logits).max() > 1e-3


def _norm(params, x):
  x = x - x.mean(-1, keepdims=True)
  scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return scaled * params["scale"] + params["bias"]


def _dense(params, x):
  return x @ params["kernel"] + params["bias"]


def _gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_transformer_by_a_loop():
  model = SMALL["transformer"](num_tokens=5)
  variables = model.init(jax.random.key(0), TOKENS)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
  rows = []
  for record in TOKENS:
    x = params["Embed_0"]["embedding"][record] * 8**0.5
    for place in range(5):
      for i in range(4):
        x[place, i] += np.sin(place / 10_000 ** (i / 4))
        x[place, 4 + i] += np.cos(place / 10_000 ** (i / 4))
    normed = _norm(params["LayerNorm_0"], x)
    q, k, v = (_dense(params[f"Dense_{i}"], normed) for i in range(3))
    mixed = np.zeros_like(x)
    for head in (slice(0, 4), slice(4, 8)):
      scores = np.exp(q[:, head] @ k[:, head].T / 2)
      mixed[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, head]
    x = x + _dense(params["Dense_3"], mixed)
    hidden = _gelu(_dense(params["Dense_4"], _norm(params["LayerNorm_1"], x)))
    x = x + _dense(params["Dense_5"], hidden)
    rows.append(_dense(params["Dense_6"], _norm(params["LayerNorm_2"], x).mean(0)))
  np.testing.assert_allclose(model.apply(variables, TOKENS), rows, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_ids_out_of_range_are_read_as_the_nearest(name):
  model = SMALL[name](num_tokens=4)
  variables = model.init(jax.random.key(0), TOKENS)
  logits = model.apply(variables, TOKENS)
  assert jnp.isfinite(logits).all()
  np.testing.assert_array_equal(logits, model.apply(variables, np.minimum(TOKENS, 3)))


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_in_training_alone(name):
  plain, x = SMALL[name](), SERIES
  model, variables = SMALL[name](dropout=0.5), plain.init(jax.random.key(0), x)
  np.testing.assert_array_equal(model.apply(variables, x), plain.apply(variables, x))
  rngs = {"dropout": jax.random.key(1)}
  trained = model.apply(variables, x, train=True, rngs=rngs)
  assert jnp.abs(trained - plain.apply(variables, x)).max() > 1e-3


@pytest.mark.parametrize(
  ("make", "x", "message"),
  [
    (SMALL["gru"], TOKENS, r"gru needs the number of token ids: gru\(num_tokens=data"),
    (SMALL["transformer"], SERIES[:, 0], r"not float32 \[3, 2\]: use mlp for tables"),
    (
      SMALL["gru"],
      SERIES[..., None],
      r"float32 \[3, 5, 2, 1\]: use mlp",
    ),
    (
      mlp,
      TOKENS,
      "mlp computes with numbers, and these are int32, .*transformer",
    ),
    (cnn, TOKENS[..., None], "a network for images computes with numbers, and these"),
  ],
)
def test_networks_refuse_the_records_of_others(make, x, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(make().init, jax.random.key(0), x)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: transformer(2, 30, 4), "width=30 is not a multiple of heads=4"),
    (lambda: transformer(0), "layers is 0; pass an integer of at least 1"),
    (lambda: gru(8, num_tokens=0), "num_tokens is 0; pass"),
    (lambda: gru(8, dropout=1.0), "dropout is 1.0"),
  ],
)
def test_bad_sizes_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_flag_takes_the_number_of_tokens_from_the_data():
  (made,) = texts.networks("gru(8)", num_classes=2, num_tokens=7)
  assert (made.num_tokens, made.num_classes) == (7, 2)
  (made,) = texts.networks("transformer(num_tokens=9)", num_classes=2, num_tokens=7)
  assert made.num_tokens == 9
  (made,) = texts.networks("mlp(8)", num_classes=2, num_tokens=7)
  assert made.widths == (8,)


def tokens_that_tell(count=256):
  """Records whose label is which of the tokens 1 and 2 comes first."""
  random = np.random.default_rng(0)
  x = random.integers(3, 9, (count, 6))
  y = random.integers(0, 2, count)
  places = np.sort([random.permutation(6)[:2] for _ in range(count)], axis=1)
  rows = np.arange(count)
  x[rows, places[:, 0]], x[rows, places[:, 1]] = 1 + y, 2 - y
  return mixdef.Dataset.from_arrays(x, y).hold_out(0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_networks_learn_the_order_of_tokens(name):
  data = tokens_that_tell(600)
  model = {
    "transformer": transformer(1, 32, 2, num_tokens=data.num_tokens),
    "gru": gru(32, num_tokens=data.num_tokens),
  }[name].clone(num_classes=2)
  learner = mixdef.classifier(model, optax.adam(5e-3))
  run = mixdef.fit(learner, data, epochs=25, batch_size=32)
  assert run.accuracy(data.test) > 0.9
  assert mixdef.fit(learner, data, epochs=1).accuracy(data.test) < 0.8  # not given away


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_shadows_and_per_example_clipping_train(name):
  data = tokens_that_tell(64)
  model = SMALL[name](num_tokens=data.num_tokens).clone(num_classes=2)
  learner = mixdef.classifier(model, optax.sgd(0.1), "dp_sgd(1.0)")
  members = mixdef.subsets(data, 2)
  models = mixdef.fit_many(
    learner, data, members, epochs=1, batch_size=8, strategy="vmap"
  )
  assert not any(models[i].diverged for i in range(2))


@pytest.mark.parametrize("part", ["mixup", "random_crop(1)", "gaussian_noise(0.1)"])
def test_parts_that_compute_with_records_refuse_tokens(part):
  data = tokens_that_tell(32)
  model = gru(4, num_tokens=9, num_classes=2)
  with pytest.raises(ValueError, match="computes with records, but these are int32"):
    mixdef.fit(mixdef.classifier(model, optax.sgd(0.1), part), data, epochs=1)
