import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixdef
from mixdef.core.randomness import check_seed, generator, random_key, stream
from mixdef.metrics.intervals import bootstrap_records

WRONG = [None, True, np.True_, 1.0, "1", -1, 2**63, np.float32(2), [1], np.int64(-3)]


@pytest.mark.parametrize("seed", [7, np.int32(7), np.uint64(7), jnp.int32(7)])
def test_integers_of_any_library_are_seeds(seed):
  assert check_seed(seed) == 7
  assert type(check_seed(seed)) is int


@pytest.mark.parametrize("seed", WRONG, ids=repr)
@pytest.mark.parametrize("use", [random_key, generator, lambda s: stream(s, "a")])
def test_what_is_no_seed_is_refused_with_the_value(use, seed):
  with pytest.raises(ValueError, match=r"seed=.*; pass"):
    use(seed)


def test_the_key_is_that_of_jax_and_higher_bits_count():
  for seed in (0, 1, 2**31, 2**32 - 1):
    assert random_key(seed) == jax.random.key(seed, impl="threefry2x32")
  keys = [random_key(seed) for seed in (3, 3 + 2**32, 3 + 2**33, 3 + 2**62)]
  assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 4


@pytest.mark.parametrize("name", ["rbg", "unsafe_rbg"])
def test_the_key_is_the_same_whatever_the_default_implementation(name):
  with jax.default_prng_impl(name):
    key = random_key(5)
  assert key == random_key(5)
  assert str(jax.random.key_impl(key)) == "threefry2x32"


@pytest.mark.parametrize("seed", [None, -1, True, 2**63, 0.5])
def test_every_door_refuses_it_before_work_starts(seed):
  data = mixdef.Dataset.from_arrays(np.eye(8), np.arange(8) % 2)
  members = np.array([[True, False] * 4])
  scores = np.linspace(0, 1, 8)[None]
  for use in (
    lambda: mixdef.fit_many(lambda: None, data, members, epochs=1, seed=seed),
    lambda: mixdef.subsets(8, 2, seed=seed),
    lambda: mixdef.disjoint_splits(8, 2, seed=seed),
    lambda: data.with_auxiliary(2, seed=seed),
    lambda: data.hold_out(0.5, seed=seed),
    lambda: bootstrap_records(scores[0], members[0], seed=seed),
  ):
    with pytest.raises(ValueError, match=r"seed=.*; pass"):
      use()
