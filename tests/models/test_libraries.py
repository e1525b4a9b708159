"""Models of NNX and Equinox and plain pairs: understood, or refused in one line."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from flax import nnx

from mixdef.core.hooks import Spec
from mixdef.core.randomness import random_key
from mixdef.learners.classifier import classifier
from mixdef.models import adapt

K, D = 3, 5
X = jnp.linspace(-1, 1, 4 * D).reshape(4, D)


def start(model, defense=None):
  """Initialise a model as training does, with shapes alone."""
  learner = classifier(model, optax.sgd(0.1), defense)
  spec = Spec(X[:1], None, None, 10, 8, K, 4, 2, 1)
  return jax.eval_shape(lambda key: learner.init(key, spec), random_key(0))


class Net(nnx.Module):
  def __init__(self, rngs, rate=0.5, width=8):
    self.a = nnx.Linear(D, width, rngs=rngs)
    self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)
    self.b = nnx.Linear(width, K, rngs=rngs)

  def __call__(self, x):
    return self.b(self.drop(nnx.relu(self.norm(self.a(x)))))


class Calm(eqx.Module):
  a: eqx.nn.Linear
  drop: eqx.nn.Dropout
  b: eqx.nn.Linear

  def __init__(self, key, rate=0.5):
    keys = jax.random.split(key)
    self.a = eqx.nn.Linear(D, 8, key=keys[0])
    self.drop = eqx.nn.Dropout(rate)
    self.b = eqx.nn.Linear(8, K, key=keys[1])

  def __call__(self, x, *, key=None):
    return self.b(self.drop(jax.nn.relu(self.a(x)), key=key))


def weights(key, x):
  return {"w": jax.random.normal(key, (x.shape[-1], K))}


def noised(params, x, *, train, key=None):
  x = x * (1 + jax.random.normal(key, x.shape)) if train else x
  return x @ params["w"]


def one(maker):
  """Make a class of NNX modules of a function `(self, x) -> logits`."""

  class Made(nnx.Module):
    def __init__(self, rngs):
      self.drop = nnx.Dropout(0.5, rngs=rngs)
      self.norm = nnx.BatchNorm(D, rngs=rngs)
      self.out = nnx.Linear(D, K, rngs=rngs)
      self.rngs = rngs

    def __call__(self, x):
      return maker(self, x)

  return Made


class OwnFlag(nnx.Module):
  """A flag of its own, in a field and in the call, and keys of its own."""

  def __init__(self, rngs):
    self.training = False
    self.out = nnx.Linear(D, K, rngs=rngs)

  def __call__(self, x, deterministic=True, rngs=None):
    assert self.training is not deterministic
    if not deterministic:
      x = x * (1 + jax.random.normal(rngs.noise(), x.shape))
    return self.out(x)


class Recurrent(nnx.Module):
  """It takes keys for its first state, which is zero."""

  def __init__(self, rngs):
    self.rnn = nnx.RNN(nnx.GRUCell(1, 4, rngs=rngs), rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.out = nnx.Linear(4, K, rngs=rngs)

  def __call__(self, x):
    return self.out(self.drop(self.rnn(x[..., None])[:, -1]))


UNDERSTOOD = {
  "nnx class": Net,
  "nnx function": lambda rngs: Net(rngs=rngs),
  "nnx partial": functools.partial(Net, rate=0.3),
  "nnx with a flag": OwnFlag,
  "nnx recurrent": Recurrent,
  "equinox class": Calm,
  "equinox function": lambda key: Calm(key, 0.3),
  "pair": (weights, noised),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_training_draws_from_its_key_and_predictions_draw_nothing(name):
  start(UNDERSTOOD[name])
  network = adapt(UNDERSTOOD[name])

  @jax.jit
  def run(key):
    variables = network.init(random_key(0), X[:1])
    trained, _ = network.apply(variables, X, train=True, key=key, weight=jnp.ones(4))
    return trained, network.apply(variables, X, train=False)[0]

  (a, p), (b, q), (c, r) = (run(random_key(seed)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert not np.allclose(a, c)
  np.testing.assert_array_equal(p, q)
  np.testing.assert_array_equal(p, r)


@pytest.mark.slow
def test_every_model_draws_its_own_parameters_side_by_side():
  keys = jax.random.split(random_key(0), 3)
  for name in ("nnx class", "equinox class", "pair"):
    init = adapt(UNDERSTOOD[name]).init
    together = jax.jit(jax.vmap(lambda key: init(key, X[:1])))(keys)  # noqa: B023
    for i in range(3):
      alone = init(keys[i], X[:1])
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6),
        together,
        alone,
      )
    kernel = max(jax.tree.leaves(together["params"]), key=lambda leaf: leaf.size)
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize(
  "module", [Net(nnx.Rngs(3)), Calm(random_key(3))], ids=["nnx", "equinox"]
)
def test_a_module_is_where_every_model_starts_and_that_is_said(module, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  network = adapt(module)
  assert "every model starts from these" in said[0]
  one, other = (network.init(random_key(seed), X[:1]) for seed in (0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, other)
  np.testing.assert_array_equal(
    network.apply(one, X, train=False)[0],
    jax.vmap(eqx.nn.inference_mode(module))(X)
    if isinstance(module, eqx.Module)
    else nnx.view(module, deterministic=True, use_running_average=True)(X),
  )


@pytest.mark.parametrize("whole", [False, True])
def test_padding_never_enters_statistics_of_nnx(whole):
  network = adapt(Net)
  weight = jnp.array([0.0, 0, 0, 0] if whole else [1.0, 1, 1, 0])

  @jax.jit
  def statistics(padding):
    variables = network.init(random_key(0), X[:1])
    x = X.at[-1].set(padding)
    how = {"train": True, "weight": weight, "key": random_key(1)}
    logits, new = network.apply(variables, x, **how)
    return logits, variables["batch_stats"], new["batch_stats"]

  (logits, before, after), (_, _, other) = statistics(0.0), statistics(1e3)
  jax.tree.map(np.testing.assert_array_equal, after, other)
  assert np.isfinite(logits).all()
  change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
  assert all((leaf == 0) == whole for leaf in jax.tree.leaves(change))
  if not whole:  # the definition, over three rows
    variables = network.init(random_key(0), X[:1])
    hidden = X[:3] @ variables["params"]["a"]["kernel"]
    np.testing.assert_allclose(after["norm"]["mean"], hidden.mean(0) / 2, rtol=1e-5)


class Counting(nnx.Module):
  """It keeps a sum over the records in a way of its own."""

  def __init__(self, rngs, kind=nnx.BatchStat):
    self.sum = kind(jnp.zeros(D))
    self.out = nnx.Linear(D, K, rngs=rngs)

  def __call__(self, x):
    self.sum[...] = self.sum[...] + x.sum(0)
    return self.out(x)


class WeightedCount(Counting):
  def __call__(self, x, weight=None):
    if weight is not None:
      self.sum[...] = self.sum[...] + (weight[:, None] * x).sum(0)
    return self.out(x)


class Other(nnx.Variable):
  """A kind of the user's own."""


def test_what_takes_the_weights_may_keep_what_it_wants():
  for kind in (nnx.BatchStat, Other):
    model = functools.partial(WeightedCount, kind=kind)
    start(model)
    network = adapt(model)
    variables = network.init(random_key(0), X[:1])
    weight = jnp.array([1.0, 1, 0, 0])
    _, new = network.apply(variables, X, train=True, weight=weight)
    ((_, value),) = jax.tree_util.tree_leaves_with_path(new)
    np.testing.assert_allclose(value, X[:2].sum(0), rtol=1e-6)


class Constant(nnx.Module):
  def __init__(self, rngs):
    self.shift = jnp.arange(D)
    self.out = nnx.Linear(D, K, rngs=rngs)

  def __call__(self, x):
    self.sow(nnx.Intermediate, "hidden", x)
    return self.out(x + self.shift)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_constants_are_kept_and_what_is_sown_is_not():
  start(Constant)
  network = adapt(Constant)
  variables = network.init(random_key(0), X[:1])
  np.testing.assert_array_equal(variables["constants"]["shift"], np.arange(D))
  assert network.apply(variables, X, train=True)[1] == {}


def test_a_linen_modules_parameters_give_the_same_logits():
  linen = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(K)])
  params = adapt(linen).init(random_key(0), X[:1])["params"]
  first, last = params["layers_0"], params["layers_2"]
  made = lambda rngs: nnx.Sequential(  # noqa: E731
    nnx.Linear(D, 8, rngs=rngs), nnx.relu, nnx.Linear(8, K, rngs=rngs)
  )
  pair = (lambda key: params, lambda p, x: linen.apply({"params": p}, x))
  expected = adapt(linen).apply({"params": params}, X, train=True)[0]
  for model, own in (
    (made, {"layers": {0: first, 2: last}}),
    (pair, params),
  ):
    got, _ = adapt(model).apply({"params": own}, X, train=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


class Softmax(nnx.Module):
  def __init__(self, rngs):
    self.out = nnx.Linear(D, K, rngs=rngs)

  def __call__(self, x):
    return nnx.softmax(self.out(x))


class Needy(Net):
  def __init__(self, width, *, rngs):
    super().__init__(rngs, width=width)


class NeedyCall(Net):
  def __call__(self, x, mode):
    return super().__call__(x)


class Concrete(nnx.Module):
  def __init__(self, rngs):
    self.out = nnx.Linear(D, K, rngs=rngs)
    self.scale = float(self.out.kernel[...].std())


class Stateful(eqx.Module):
  norm: eqx.nn.BatchNorm

  def __init__(self, key):
    self.norm = eqx.nn.BatchNorm(D, "batch", mode="ema")

  def __call__(self, x):
    return x


class Keyless(Calm):
  def __call__(self, x):
    return super().__call__(x)


REFUSED: dict[str, Any] = {
  "nnx needs a width": (Needy, TypeError, r"needs 'width' beside rngs.*lambda rngs: "),
  "nnx needs a mode": (NeedyCall, ValueError, "NeedyCall.__call__ needs 'mode'"),
  "nnx made by floats": (Concrete, ValueError, "cannot be made inside a trace"),
  "nnx probabilities": (Softmax, ValueError, "remove its softmax"),
  "nnx of 8 classes": (
    lambda rngs: nnx.Linear(D, 8, rngs=rngs),
    ValueError,
    "returns 8 classes, but the data have 3",
  ),
  "no module": (lambda rngs: 3, TypeError, "makes a int: let it return a module"),
  "own statistics": (Counting, ValueError, "Counting keeps statistics, .* weight"),
  "own variables": (
    functools.partial(Counting, kind=Other),
    ValueError,
    "sum changes in training, and padded rows would enter",
  ),
  "dropout that never acts": (
    one(lambda self, x: self.out(self.drop(x, deterministic=True))),
    ValueError,
    "drop has dropout at rate 0.5 and is deterministic in training too",
  ),
  "dropout that always acts": (
    one(lambda self, x: self.out(self.drop(x, deterministic=False))),
    ValueError,
    "drop has dropout at rate 0.5 and draws when the model predicts",
  ),
  "noise that always acts": (
    one(lambda self, x: self.out(x + jax.random.normal(self.rngs.noise(), x.shape))),
    ValueError,
    "Made draws random numbers when it predicts",
  ),
  "statistics that never change": (
    one(lambda self, x: self.out(self.norm(x, use_running_average=True))),
    ValueError,
    "norm uses its running average in training too",
  ),
  "statistics that always change": (
    one(lambda self, x: self.out(self.norm(x, use_running_average=False))),
    ValueError,
    "norm normalises by the batch when the model predicts",
  ),
  "statistics of merged rows": (
    one(lambda self, x: self.out(self.norm(jnp.concatenate([x, x]))[: len(x)])),
    ValueError,
    r"norm normalises \[2, 5\], whose first axis is not that of the 1 records",
  ),
  "statistics inside nnx.jit": (
    one(lambda self, x: self.out(nnx.jit(lambda norm, x: norm(x))(self.norm, x))),
    ValueError,
    "is called inside another transformation, as nnx.jit or nnx.scan",
  ),
  "nnx of other records": (
    lambda rngs: nnx.Linear(D + 1, K, rngs=rngs),
    ValueError,
    r"the model cannot be called with x float32\[1, 5\]: dot_general requires",
  ),
  "equinox with state": (
    Stateful,
    ValueError,
    "Stateful keeps state, .* use eqx.nn.GroupNorm or eqx.nn.LayerNorm",
  ),
  "equinox of other records": (
    lambda key: eqx.nn.Linear(D + 1, K, key=key),
    ValueError,
    r"Linear.__call__ cannot be called with one record \[5\], without the axis of the "
    r"batch: dot_general requires .*; let it reshape the record",
  ),
  "pair of other records": (
    (lambda key: {"w": jnp.ones((D + 1, K))}, lambda p, x: x @ p["w"]),
    ValueError,
    r"the model cannot be called with x float32\[1, 5\]: dot_general requires",
  ),
  "equinox without a key": (Keyless, ValueError, "Keyless has dropout: let its"),
  "equinox of two": (
    lambda key, width: Calm(key),
    TypeError,
    "needs 'width' beside key",
  ),
  "pair of three": (
    (lambda key, x, y: 0, lambda params, x: x),
    ValueError,
    "takes 3 arguments: let it take a key, or a key and x",
  ),
  "pair that needs a mode": (
    (weights, lambda params, x, mode: x),
    ValueError,
    "apply of .* needs 'mode'",
  ),
  "pair of integers": (
    (lambda key: {"w": jnp.ones((D, K), int)}, lambda p, x: x @ p["w"]),
    ValueError,
    "the parameter w is int32, which cannot be trained",
  ),
  "pair of linen methods": (
    (nn.Dense(3).init, nn.Dense(3).apply),
    TypeError,
    "the methods of a linen module: pass the module itself",
  ),
  "pair of linen modules": ((nn.Dense(3), nn.Dense(3)), TypeError, "of type tuple"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(name):
  model, kind, message = REFUSED[name]
  with pytest.raises(kind, match=message) as caught:
    start(model)
  assert "\n" not in str(caught.value)


def test_structures_have_texts_of_their_own():
  texts = [
    adapt(model).text
    for model in (
      lambda rngs: Net(rngs),
      lambda rngs: Net(rngs, rate=0.1),
      lambda rngs: Net(rngs, width=9),
      lambda rngs: nnx.Linear(D, K, rngs=rngs),
      lambda rngs: nnx.Linear(D, K, use_bias=False, rngs=rngs),
      Net,
      Net(nnx.Rngs(0)),
      Net(nnx.Rngs(1)),
      lambda key: Calm(key),
      lambda key: Calm(key, 0.1),
      Calm,
      Calm(random_key(0)),
      Calm(random_key(1)),
      (weights, noised),
    )
  ]
  assert len(set(texts)) == len(texts)
  assert adapt(lambda rngs: Net(rngs)).text == texts[0]
  assert not any(" at 0x" in text for text in texts)
