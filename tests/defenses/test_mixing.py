"""Mixup and CutMix against naive loops, and the distribution of their draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import SPEC, TABLE, K, in_epoch, make_batch

from mixdef.core.chaining import chain
from mixdef.core.hooks import take
from mixdef.defenses import cutmix, distillation, dp_sgd, mixup
from mixdef.defenses.mixing import draw_share, shuffle

WEIGHT = [1, 1, 0, 1, 1, 0, 1]


def mixed(part, batch, seed=0):
  return part.batch(batch, (), in_epoch(0, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (5,), (4, 4, 1)])
@pytest.mark.parametrize("per", ["batch", "record"])
def test_rows_are_the_mixture_that_partner_and_lam_say(shape, per):
  batch = make_batch(7, WEIGHT, shape=shape)
  out = mixed(mixup(per=per), batch)
  for i in range(7):
    j, lam = int(out.partner[i]), np.asarray(out.lam[i])
    x = lam * np.asarray(batch.x[i]) + (1 - lam) * np.asarray(batch.x[j])
    y = lam * np.asarray(batch.y[i]) + (1 - lam) * np.asarray(batch.y[j])
    np.testing.assert_allclose(out.x[i], x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out.y[i], y, rtol=1e-6)
  np.testing.assert_allclose(out.y.sum(-1), 1, rtol=1e-6)


def test_pitfall_60_partners_are_a_permutation_of_the_rows_with_weight():
  batch = make_batch(7, WEIGHT)
  valid = np.flatnonzero(WEIGHT)
  for seed in range(20):
    out = mixed(mixup(), batch, seed)
    assert sorted(np.asarray(out.partner)[valid]) == sorted(valid)
    padded = np.flatnonzero(np.array(WEIGHT) == 0)
    np.testing.assert_array_equal(out.partner[padded], padded)
    np.testing.assert_array_equal(out.lam[padded], 1)
    np.testing.assert_array_equal(out.x[padded], batch.x[padded])


def test_pitfall_60_a_padded_row_contributes_to_no_other():
  batch = make_batch(7, WEIGHT)
  padded = (batch.weight == 0)[:, None]
  other = batch._replace(x=jnp.where(padded, 1e6, batch.x))
  a, b = (mixed(mixup(per="record"), one).x for one in (batch, other))
  np.testing.assert_array_equal(jnp.where(padded, 0, a), jnp.where(padded, 0, b))


@pytest.mark.slow
def test_pitfall_61_teacher_rows_and_tables_are_mixed_alike():
  part = chain(mixup(), distillation(temperature=1.0))
  batch = make_batch(6)
  state = part.init(jax.random.key(0), SPEC)
  out = part.batch(batch, state, in_epoch(0))
  table = np.exp(np.asarray(TABLE))
  for i in range(6):
    j, lam = int(out.partner[i]), float(out.lam[i])
    row = lam * table[i] + (1 - lam) * table[j]
    np.testing.assert_allclose(out.y[i], row, rtol=1e-5)
    np.testing.assert_allclose(take(jnp.array(table), out)[i], row, rtol=1e-5)


def test_one_lam_a_batch_or_one_a_record():
  batch = make_batch(32)
  one, many = mixed(mixup(), batch), mixed(mixup(per="record"), batch)
  assert len(np.unique(one.lam[one.lam != 1])) == 1
  assert len(np.unique(many.lam[many.lam != 1])) > 20


@pytest.mark.slow
def test_pairs_make_both_contributors_random_and_keep_the_weights():
  batch = make_batch(7, WEIGHT)
  valid = np.flatnonzero(WEIGHT)
  out = mixed(mixup(pairs=True), batch)
  assert sorted(np.asarray(out.index)[valid]) == sorted(valid)
  np.testing.assert_array_equal(out.weight, batch.weight)
  lam = np.asarray(out.lam)[:, None]
  x = (
    lam * np.asarray(batch.x)[out.index] + (1 - lam) * np.asarray(batch.x)[out.partner]
  )
  np.testing.assert_allclose(out.x, x, rtol=1e-5, atol=1e-6)
  firsts = [int(mixed(mixup(pairs=True), batch, seed).index[0]) for seed in range(20)]
  assert len(set(firsts)) > 2


@pytest.mark.slow
def test_more_padding_changes_no_draw():
  short, padded = make_batch(5), make_batch(9, [1] * 5 + [0] * 4)
  padded = padded._replace(x=padded.x.at[:5].set(short.x))
  a, b = (mixed(mixup(per="record"), one) for one in (short, padded))
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(one, other[:5])


def test_shuffle_is_uniform():
  keys = jax.random.split(jax.random.key(0), 6000)
  weight = jnp.array([1.0, 0.0, 1.0, 1.0])
  draws = np.asarray(jax.vmap(lambda key: shuffle(key, weight))(keys))
  kinds, counts = np.unique(draws, axis=0, return_counts=True)
  assert len(kinds) == 6
  # Each of 6 kinds is Binomial(6000, 1/6): standard deviation 28.9, five of them.
  assert np.abs(counts - 1000).max() < 145


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_lam_has_the_variance_of_beta(alpha):
  share = np.asarray(draw_share(jax.random.key(0), alpha, (20_000,)))
  assert abs(share.mean() - 0.5) < 0.02
  np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)


@pytest.mark.slow
def test_pitfall_155_draws_repeat_per_key_and_edges_are_exact():
  batch = make_batch(16)
  for part in (mixup(), mixup(0.4)):
    np.testing.assert_array_equal(mixed(part, batch).x, mixed(part, batch).x)
  half = mixed(mixup(float("inf")), batch)
  assert set(np.unique(half.lam)) <= {0.5, 1.0}
  assert chain(mixup(0.0)).batch is None
  with pytest.raises(ValueError, match=r"alpha is -1.0; pass a number of at least 0"):
    mixup(-1.0)


def test_alpha_near_zero_gives_unmixed_rows():
  batch = make_batch(16)
  out = mixed(mixup(1e-4), batch)
  distance = np.abs(np.asarray(out.x)[:, None] - np.asarray(batch.x)).max(-1)
  np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
  nearest = distance.argmin(1)
  np.testing.assert_allclose(out.y, np.eye(K)[nearest % K], atol=1e-5)


@pytest.mark.slow
def test_alpha_may_be_swept_inside_the_trace():
  batch = make_batch(16)
  alphas = jnp.array([0.0, 2.0, jnp.inf])
  out = jax.vmap(lambda alpha: mixed(mixup(alpha), batch))(alphas)
  np.testing.assert_array_equal(out.x[0], batch.x)
  assert set(np.unique(out.lam[2])) <= {0.5, 1.0}
  assert 0 < out.lam[1].min() < 1


def cut(part, batch, seeds):
  """Apply a part once a seed, by one program."""
  apply = jax.jit(part.batch)
  return [apply(batch, (), in_epoch(0, seed=seed)) for seed in range(seeds)]


def told(rows, shape=(6, 7), weight=None):
  """Pictures whose every pixel is the number of the record."""
  x = jnp.arange(rows, dtype=jnp.float32).reshape(-1, *(1,) * len(shape))
  return make_batch(rows, weight)._replace(x=jnp.broadcast_to(x, (rows, *shape)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 7), (7, 7, 2)])
@pytest.mark.parametrize("per", ["batch", "record"])
def test_pitfall_64_cutmix_lam_is_the_area_of_the_clipped_box(shape, per):
  batch = told(7, shape, WEIGHT)
  for out in cut(cutmix(per=per), batch, 10):
    for i in range(7):
      j, x = int(out.partner[i]), np.asarray(out.x[i])
      assert set(np.unique(x)) <= {i, j}
      box = (x == j).reshape(*shape[:2], -1).all(-1) & (i != j)
      area = sum(bool(box[a, b]) for a in range(shape[0]) for b in range(shape[1]))
      rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
      assert area == len(rows) * len(columns)  # and not what the draw asked for
      for line in (rows, columns):
        np.testing.assert_array_equal(np.diff(line), 1)
      lam = 1 - area / box.size
      np.testing.assert_allclose(out.lam[i], lam, rtol=1e-6, atol=1e-6)
      y = lam * np.asarray(batch.y[i]) + (1 - lam) * np.asarray(batch.y[j])
      np.testing.assert_allclose(out.y[i], y, rtol=1e-5, atol=1e-6)
      if area == 0:
        assert (j, float(out.lam[i])) == (i, 1)


@pytest.mark.slow
def test_pitfall_64_cutmix_by_an_empty_box_leaves_the_row():
  batch = told(6)
  out = jax.jit(lambda alpha: mixed(cutmix(alpha), batch))(0.0)
  for one, other in zip(out, batch, strict=True):
    np.testing.assert_array_equal(one, other)
  assert chain(cutmix(0.0)).batch is None


@pytest.mark.slow
def test_pitfall_64_cutmix_by_a_full_box_is_the_partner():
  batch = told(8, (1, 1))  # one pixel: a box is all of it or none
  full = 0
  for out in cut(cutmix(0.05, per="record"), batch, 40):
    whole = np.asarray(out.lam) == 0
    np.testing.assert_array_equal(out.x[whole, 0, 0], out.partner[whole])
    np.testing.assert_array_equal(out.y[whole], batch.y[out.partner[whole]])
    full += whole.sum()
  assert full > 20


@pytest.mark.slow
def test_pitfall_64_cutmix_boxes_are_cut_off_with_the_chance_of_their_centre():
  batch = told(4000, (6, 6))
  out = mixed(cutmix(float("inf"), per="record"), batch)
  box = np.asarray(out.x) == np.asarray(out.partner)[:, None, None]
  box &= (out.partner != out.index)[:, None, None]
  side = int(6 * np.sqrt(0.5))
  reach = np.zeros(6)
  for centre in range(6):
    for place in range(centre - side // 2, centre - side // 2 + side):
      if 0 <= place < 6:
        reach[place] += 1 / 6
  # A share of 4000 draws has a standard deviation of at most 0.0079, five of them.
  np.testing.assert_allclose(box.mean(0), np.outer(reach, reach), atol=0.04)


def test_pitfall_60_cutmix_never_takes_from_a_row_without_weight():
  batch = told(7, weight=WEIGHT)
  for out in cut(cutmix(float("inf"), per="record"), batch, 20):
    padded = np.flatnonzero(np.array(WEIGHT) == 0)
    np.testing.assert_array_equal(out.partner[padded], padded)
    np.testing.assert_array_equal(out.x[padded], batch.x[padded])
    rest = np.delete(np.asarray(out.x), padded, 0)
    assert not np.isin(padded, rest).any()


@pytest.mark.slow
def test_pitfall_61_tables_are_mixed_by_the_area_of_cutmix():
  out = mixed(cutmix(), told(6))
  table = jnp.array(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
  for i in range(6):
    j, lam = int(out.partner[i]), float(out.lam[i])
    row = lam * table[i] + (1 - lam) * table[j]
    np.testing.assert_allclose(take(table, out)[i], row, rtol=1e-5)


def test_cutmix_draws_one_box_a_batch_or_one_a_record():
  one, many = mixed(cutmix(), told(32)), mixed(cutmix(per="record"), told(32))
  assert len(np.unique(one.lam[one.lam != 1])) == 1
  assert len(np.unique(many.lam)) > 8


@pytest.mark.slow
def test_cutmix_refuses_tables_and_what_it_cannot_be_combined_with():
  with pytest.raises(ValueError, match=r"cutmix augments images .* shape \(5,\)"):
    mixed(cutmix(), make_batch())
  with pytest.raises(ValueError, match="cutmix: per is 'row'"):
    cutmix(per="row")
  with pytest.raises(ValueError, match="one of the mixers, not mixup and cutmix"):
    chain(mixup(), cutmix())
  with pytest.raises(ValueError, match="cutmix lets a record influence"):
    chain(cutmix(), dp_sgd())
  chain(cutmix(), dp_sgd(guarantee=False))
