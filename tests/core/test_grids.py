import jax
import numpy as np
import pytest
from defense_harness import DATA, K, Loop, ctx_at, init, learner_of, make_batch

from mixdef.cli.papers import STUDIES
from mixdef.core.grids import read_grids

STATE = {"label_smoothing": ()}


def only(text):
  (grid,) = read_grids(text)
  return grid


def test_a_text_without_lists_is_one_cell():
  grid = only("mixup|weight_decay(1e-4)")
  assert grid.cells == [{}]
  assert grid.texts == ["mixup|weight_decay(coefficient=0.0001)"]
  assert not grid.traceable()


def test_several_lists_are_every_combination_and_aliases_are_resolved():
  assert only("mixup([0.1, 2.0])|l2(coefficient=[1e-4, 1e-3])").texts == [
    "mixup(alpha=0.1)|weight_decay(coefficient=0.0001)",
    "mixup(alpha=0.1)|weight_decay(coefficient=0.001)",
    "mixup(alpha=2.0)|weight_decay(coefficient=0.0001)",
    "mixup(alpha=2.0)|weight_decay(coefficient=0.001)",
  ]


def test_lists_hold_words_and_infinity_too():
  assert only("relaxloss(form=['image', 'tabular'])").texts == [
    "relaxloss",
    "relaxloss(form='tabular')",
  ]
  assert only("mixup([inf])").texts == ["mixup(alpha=inf)"]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("relaxloss([0.5, 1.0])", True),
    ("dp_sgd([0.5, 1.0])", True),
    ("dropout([0.1, 0.2])", False),  # a network is built with a plain number
    ("early_stopping([3, 4])", False),  # no floats
    ("mixup([1.0, inf])", False),
    ("dp_sgd(epsilon=[1.0, 8.0])", False),  # the noise is found before training
  ],
)
def test_one_program_serves_where_nothing_static_depends_on_the_values(text, expected):
  assert only(text).traceable() is expected


def test_traced_values_reach_the_hooks():
  grid = only("label_smoothing([0.1, 0.5])")

  def top(grid_0):
    smoothed = learner_of(grid.defense(grid_0=grid_0)).batch(
      make_batch(), STATE, ctx_at()
    )
    return smoothed.y.max()

  found = jax.vmap(top)(np.array([0.1, 0.5]))
  np.testing.assert_allclose(found, [0.9 + 0.1 / K, 0.5 + 0.5 / K], rtol=1e-6)


def families():
  every = (grid for texts in STUDIES.values() for grid in read_grids("; ".join(texts)))
  return sorted({grid.text: grid for grid in every if grid.traceable()}.items())


@pytest.mark.parametrize(("text", "grid"), families())
def test_families_of_the_studies_train_with_traced_values(text, grid):
  values = {name: np.float32(column[0]) for name, column in grid.values.items()}

  pictures = DATA._replace(x=DATA.x[..., None, None])

  def two_steps(values):
    loop = Loop(grid.defense(**values))
    return loop.run(init(loop.learner), 2, step=loop.step, data=pictures)

  assert jax.eval_shape(two_steps, values).params, text


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("none; mixup([])", "empty list"),
    ("none; mixup([0.1, 'a'])", "pass a number"),
    ("none; l1([0.1, -2.0])", "at least 0"),
    ("mixup([[0.1]])", "not a literal"),
    ("mixup([x])", "not a literal"),
    ("mixup(grid_0)", "not a literal"),
  ],
)
def test_a_wrong_cell_is_refused_at_once(text, reason):
  with pytest.raises(ValueError, match=reason):
    read_grids(text)
