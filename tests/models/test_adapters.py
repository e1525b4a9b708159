"""Networks as people write them: understood, or refused in one line."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.core.hooks import Spec
from mixdef.core.randomness import random_key
from mixdef.learners.classifier import classifier
from mixdef.models.adapters import adapt

K = 3
X = jnp.linspace(-1, 1, 4 * 5).reshape(4, 5)


def init(model, example=X[:1], num_classes=K):
  """Initialise a model as training does, with shapes alone."""
  sizes = (10, 8, num_classes, 4, 2, 1)
  learner = classifier(model, optax.sgd(0.1))
  spec = Spec(example, None, None, *sizes)
  return jax.eval_shape(lambda key: learner.init(key, spec), random_key(0))


def net(call, fields=None):
  """Make a module of a `__call__` body, with fields {name: (type, default)}."""
  names = {name: kind for name, (kind, _) in (fields or {}).items()}
  defaults = {name: default for name, (_, default) in (fields or {}).items()}
  call.__name__ = "__call__"
  body = {"__call__": nn.compact(call), "__annotations__": names, **defaults}
  return type("Net", (nn.Module,), body)()


def dropped(x, off):
  x = nn.Dropout(0.5)(nn.Dense(32)(x), deterministic=off)
  return nn.Dense(K)(x)


def flag_net(name, positive):
  """A network whose dropout obeys a flag of this name."""
  scope: dict[str, Any] = {"dropped": dropped}
  sign = "not " if positive else ""
  text = f"def call(self, x, {name}={not positive}): return dropped(x, {sign}{name})"
  exec(text, scope)
  return net(scope["call"])


def field_net(name, positive):
  def call(self, x):
    flag = getattr(self, name)
    return dropped(x, not flag if positive else flag)

  return net(call, {name: (bool, not positive)})


class Inner(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    return dropped(x, not train)


class Wrapped(nn.Module):
  inner: nn.Module

  def __call__(self, *args, **kwargs):
    return self.inner(*args, **kwargs)


class Unaware(nn.Module):
  inner: nn.Module

  def __call__(self, x):
    return self.inner(2 * x)


class Block(nn.Module):
  train: bool = False

  @nn.compact
  def __call__(self, x):
    return dropped(x, not self.train)


POSITIVE = ("train", "training", "is_training")
NEGATIVE = ("deterministic", "inference", "eval", "use_running_average")
FLAGS = [*((n, True) for n in POSITIVE), *((n, False) for n in NEGATIVE)]
SEQUENCE = [nn.Dense(8), nn.relu, nn.Dropout(0.5), nn.Dense(K)]
UNDERSTOOD = {
  **{f"argument {n}": flag_net(n, positive) for n, positive in FLAGS},
  **{f"field {n}": field_net(n, positive) for n, positive in FLAGS},
  "sequential": nn.Sequential(SEQUENCE),
  "sequential in sequential": nn.Sequential([nn.Sequential(SEQUENCE), nn.Dense(K)]),
  "sequential of networks": nn.Sequential([jnp.tanh, Inner()]),
  "sequential starting with dropout": nn.Sequential([nn.Dropout(0.5), nn.Dense(K)]),
  "sequential of a network": nn.Sequential([models.mlp(8, num_classes=K, dropout=0.5)]),
  "wrapper of anything": Wrapped(Inner()),
  "wrapper of a sequence": Wrapped(nn.Sequential(SEQUENCE)),
  "wrapper without a flag": Unaware(Inner()),
  "attention": net(
    lambda self, x: nn.MultiHeadDotProductAttention(1, dropout_rate=0.5)(
      nn.Dense(K)(x)[:, None]
    )[:, 0]
  ),
  "optional flag beside a field": net(
    lambda self, x, deterministic=None: dropped(
      x, nn.merge_param("deterministic", self.deterministic, deterministic)
    ),
    {"deterministic": (bool | None, None)},
  ),
}


def program(model, train):
  """The text of what a model computes on a batch."""
  network = adapt(model)

  def run(key, x):
    variables = network.init(key, x[:1])
    how = {"train": train, "weight": jnp.ones(len(x)), "key": key}
    return network.apply(variables, x, **how)[0]

  def of_parameters(key, x):
    return network.init(key, x[:1])

  whole, init = (str(jax.make_jaxpr(f)(random_key(0), X)) for f in (run, of_parameters))
  return whole.count("random_bits") - init.count("random_bits")


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_dropout_draws_in_training_alone(name):
  init(UNDERSTOOD[name])
  assert program(UNDERSTOOD[name], train=True) == 1
  assert program(UNDERSTOOD[name], train=False) == 0


def test_dropout_of_a_sequence_follows_the_key():
  network = adapt(nn.Sequential(SEQUENCE))
  variables = network.init(random_key(0), X[:1])
  once, again, other = (
    network.apply(variables, X, train=True, key=random_key(seed))[0]
    for seed in (1, 1, 2)
  )
  assert jnp.array_equal(once, again)
  assert not jnp.allclose(once, other)


def normalised(x, average, mask=None):
  return nn.Dense(K)(
    nn.BatchNorm(use_running_average=average, momentum=0.5)(x, mask=mask)
  )


def masked(self, x, train=False, weight=None):
  mask = None if weight is None or not train else (weight > 0)[:, None]
  return normalised(x, not train, mask)


NORMALISED = {
  "mask": net(masked),
  "sequence": nn.Sequential([nn.BatchNorm(momentum=0.5), nn.Dense(K)]),
  "sequence of networks": nn.Sequential([jnp.abs, net(masked)]),
  "wrapper": Wrapped(net(masked)),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_padding_never_enters_running_statistics(name):
  init(NORMALISED[name])
  network = adapt(NORMALISED[name])

  @jax.jit
  def statistics(padding):
    variables = network.init(random_key(0), X[:1])
    x, weight = X.at[-1].set(padding), jnp.array([1.0, 1, 1, 0])
    how = {"train": True, "weight": weight, "key": random_key(1)}
    _, new = network.apply(variables, x, **how)
    return jax.tree.leaves((variables["batch_stats"], new["batch_stats"]))

  one, other = map(np.asarray, statistics(0.0)), map(np.asarray, statistics(1e3))
  one, other = np.stack(list(one)), np.stack(list(other))
  np.testing.assert_array_equal(one, other)
  assert (one[:2] != one[2:]).any(1).all()


def test_streams_of_any_name_are_provided_in_training():
  def call(self, x, train=False):
    x = nn.Dense(K)(x)
    for name in ("noise", "gumbel") if train else ():
      x = x + jax.random.normal(self.make_rng(name), x.shape)
    return x

  model = net(call)
  init(model)
  assert program(model, train=True)
  assert not program(model, train=False)


def returning(change):
  return net(lambda self, x: change(nn.Dense(K)(x.reshape(len(x), -1))))


def variable(name, make, **changed):
  def call(self, x):
    kept = self.variable(name, "value", make, x)
    if not self.is_initializing() and self.is_mutable_collection(name):
      kept.value = changed["to"](kept.value, x)
    return nn.Dense(K)(x)

  return net(call)


def sowing(self, x):
  self.sow("penalties", "norm", (x**2).sum())
  return nn.Dense(K)(x)


def needy(self, x, mode):
  return nn.Dense(K)(x)


def noisy(self, x):
  return nn.Dense(K)(x) + jax.random.normal(self.make_rng("noise"))


REFUSED = {
  "[B,1,K]": (returning(lambda y: y[:, None]), r"returns \[1, 1, 3\] for 1 records"),
  "[B,H,W,K]": (
    returning(lambda y: y[:, None, None]),
    r"returns \[1, 1, 1, 3\] for 1 records: return logits \[B,K\]",
  ),
  "[B]": (returning(lambda y: y[:, 0]), r"returns \[1\] for 1 records"),
  "squeezed": (returning(jnp.squeeze), r"returns \[3\] for 1 records"),
  "[K,B]": (returning(lambda y: y.T), r"returns \[3, 1\] for 1 records"),
  "mean over the batch": (returning(lambda y: y.mean(0)[None]), r"for 4 records"),
  "tuple": (returning(lambda y: (y, y)), "returns a tuple: return logits"),
  "dict": (returning(lambda y: {"logits": y}), "returns a dict of logits"),
  "bfloat16": (
    returning(lambda y: y.astype(jnp.bfloat16)),
    r"returns bfloat16 \[1, 3\]: return logits.astype\(jnp.float32\)",
  ),
  "float16": (returning(lambda y: y.astype(jnp.float16)), "returns float16"),
  "int": (
    returning(lambda y: y.astype(int)),
    "returns int32 .* instead of class numbers",
  ),
  "classes": (models.mlp(8), "returns 10 classes, but the data have 3.*num_classes=3"),
  "softmax": (returning(nn.softmax), "returns probabilities.*remove its softmax"),
  "softmax by hand": (
    returning(lambda y: jnp.exp(y) / jnp.exp(y).sum(1, keepdims=True)),
    "returns probabilities",
  ),
  "mean of softmaxes": (
    returning(lambda y: (nn.softmax(y) + nn.softmax(2 * y)) / 2),
    "returns probabilities",
  ),
  "two classes of a sigmoid": (
    returning(lambda y: jnp.stack([nn.sigmoid(y[:, 0]), nn.sigmoid(-y[:, 0])], 1)),
    "returns probabilities|returns 2 classes",
  ),
  "no parameters": (net(lambda self, x: x[:, :K]), "no parameters"),
  "dropout off in training": (
    net(lambda self, x: dropped(x, True)),
    "Dropout_0 has dropout at rate 0.5 and is also deterministic in training",
  ),
  "dropout of a submodule's field": (Unaware(Block()), "inner/Dropout_0 has dropout"),
  "dropout off in a sequence": (
    nn.Sequential([nn.Dropout(0.5, deterministic=True), nn.Dense(K)]),
    "layers_0 has dropout at rate 0.5",
  ),
  "dropout always on": (
    net(lambda self, x: dropped(x, False)),
    "draws random numbers in prediction .*dropout.*argument train",
  ),
  "noise always on": (net(noisy), "draws random numbers in prediction .*noise"),
  "statistics that never change": (
    net(lambda self, x: normalised(x, True)),
    "BatchNorm_0 also uses its running average in training",
  ),
  "statistics of the batch asked": (
    net(lambda self, x: normalised(x, False)),
    "changes its state in prediction .*batch_stats",
  ),
  "statistics with padding": (
    net(lambda self, x, train=False: normalised(x, not train)),
    "argument weight=None and must pass mask=",
  ),
  "a penalty sown": (net(sowing), "keeps 'penalties', which a step .* sow only to"),
  "what grows": (
    variable("memory", lambda x: x, to=lambda old, x: x),
    r"keeps 'memory', which a step on 4 records changes",
  ),
  "an unknown argument": (net(needy), "Net.__call__ needs 'mode'"),
  "no records": (net(lambda self: 1), "takes no records"),
  "an error of its own": (
    net(lambda self, x: {}["a"]),
    "the model cannot be called with x .*: KeyError: 'a'",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_at_init(name):
  model, message = REFUSED[name]
  with pytest.raises(ValueError, match=message) as caught:
    init(model)
  assert "\n" not in str(caught.value)


def test_other_models_are_not_taken_for_probabilities():
  for last in (nn.log_softmax, nn.sigmoid, lambda y: 0 * y):
    init(returning(last))


def test_what_a_model_keeps_beside_statistics_is_kept():
  init(variable("counts", lambda x: jnp.zeros(()), to=lambda old, x: old + 1))


def test_intermediates_may_be_sown():
  def call(self, x):
    self.sow("intermediates", "hidden", x)
    return nn.Dense(K)(x)

  init(net(call))


class Torch:
  __module__ = "torch.nn.modules"


class Keras:
  __module__ = "keras.src.models"


WRONG_MODELS = {
  "class": (models.MLP if hasattr(models, "MLP") else Inner, "the class .*has to be"),
  "factory": (models.mlp, "the function mlp"),
  "jitted": (jax.jit(lambda x: x), "the function"),
  "partial": (functools.partial(models.mlp, 3), "partial"),
  "number": (3, "model is 3 of type int"),
  "None": (None, "model is None of type NoneType"),
  "text": ("mlp", "model is 'mlp' of type str"),
  "optimizer": (optax.sgd(0.1), "an optimizer, which comes second"),
  "torch": (Torch(), "a PyTorch module"),
  "keras": (Keras(), "a Keras model"),
  "three functions": ((abs, abs, abs), "of type tuple"),
  "a pair of a number": ((abs, 3), "of type tuple"),
  "learner": (classifier(Inner(), optax.sgd(0.1)), "a Learner, which is passed to fit"),
  "bound": (nn.Dense(K).bind({}), "bound to its variables"),
  "array": (np.ones(3), "of type ndarray"),
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_what_is_no_model_is_named(name):
  model, message = WRONG_MODELS[name]
  with pytest.raises(TypeError, match=message) as caught:
    classifier(model, optax.sgd(0.1))
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 260
