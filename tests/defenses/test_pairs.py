"""Any two defenses compose, or say why not."""

import functools
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import CLASSIFIERS, DATA, SPEC, D, Loop

from mixdef.core.chaining import chain
from mixdef.defenses import CATALOGUE

NAMES = CLASSIFIERS
PICTURES = DATA._replace(x=DATA.x.reshape(-1, 1, D, 1))
REASONS = (
  "a chain can have only one of the ",
  "make the loss of a record depend on the whole batch",
  "makes the loss of a record depend on the whole batch",
  "lets a record influence the rows",
  "trains earlier stages on the members",
  "trains on the auxiliary records",
  "two parts set the field",
)


def init(learner, seed=0):
  spec = SPEC._replace(example=PICTURES.x[:1])
  return learner.init(jax.random.key(seed), spec)


@functools.cache
def compose(first, second):
  """The chain of two defenses, or the line that refuses them."""
  try:
    return chain(CATALOGUE[first](), CATALOGUE[second]())
  except ValueError as error:
    return str(error)


COMPATIBLE = [
  pair
  for pair in itertools.combinations(NAMES, 2)
  if not isinstance(compose(*pair), str)
]
DRAWN = random.Random(0).sample(COMPATIBLE, 30)


@pytest.mark.slow
@pytest.mark.parametrize("first", NAMES)
def test_every_pair_steps_or_is_refused_with_the_reason(first):
  for second in NAMES:
    made = compose(*sorted((first, second)))
    if first == second:
      assert "two parts of the chain are called" in made
    elif isinstance(made, str):
      assert any(reason in made for reason in REASONS), made
      assert first in made or second in made or "model's" in made
    elif first < second:
      loop = Loop(made)
      start = jax.eval_shape(lambda l=loop.learner: init(l))
      state = jax.eval_shape(
        lambda state, loop=loop: loop.run(state, 1, loop.step, PICTURES), start
      )
      assert jax.tree.structure(state) == jax.tree.structure(start), second


def test_most_pairs_are_compatible():
  pairs = len(NAMES) * (len(NAMES) - 1) // 2
  assert len(COMPATIBLE) > 0.8 * pairs


@pytest.mark.slow
@pytest.mark.parametrize("pair", DRAWN, ids="|".join)
def test_two_steps_of_vmapped_models(pair):
  loop = Loop(compose(*pair))
  starts = [init(loop.learner, seed) for seed in range(2)]
  state = loop.run(
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
    steps=2,
    step=loop.mapped,
    data=PICTURES,
  )
  for before, after in zip(
    jax.tree.leaves(starts[0].params), jax.tree.leaves(state.params), strict=True
  ):
    assert np.isfinite(after).all()
    assert after.shape == (2, *before.shape)
  assert any(
    not np.array_equal(one, other)
    for one, other in (leaf for leaf in jax.tree.leaves(state.params))
  )
