"""Model stacking: who learns from whom and when, and what it gives."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_cases import (
  CLASSES,
  DATA,
  KEY,
  Normed,
  learned,
  members_of,
  moved,
  same,
  start,
  train_epochs,
)

from mixdef import models
from mixdef.learners import CATALOGUE, model_stacking
from mixdef.learners._parts import part_of

EPOCHS = 6  # epochs 0..3 train the first level, 4 and 5 the combiner
NETWORKS = ("first", "second", "combiner")
LEARNER = model_stacking((Normed(6), Normed(4)), optax.sgd(0.1, momentum=0.9))


def of(state, name):
  return tuple(tree[name] for tree in learned(state))


@pytest.fixture(scope="module")
def clean():
  """States at the start, after the first level's phase and at the end; the step."""
  state, step = start(LEARNER, EPOCHS)
  middle = train_epochs(state, step, range(4), of=EPOCHS)
  end = train_epochs(middle, step, (4, 5), of=EPOCHS)
  return state, middle, end, step


@pytest.mark.slow
def test_each_phase_trains_its_networks_alone(clean):
  state, middle, end, _ = clean
  changed = [
    [not same(of(b, name), of(a, name)) for name in NETWORKS]
    for a, b in ((state, middle), (middle, end))
  ]
  # BatchNorm's statistics and the optimizer's state are compared, too: nothing of the
  # combiner's phase reaches the first level.
  assert changed == [[True, True, False], [False, False, True]]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_a_record_changes_the_network_of_its_third_alone(clean, part):
  state, middle, end, step = clean
  data = moved(*members_of(part, 3)[:2])
  first_level = train_epochs(state, step, range(4), data=data, of=EPOCHS)
  assert [not same(of(first_level, n), of(middle, n)) for n in NETWORKS] == [
    part == 0,
    part == 1,
    False,
  ]
  # The combiner reads the same first-level models here, so only its own third acts.
  second_level = train_epochs(middle, step, (4, 5), data=data, of=EPOCHS)
  assert [not same(of(second_level, n), of(end, n)) for n in NETWORKS] == [
    False,
    False,
    part == 2,
  ]


def test_the_thirds_cover_all_members():
  counts = [len(members_of(part, 3)) for part in range(3)]
  assert sum(counts) == len(DATA)
  assert min(counts) > 0


@pytest.mark.slow
def test_padding_trains_nothing(clean):
  state, _, _, step = clean
  after = train_epochs(state, step, range(6), of=EPOCHS, padded=True)
  assert same(learned(after), learned(state))


@pytest.mark.slow
def test_the_answer_is_the_combiners_on_both_probabilities(clean):
  _, _, end, _ = clean
  x = jnp.asarray(DATA.x)
  pair = []
  for name, width in (("first", 6), ("second", 4)):
    variables = {"params": end.params[name], **end.stats[name]}
    logits = np.asarray(Normed(width).apply(variables, x), np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    pair.append(odds / odds.sum(-1, keepdims=True))
  layer = end.params["combiner"]["Dense_0"]
  logits = np.concatenate(pair, -1) @ np.asarray(layer["kernel"]) + layer["bias"]
  expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  np.testing.assert_allclose(LEARNER.predict(end, x), expected, atol=1e-5)
  np.testing.assert_array_equal(
    LEARNER.predict(end, x, raw=True), LEARNER.predict(end, x)
  )


def test_before_its_phase_the_combiner_takes_an_equal_vote(clean):
  _, middle, _, _ = clean
  kernel = middle.params["combiner"]["Dense_0"]["kernel"]
  np.testing.assert_array_equal(kernel, 4.0 * np.tile(np.eye(CLASSES), (2, 1)))


def test_another_combiner_can_be_given():
  mlp = models.mlp(8, num_classes=CLASSES)
  learner = model_stacking((Normed(6), Normed(4)), optax.sgd(0.1), combiner=mlp)
  state, _ = start(learner, EPOCHS)
  assert state.params["combiner"]["Dense_0"]["kernel"].shape == (2 * CLASSES, 8)
  assert learner.text.count("MLP(") == 1
  assert learner.text.count("Normed(") == 2


def test_the_parts_are_those_of_the_models_own_key(clean):
  state, _, _, _ = clean
  ids = jnp.arange(len(DATA))
  np.testing.assert_array_equal(part_of(state.key, ids, 3), part_of(KEY, ids, 3))


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ((Normed(),), "needs two first-level models, not 1"),
    (Normed(), "needs two first-level models, not 1"),
    ((Normed(6), Normed(6)), "two different models, but got Normed.* twice"),
  ],
)
def test_wrong_models_are_refused_in_one_line(wrong, message):
  with pytest.raises(ValueError, match=message) as error:
    model_stacking(wrong, optax.sgd(0.1))
  assert "\n" not in str(error.value)


def test_too_few_epochs_and_wrong_classes_are_refused_at_init():
  with pytest.raises(
    ValueError, match="model_stacking trains in 3 phases: increase epochs=2"
  ):
    start(LEARNER, 2)
  wide = model_stacking((Normed(), models.mlp(4, num_classes=5)), optax.sgd(0.1))
  with pytest.raises(ValueError, match="returns 5 classes, but the data have 3"):
    start(wide, EPOCHS)


def test_the_catalogue_holds_it():
  assert CATALOGUE["model_stacking"] is model_stacking
