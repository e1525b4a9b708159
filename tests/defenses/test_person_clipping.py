"""dp_sgd(unit="person"): a person's records are clipped together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from per_example_cases import (
  CLIP,
  CTX,
  B,
  Conv,
  DenseOverPositions,
  Embed,
  GainBesideLayers,
  ManyWords,
  Norms,
  Shared,
  Small,
  assert_close,
  clipped,
  cross_entropy,
  init,
  make_batch,
)

import mixdef
from mixdef.core.hooks import Ctx, Data, Rows, Spec
from mixdef.defenses import dp_sgd
from mixdef.defenses.per_example import ghost, microbatch

# A layer of each rule of `ghost`, and a model that it hands over.
NETS = [Conv, DenseOverPositions, Embed, ManyWords, Norms, Shared, GainBesideLayers]
ESTIMATORS = {"ghost": ghost, "microbatch": microbatch}
# Rows of a person and their weights: three and two records, or two, one and none.
LAYOUTS = {3: [1, 1, 1, 1, 1, 0], 2: [1, 1, 1, 0, 0, 0]}


def by_segments(losses_fn, params, batch, views):
  """Sum the records' gradients person by person, divide by their number, and clip."""
  person = jnp.arange(B) // views

  def gradient(row):
    alone = jax.tree.map(lambda leaf: leaf[None], row)
    return jax.grad(lambda p: losses_fn(p, alone, CTX)[0][0])(params)

  def mean(leaf):
    weighted = leaf * batch.weight.reshape(-1, *(1,) * (leaf.ndim - 1))
    total = jax.ops.segment_sum(weighted, person, B // views)
    count = jnp.maximum(jax.ops.segment_sum(batch.weight, person, B // views), 1)
    return total / count.reshape(-1, *(1,) * (leaf.ndim - 1))

  grads = jax.tree.map(mean, jax.jit(jax.vmap(gradient))(batch))
  norms = jax.vmap(optax.tree.norm)(grads)
  factor = jnp.minimum(1, CLIP / jnp.maximum(norms, 1e-30)) / 4.0
  return jax.tree.map(lambda leaf: jnp.tensordot(factor, leaf, 1), grads), norms


def check(net, estimator, views):
  model, batch = net(), make_batch(LAYOUTS[views])
  # A row of weight 0 repeats a record of the person, as training deals them.
  place = np.where(batch.weight > 0, np.arange(B), np.arange(B) // views * views)
  batch = batch._replace(x=batch.x[place], y=batch.y[place])
  params, losses_fn = init(model), cross_entropy(model)
  estimate = jax.jit(
    clipped(ESTIMATORS[estimator], losses_fn, clip=CLIP, denominator=4.0, views=views)
  )
  grads = estimate(params, batch, None, CTX)[1]
  expected, norms = by_segments(losses_fn, params, batch, views)
  assert norms.max() > CLIP, "some person is clipped"
  # The norms of `ghost` are raised by a bound of their rounding error.
  assert_close(grads, expected, 2e-5 if estimator == "ghost" else 1e-6)


@pytest.mark.parametrize("views", [3, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_step_clips_the_mean_of_a_persons_records(estimator, views):
  check(Small, estimator, views)


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_ghost_clips_persons_of_every_kind_of_layer(net):
  check(net, "ghost", 3)


WIDTH, CLASSES, BOUND = 5, 3, 0.1
ROWS = 6  # two persons of three records


def step(text, weight, bad=False):
  """Return how far one noiseless step of rate 1 moves the weights."""
  learner = mixdef.classifier(
    mixdef.models.mlp(8, num_classes=CLASSES), optax.sgd(1.0), text
  )
  # The records of a person are alike, so that their gradients add up.
  x = np.repeat(np.random.default_rng(0).normal(size=(2, WIDTH)), 3, axis=0)
  x[1] = np.nan if bad else x[1]
  data = Data(jnp.asarray(x, jnp.float32), jnp.zeros(ROWS, int), jnp.zeros(ROWS, bool))
  sizes = {"num_records": ROWS, "num_members": 2, "num_classes": CLASSES}
  steps = {"batch_size": 2, "steps_per_epoch": 1, "epochs": 1}
  spec = Spec(jnp.zeros((1, WIDTH)), None, None, **sizes, **steps)
  state = learner.init(jax.random.key(0), spec)
  rows = Rows(jnp.arange(ROWS), jnp.asarray(weight, jnp.float32), jnp.zeros(ROWS))
  ctx = Ctx(jax.random.key(7), 0, 0, 1, 1, 2)
  after, _ = jax.jit(learner.step)(state, data, rows, ctx)
  leaves = jax.tree.map(lambda a, b: np.ravel(a - b), after.params, state.params)
  skipped = int(after.defense["dp_sgd"]["skipped"])
  return np.concatenate(jax.tree.leaves(leaves)), skipped


@pytest.mark.slow
def test_a_person_moves_a_step_by_at_most_clip_where_records_exceed_it():
  def distance(more):
    text = f"dp_sgd(0, {BOUND}{more})"
    both, one = (step(text, weight)[0] for weight in ([1] * 6, [0] * 3 + [1] * 3))
    return np.linalg.norm(both - one) / (BOUND / 2)

  assert distance(", unit='person', per_person=3") == pytest.approx(1, rel=1e-4)
  assert distance("") == pytest.approx(3, rel=1e-3), "negative control: three records"


def test_a_person_with_a_bad_record_adds_nothing_and_counts_once():
  text = f"dp_sgd(0, {BOUND}, unit='person', per_person=3)"
  clean, _ = step(text, [0] * 3 + [1] * 3)
  found, skipped = step(text, [1] * 6, bad=True)
  np.testing.assert_allclose(found, clean, atol=1e-7)
  assert skipped == 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"unit": "household"}, "unit is 'household'; choose from 'record', 'person'"),
    ({"unit": "person", "per_person": 0}, "per_person is 0; pass an integer"),
    ({"per_person": 3}, "per_person=3 is for persons: pass unit='person', or drop it"),
    ({"unit": "person", "guarantee": False}, "drop guarantee=False"),
  ],
)
def test_a_unit_that_makes_no_sense_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    dp_sgd(**options)


def test_parts_that_couple_records_are_refused_for_persons_too():
  with pytest.raises(ValueError, match="mixup lets a record influence the rows"):
    mixdef.chain("mixup", dp_sgd(unit="person"))


def test_a_text_keeps_the_unit():
  part = mixdef.parse("dp_sgd(unit='person', per_person=4)")
  assert str(part) == "dp_sgd(unit='person', per_person=4)"
  assert part.parts[0].traits.per_person == part.traits.per_person == 4
