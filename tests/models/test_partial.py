"""Pretrained starts, frozen layers and low-rank changes, for models of each library."""

import dataclasses
import re

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from training_cases import halves, records, same

import mixdef
from mixdef.core.chaining import chain
from mixdef.core.hooks import Spec
from mixdef.core.learner import TrainState
from mixdef.models import adapt, partial

RECORDS = records()
CLASSES, COLUMNS = RECORDS.num_classes, RECORDS.x.shape[1]
SIZES = {"epochs": 2, "batch_size": 6, "num_members": 20, "strategy": "vmap"}


class Backbone(nn.Module):
  """A layer with BatchNorm and dropout."""

  @nn.compact
  def __call__(self, x, train, weight):
    mask = None if weight is None else weight[:, None] > 0
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x), mask=mask)
    return nn.Dropout(0.5)(nn.relu(x), deterministic=not train)


class Linen(nn.Module):
  """A backbone and a head."""

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    x = Backbone(name="backbone")(x, train, weight)
    return nn.Dense(CLASSES, name="head")(x)


class Nnx(nnx.Module):
  """The same model."""

  def __init__(self, rngs):
    self.backbone = nnx.Sequential(
      nnx.Linear(COLUMNS, 6, rngs=rngs),
      nnx.BatchNorm(6, rngs=rngs),
      nnx.relu,
      nnx.Dropout(0.5, rngs=rngs),
    )
    self.head = nnx.Linear(6, CLASSES, rngs=rngs)

  def __call__(self, x):
    return self.head(self.backbone(x))


def pair():
  def init(key, x):
    w, v = jax.random.normal(key, (2, 6, max(x.shape[1], CLASSES))) / 3
    return {"backbone": {"w": w.T[: x.shape[1]]}, "head": {"w": v[:, :CLASSES]}}

  def apply(params, x):
    return jax.nn.relu(x @ params["backbone"]["w"]) @ params["head"]["w"]

  return init, apply


MODELS = {"linen": Linen(), "nnx": lambda rngs: Nnx(rngs), "pair": pair()}
KINDS = [
  "linen",
  *(pytest.param(kind, marks=pytest.mark.slow) for kind in MODELS if kind != "linen"),
]


def fit_many(model, defense, optimizer=None, **options):
  optimizer = optimizer or optax.sgd(0.5)
  learner = mixdef.classifier(model, optimizer, defense)
  return mixdef.fit_many(learner, RECORDS, halves(3), **{**SIZES, **options})


SPEC = Spec(RECORDS.x[:1], None, None, 40, 20, CLASSES, 6, 3, 2)


def variables_of(model, seed=5):
  """The variables of one model, as they are before training."""
  learner = mixdef.classifier(model, optax.sgd(0.1))
  state: TrainState = learner.init(jax.random.key(seed), SPEC)
  return {"params": state.params, **state.stats}


def flat(tree):
  return {"/".join(map(str, p)): v for p, v in traverse_util.flatten_dict(tree).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_backbone_is_shared_and_still(kind):
  """Oracle: training the head on the features of the backbone in inference mode."""
  model, given = MODELS[kind], variables_of(MODELS[kind])
  given = jax.tree.map(lambda leaf: leaf + 0.1, given)  # statistics that matter
  parts = chain(mixdef.start_from(given), mixdef.freeze("backbone/.*"))
  ensemble = fit_many(model, parts)
  assert {path.partition("/")[0] for path in flat(ensemble.states.params)} == {"head"}
  assert not ensemble.states.stats  # neither copies nor changed statistics

  head = {name: np.asarray(v) for name, v in flat(given["params"]["head"]).items()}
  network = adapt(model)

  def features(x):
    zero = jax.tree.map(np.zeros_like, given["params"]["head"])
    columns = []
    for unit in range(6):  # read a feature through a head of one 1
      one = {**zero}
      name = "kernel" if "kernel" in zero else "w"
      one[name] = np.zeros((6, CLASSES), np.float32)
      one[name][unit, 0] = 1.0
      params = {**given["params"], "head": one}
      columns.append(
        network.apply({**given, "params": params}, x, train=False)[0][:, 0]
      )
    return np.stack(columns, 1)

  def head_init(key, x):
    return {name: jax.numpy.asarray(value) for name, value in head.items()}

  def head_apply(params, x):
    weight = params.get("kernel", params.get("w"))
    return x @ weight + params.get("bias", 0.0)

  seen = dataclasses.replace(RECORDS, x=features(RECORDS.x))
  alone = mixdef.classifier((head_init, head_apply), optax.sgd(0.5))
  expected = mixdef.fit_many(alone, seen, halves(3), **SIZES)
  for name, leaf in flat(expected.states.params).items():
    found = flat(ensemble.states.params)[f"head/{name}"]
    np.testing.assert_allclose(found, leaf, atol=1e-5)
    assert np.abs(leaf - head[name]).max() > 1e-3  # it trained
  logits = ensemble.log_probs(RECORDS.x)
  np.testing.assert_allclose(logits, expected.log_probs(seen.x), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_starting_anywhere_is_starting_there(kind):
  model = MODELS[kind]
  given = variables_of(model)
  ensemble = fit_many(model, mixdef.start_from(given), optax.sgd(0.0))
  for path, leaf in flat(given["params"]).items():
    for own in np.asarray(flat(ensemble.states.params)[path]):
      np.testing.assert_array_equal(own, leaf)
  fresh = fit_many(model, mixdef.start_from(given, fresh="backbone/.*"), optax.sgd(0.0))
  found, expected = flat(fresh.states.params), flat(given["params"])
  kernel = next(p for p in found if p.startswith("backbone") and found[p].ndim == 3)
  assert (found[kernel] != expected[kernel]).any()
  assert (found[kernel][0] != found[kernel][1]).any()  # each model its own


@pytest.mark.slow
def test_frozen_at_random_each_model_keeps_its_own():
  moved = "freeze('backbone/.*')|weight_decay(0.1)|dp_sgd(1.0, delta=1e-3)"
  ensemble = fit_many(MODELS["pair"], moved, optax.adam(0.1), noise_seed=1)
  (own,) = flat(ensemble.states.stats).values()
  assert (own[0] != own[1]).any()
  still = fit_many(MODELS["pair"], moved, optax.sgd(0.0), noise_seed=1)
  np.testing.assert_array_equal(own, flat(still.states.stats).popitem()[1])


def test_optimizer_decay_and_clipping_see_trained_leaves_alone():
  given = variables_of(MODELS["pair"])
  parts = chain(
    mixdef.start_from(given),
    mixdef.head_only("head/.*"),
    mixdef.weight_decay(0.1),
    mixdef.dp_sgd(1.0, delta=1e-3),
  )
  ensemble = fit_many(MODELS["pair"], parts, optax.adam(0.1))
  assert ensemble[0].guarantee["epsilon"] > 0
  state = ensemble[0].learner.init(jax.random.key(0), SPEC)
  assert {leaf.shape for leaf in jax.tree.leaves(state.opt)} == {(), (6, CLASSES)}


ORDERS = (0, 1, 2), (2, 0, 1), (0, 2, 1)


@pytest.mark.parametrize(
  "defense",
  ["ema(0.9)", pytest.param("dp_sgd(1.0, delta=1e-3)", marks=pytest.mark.slow)],
)
def test_parts_of_a_start_may_stand_anywhere_among_defenses(defense):
  start = mixdef.start_from(variables_of(MODELS["pair"]))
  parts = start, "head_only('head/.*')", defense
  trained = [
    fit_many(MODELS["pair"], chain(*(parts[i] for i in order)), noise_seed=1).states
    for order in ORDERS
  ]
  for other in trained[1:]:
    assert same(trained[0].params, other.params)


@pytest.mark.slow
def test_batch_norm_that_is_frozen_may_be_clipped():
  parts = chain("freeze('backbone/.*')", "dp_sgd(1.0, delta=1e-3)")
  assert fit_many(Linen(), parts)[0].guarantee["epsilon"] > 0
  with pytest.raises(ValueError, match="keeps batch_stats, as BatchNorm does"):
    fit_many(Linen(), "dp_sgd(1.0, delta=1e-3)")


def test_lora_trains_the_factors_of_its_change():
  given = variables_of(MODELS["pair"])
  parts = chain(mixdef.start_from(given), mixdef.lora(2, layers="backbone/.*"))
  before = fit_many(MODELS["pair"], parts, optax.sgd(0.0))
  network = adapt(MODELS["pair"])
  plain = jax.nn.log_softmax(network.apply(given, RECORDS.x, train=False)[0])
  np.testing.assert_allclose(before.log_probs(RECORDS.x)[0], plain, atol=1e-6)
  after = fit_many(MODELS["pair"], parts)
  factors = after.states.params["lora"]["backbone/w"]
  assert factors["a"].shape == (3, COLUMNS, 2)
  assert factors["b"].shape == (3, 2, 6)
  bound = COLUMNS**-0.5
  start = before.states.params["lora"]["backbone/w"]["a"]
  assert 0.8 * bound < np.abs(start).max() <= bound
  changed = given["params"]["backbone"]["w"] + 2.0 * factors["a"][1] @ factors["b"][1]
  merged = {"params": {**given["params"], "backbone": {"w": changed}}}
  expected = jax.nn.log_softmax(network.apply(merged, RECORDS.x, train=False)[0])
  np.testing.assert_allclose(after.log_probs(RECORDS.x)[1], expected, atol=1e-5)
  assert np.abs(expected - plain).max() > 1e-2


def test_lora_has_the_worked_output_and_gradients():
  pair = (lambda key: {"w": np.zeros((2, 2))}, lambda params, x: x @ params["w"])
  network = partial.lora(adapt(pair), rank=1, scale=2.0, layers=lambda path: True)
  x = np.float32([[1, 2]])
  variables = network.init(jax.random.key(0), x)

  def output(a, b):
    params = {"lora": {"w": {"a": jax.numpy.asarray(a), "b": jax.numpy.asarray(b)}}}
    return network.apply({**variables, "params": params}, x, train=False)[0]

  np.testing.assert_allclose(output([[1], [1]], [[3, 0]]), [[18, 0]])
  _, pull = jax.vjp(output, np.float32([[1], [2]]), np.float32([[3, 0]]))
  a, b = pull(np.float32([[1, 1]]))
  np.testing.assert_allclose(a, [[6], [12]])
  np.testing.assert_allclose(b, [[10, 10]])


class Attentive(nn.Module):
  """Layers whose kernels have one and two axes of outputs, and a table."""

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(10, 8, name="table")(x)
    x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
    return nn.Conv(CLASSES, (3,), name="conv")(x).mean(1)


def test_lora_takes_each_kernel_as_the_matrix_of_its_layer():
  network = partial.lora(
    adapt(Attentive()), rank=2, scale=1.0, layers=lambda path: True
  )
  ids = np.zeros((1, 5), np.int32)
  factors = network.init(jax.random.key(0), ids)["params"]["lora"]
  shapes = {
    path: (one["a"].shape[0], one["b"].shape[1]) for path, one in factors.items()
  }
  assert shapes == {
    "table/embedding": (10, 8),
    **{f"attention/{name}/kernel": (8, 8) for name in ("query", "key", "value", "out")},
    "conv/kernel": (3 * 8, CLASSES),
  }
  for path, one in factors.items():  # A B = 0 at the start, with one factor random
    zero, drawn = ("a", "b") if path == "table/embedding" else ("b", "a")
    assert not one[zero].any()
    assert one[drawn].all()


def test_only_frozen_leaves_that_were_not_given_are_kept_by_each_model():
  given = variables_of(MODELS["pair"])
  start = partial.start_from(
    adapt(MODELS["pair"]), given, lambda path: path.startswith("head")
  )
  network = partial.lora(start, rank=1, scale=1.0, layers=lambda path: True)
  variables = network.init(jax.random.key(1), RECORDS.x[:1])
  assert set(variables["frozen"]) == {"params/head/w"}
  expected, _ = start.apply(
    start.init(jax.random.key(1), RECORDS.x[:1]), RECORDS.x, train=False
  )
  found, _ = network.apply(variables, RECORDS.x, train=False)
  np.testing.assert_array_equal(found, expected)


class Dropping(eqx.Module):
  """A backbone with dropout and a head."""

  backbone: eqx.nn.Sequential
  head: eqx.nn.Linear

  def __init__(self, key):
    first, last = jax.random.split(key)
    layers = [eqx.nn.Linear(COLUMNS, 6, key=first), eqx.nn.Dropout(0.5)]
    self.backbone = eqx.nn.Sequential(layers)
    self.head = eqx.nn.Linear(6, CLASSES, key=last)

  def __call__(self, x, *, key=None):
    return self.head(self.backbone(x, key=key))


@pytest.mark.parametrize(("frozen", "quiet"), [("backbone", True), ("head", False)])
def test_a_frozen_backbone_of_equinox_has_no_dropout(frozen, quiet):
  whole = adapt(Dropping)
  given = whole.init(jax.random.key(3), RECORDS.x[:1])
  start = partial.start_from(whole, given["params"])
  network = partial.freeze(start, lambda path: path.startswith(frozen))
  variables = network.init(jax.random.key(0), RECORDS.x[:1])
  trained, _ = network.apply(variables, RECORDS.x, train=True, key=jax.random.key(1))
  predicted, _ = network.apply(variables, RECORDS.x, train=False)
  assert np.array_equal(trained, predicted) == quiet
  expected, _ = whole.apply(given, RECORDS.x, train=False)
  np.testing.assert_array_equal(predicted, expected)


def test_files_are_read_by_their_paths(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  import orbax.checkpoint as ocp

  given = variables_of(MODELS["pair"])["params"]
  arrays = {path: np.asarray(leaf) for path, leaf in flat(given).items()}
  np.savez(tmp_path / "w.npz", **arrays)
  dotted = {path.replace("/", "."): leaf for path, leaf in arrays.items()}
  safetensors.save_file(dotted, tmp_path / "w.safetensors")
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "orbax", given)
  expected = fit_many(MODELS["pair"], mixdef.start_from(given)).states.params
  for name in ("w.npz", "w.safetensors", "orbax"):
    text = f"start_from({str(tmp_path / name)!r})"
    assert same(fit_many(MODELS["pair"], text).states.params, expected), name


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda w: {"backbone": w["backbone"]},
      "lack params/head/w [6, 3]: pass those of this model, or choose what starts at "
      "random by an expression for whole paths, as fresh='head/.*'",
    ),
    (lambda w: {**w, "more": w["head"]}, "also hold params/more/w [6, 3]: pass"),
    (
      lambda w: {"backbone": {"w": w["backbone"]["w"][:2]}, "top": np.ones((1, 3))},
      f"lack params/head/w [6, 3]; hold params/backbone/w [2, 6] instead of "
      f"[{COLUMNS}, 6]; also hold params/top [1, 3]: pass",
    ),
  ],
)
def test_parameters_of_another_model_are_all_named(change, message):
  given = change(variables_of(MODELS["pair"])["params"])
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    fit_many(MODELS["pair"], mixdef.start_from(given))
  assert "\n" not in str(caught.value)


def test_what_cannot_be_frozen_or_read_is_one_line(tmp_path):
  given = variables_of(MODELS["pair"])
  for part, what in (
    (mixdef.freeze(".*"), "everything"),
    (mixdef.head_only(".*"), "nothing"),
  ):
    with pytest.raises(ValueError, match=f"{what} is frozen .* backbone/w, head/w"):
      fit_many(MODELS["pair"], part)
  for part, what in (  # the name of a module is no whole path
    (mixdef.freeze("head"), "layers"),
    (mixdef.head_only("head"), "head"),
    (mixdef.lora(layers="head"), "layers"),
    (mixdef.lora(train="head"), "train"),
    (mixdef.start_from(given, fresh="head"), "fresh"),
  ):
    message = (
      f"{what} matches no path of the model, backbone/w, head/w: write an expression "
      f"for whole paths, as {what}='head/.*'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
      fit_many(MODELS["pair"], part)
  with pytest.raises(ValueError, match="two of freeze, head_only and lora choose"):
    fit_many(MODELS["pair"], "freeze('backbone/.*')|lora(2)")
  with pytest.raises(ValueError, match="start_from comes after freeze"):
    fit_many(MODELS["pair"], chain("freeze('head/.*')", mixdef.start_from(given)))
  network = partial.freeze(
    adapt(Linen())._replace(still=None), lambda path: path.startswith("backbone")
  )
  variables = network.init(jax.random.key(0), RECORDS.x[:1])
  with pytest.raises(ValueError, match="no `still`, so its frozen layers would update"):
    network.apply(variables, RECORDS.x, train=True)
  with pytest.raises(ValueError, match=r"freeze: layers='\(' is not a regular"):
    mixdef.freeze("(")
  with pytest.raises(FileNotFoundError, match=r"w.npz is missing: pass an .npz"):
    mixdef.start_from(str(tmp_path / "w.npz"))
  (tmp_path / "w.pkl").write_bytes(b"\x80")
  with pytest.raises(ValueError, match=r"w.pkl is of an unknown kind"):
    mixdef.start_from(str(tmp_path / "w.pkl"))
  (tmp_path / "w.safetensors").write_bytes(b"\xff" * 20)
  with pytest.raises(ValueError, match=r"w.safetensors is damaged"):
    mixdef.start_from(str(tmp_path / "w.safetensors"))


def test_other_parameters_are_another_run(tmp_path):
  given = variables_of(MODELS["pair"])["params"]
  np.savez(tmp_path / "w.npz", **{p: np.asarray(v) for p, v in flat(given).items()})
  text = f"start_from({str(tmp_path / 'w.npz')!r})"
  fit_many(MODELS["pair"], text, out=tmp_path / "run")
  np.savez(tmp_path / "w.npz", **{p: np.asarray(v) + 1 for p, v in flat(given).items()})
  with pytest.raises(ValueError, match="belongs to another run: learner was"):
    fit_many(MODELS["pair"], text, out=tmp_path / "run")


def test_a_generator_has_no_such_parts():
  networks = mixdef.models.dense_networks((COLUMNS,), CLASSES)
  with pytest.raises(ValueError, match="freeze"):
    mixdef.learners.wgan_gp(networks, defense=mixdef.freeze("a"))
