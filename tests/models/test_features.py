"""Features of frozen layers: computed once, with the results of computing them anew."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from training_cases import halves, records

import mixdef
from mixdef.core.hooks import Data, Defense
from mixdef.models import adapt
from mixdef.training.prepare import prepare
from mixdef.training.programs import programs

RECORDS = records()
CLASSES, COLUMNS, WIDTH = RECORDS.num_classes, RECORDS.x.shape[1], 6
SIZES = {"epochs": 2, "batch_size": 6, "num_members": 20}


class Linen(nn.Module):
  """A backbone with BatchNorm and dropout, a second dropout, and a head."""

  rate: float = 0.0

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    x = Backbone(name="backbone")(x, train, weight)
    x = nn.Dropout(self.rate)(x, deterministic=not train)
    return nn.Dense(CLASSES, name="head")(x)


class Backbone(nn.Module):
  """The frozen part of `Linen`."""

  @nn.compact
  def __call__(self, x, train, weight):
    mask = None if weight is None else weight[:, None] > 0
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(WIDTH)(x), mask=mask)
    return nn.Dropout(0.5)(nn.relu(x), deterministic=not train)


class Nnx(nnx.Module):
  """The same model."""

  def __init__(self, rngs):
    self.backbone = nnx.Sequential(
      nnx.Linear(COLUMNS, WIDTH, rngs=rngs),
      nnx.BatchNorm(WIDTH, rngs=rngs),
      nnx.relu,
      nnx.Dropout(0.5, rngs=rngs),
    )
    self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, x):
    return self.head(self.backbone(x))


def pair():
  def init(key, x):
    w = jax.random.normal(key, (x.shape[1], WIDTH))
    return {"backbone": {"w": w}, "head": {"w": jnp.ones((WIDTH, CLASSES))}}

  def apply(params, x):
    return jax.nn.relu(x @ params["backbone"]["w"]) @ params["head"]["w"]

  return init, apply


MODELS = {"linen": Linen(), "nnx": lambda rngs: Nnx(rngs), "pair": pair()}


def start(model, shift=0.1):
  """The part that gives a model its start, with statistics that matter."""
  given = adapt(model).init(jax.random.key(5), RECORDS.x[:1])
  given = jax.tree.map(lambda leaf: leaf + shift, given)
  return mixdef.start_from(given, fresh="head/.*")


def learner_of(kind, *chain, optimizer=None):
  model = MODELS.get(kind, kind)
  chain = mixdef.chain(start(model), *chain)
  return mixdef.classifier(model, optimizer or optax.adam(0.1), chain)


def fit_many(learner, **options):
  own = {**SIZES, "strategy": "vmap", "noise_seed": 3, **options}
  return mixdef.fit_many(learner, RECORDS, halves(3), **own)


def prepared(learner, data=RECORDS, spare=1e9):
  keys = jax.random.split(jax.random.key(0), 3)
  return prepare(learner, {}, data, halves(3), keys, **SIZES).resident(spare)


def check_equal(learner):
  """Train with the features and without; the models agree and have trained."""
  found = fit_many(learner)
  expected = fit_many(learner._replace(features=None))
  jax.tree.map(
    lambda own, other: np.testing.assert_allclose(own, other, atol=1e-5),
    *(found.states.params, expected.states.params),
  )
  np.testing.assert_allclose(
    found.log_probs(RECORDS.x), expected.log_probs(RECORDS.x), atol=1e-5
  )
  assert np.ptp(np.asarray(jax.tree.leaves(found.states.params)[-1]), axis=0).any()


HEAD = "head_only('head/.*')"
NOISED = f"{HEAD}|dp_sgd(1.0, delta=1e-3)"
CASES = [
  ("linen", HEAD),
  *(
    pytest.param(kind, chain, marks=pytest.mark.slow)
    for kind, chain in [
      ("nnx", NOISED),
      ("linen", NOISED),
      ("linen", f"{HEAD}|dp_sgd(1.0, delta=1e-3, estimator='microbatch')"),
      ("linen", f"{HEAD}|label_smoothing(0.2)|relaxloss|ema"),
      ("linen", f"{HEAD}|distillation"),
      ("linen", "lora(2, layers='head/kernel')"),
      ("nnx", HEAD),
      ("nnx", "freeze('backbone/.*')"),
    ]
  ),
]


@pytest.mark.parametrize(("kind", "chain"), CASES)
def test_features_that_are_computed_once_train_the_same_models(kind, chain, caplog):
  learner = learner_of(kind, chain)
  assert prepared(learner).data.features.shape == (len(RECORDS), WIDTH)
  check_equal(learner)
  assert "ghost clipping is not available" not in caplog.text


@pytest.mark.slow
def test_features_serve_microbatches_and_sweeps():
  chain = mixdef.chain(start(MODELS["linen"]), HEAD)
  check_equal(mixdef.classifier(Linen(), optax.adam(0.1), chain, microbatch=4))

  def of(rate):
    return mixdef.classifier(Linen(), optax.sgd(rate), chain)

  rates = [0.5, 0.1, 0.2]
  found = fit_many(of, sweep={"rate": rates})
  for model, rate in enumerate(rates):
    alone = fit_many(of(rate)._replace(features=None))
    np.testing.assert_allclose(
      found.log_probs(RECORDS.x)[model], alone.log_probs(RECORDS.x)[model], atol=1e-5
    )


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_features_are_those_of_inference_and_steps_do_not_compute_them(kind):
  learner = learner_of(kind, HEAD)
  training = prepared(learner)
  model = MODELS[kind]
  whole = adapt(model)
  given = jax.tree.map(lambda a: a + 0.1, whole.init(jax.random.key(5), RECORDS.x[:1]))
  for unit in range(WIDTH):  # read a feature through a head of one 1
    params = jax.tree.map(jnp.zeros_like, given["params"]["head"])
    params["kernel"] = params["kernel"].at[unit, 0].set(1.0)
    own = {**given, "params": {**given["params"], "head": params}}
    expected = whole.apply(own, RECORDS.x, train=False)[0][:, 0]
    np.testing.assert_allclose(training.data.features[:, unit], expected, atol=1e-6)

  def flops(features):
    part = prepared(learner._replace(features=features))
    train = programs(learner, part.plan, "vmap").train
    return train.lower(*part.abstract(1)).compile().cost_analysis()["flops"]

  assert flops(learner.features) < flops(None) - 3 * COLUMNS * WIDTH


def moved():
  """A part that claims to change labels, and changes records."""
  return Defense(
    "moved",
    batch=lambda batch, state, ctx: batch._replace(x=batch.x + 1),
    traits=mixdef.Traits(order="label"),
  )


@pytest.mark.parametrize(
  ("kind", "chain", "reason"),
  [
    ("linen", [HEAD, "mixup"], "mixup changes the records"),
    ("linen", [HEAD, "gaussian_noise"], "gaussian_noise changes the records"),
    ("linen", [HEAD, moved()], "moved changes the records"),
    (
      "linen",
      ["freeze('backbone/Dense_0/bias')"],
      "no frozen layer precedes backbone",
    ),
    (Linen(rate=0.3), [HEAD], "they depend on random numbers"),
    ("pair", [HEAD], "no layer that is trained can be watched"),
  ],
)
def test_features_are_not_used_where_steps_need_the_records(
  kind, chain, reason, monkeypatch
):
  said = []
  monkeypatch.setattr(
    "mixdef.training.prepare.logging.info", lambda text, *args: said.append(text % args)
  )
  assert type(prepared(learner_of(kind, *chain)).data) is Data
  (line,) = said
  assert "computed in every step" in line
  assert reason in line


def test_backbones_that_start_at_random_are_of_each_model(monkeypatch):
  said = []
  monkeypatch.setattr(
    "mixdef.training.prepare.logging.info", lambda text, *args: said.append(text % args)
  )
  learner = mixdef.classifier(Linen(), optax.sgd(0.1), HEAD)
  assert type(prepared(learner).data) is Data
  assert "they depend on leaves of each model" in said[0]


def test_features_too_large_for_memory_are_not_kept():
  assert type(prepared(learner_of("linen", HEAD), spare=100.0).data) is Data


def test_a_frozen_layer_that_couples_rows_sees_one_record():
  """No record leaks into the features of others."""

  class Coupled(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(WIDTH, name="backbone")(x)
      return nn.Dense(CLASSES, name="head")(x + x.mean(0))

  learner = learner_of(Coupled(), HEAD)
  features = prepared(learner).data.features
  moved = RECORDS.x.copy()
  moved[3] += 5.0
  data = mixdef.Dataset.from_arrays(moved, RECORDS.y, num_classes=CLASSES)
  again = prepared(learner, data).data.features
  same = (np.asarray(features) == np.asarray(again)).all(1)
  assert not same[3]
  assert np.delete(same, 3).all()


def test_hooks_are_not_shown_the_features():
  seen = []

  def epoch(state, ctx):
    seen.append(type(ctx.data))
    return state

  part = Defense("looking", init=lambda key, spec: (), epoch=epoch)
  fit_many(learner_of("linen", HEAD, part, optimizer=optax.sgd(0.1)))
  assert seen
  assert set(seen) == {Data}


@pytest.mark.slow
def test_another_backbone_is_another_run_and_the_place_of_features_is_not(tmp_path):
  learner = learner_of("linen", HEAD)
  fit_many(learner, out=tmp_path)
  fit_many(learner._replace(features=None), out=tmp_path)  # finds its models
  other = mixdef.chain(start(MODELS["linen"], shift=0.2), HEAD)
  with pytest.raises(ValueError, match="belongs to another run: learner was"):
    fit_many(mixdef.classifier(Linen(), optax.adam(0.1), other), out=tmp_path)
