"""Mixup against a naive loop, and the distribution of its draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import SPEC, TABLE, K, in_epoch, make_batch

from mixdef.chain import chain
from mixdef.defense import take
from mixdef.defenses import distillation, mixup
from mixdef.defenses.mixing import draw_share, shuffle

WEIGHT = [1, 1, 0, 1, 1, 0, 1]


def mixed(part, batch, seed=0):
  return part.batch(batch, (), in_epoch(0, seed=seed))


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


def test_more_padding_changes_no_draw():
  short, padded = make_batch(5), make_batch(9, [1] * 5 + [0] * 4)
  padded = padded._replace(x=padded.x.at[:5].set(short.x))
  a, b = (mixed(mixup(per="record"), one) for one in (short, padded))
  for one, other in zip(a, b, strict=True):
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


def test_pitfall_155_draws_repeat_per_key_and_edges_are_exact():
  batch = make_batch(16)
  for part in (mixup(), mixup(0.4)):
    np.testing.assert_array_equal(mixed(part, batch).x, mixed(part, batch).x)
  half = mixed(mixup(float("inf")), batch)
  assert set(np.unique(half.lam)) <= {0.5, 1.0}
  assert chain(mixup(0.0)).batch is None
  assert chain(mixup(-1.0)).batch is None


def test_alpha_near_zero_gives_unmixed_rows():
  batch = make_batch(16)
  out = mixed(mixup(1e-4), batch)
  distance = np.abs(np.asarray(out.x)[:, None] - np.asarray(batch.x)).max(-1)
  np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
  nearest = distance.argmin(1)
  np.testing.assert_allclose(out.y, np.eye(K)[nearest % K], atol=1e-5)


def test_alpha_may_be_swept_inside_the_trace():
  batch = make_batch(16)
  alphas = jnp.array([0.0, 2.0, jnp.inf])
  out = jax.vmap(lambda alpha: mixed(mixup(alpha), batch))(alphas)
  np.testing.assert_array_equal(out.x[0], batch.x)
  assert set(np.unique(out.lam[2])) <= {0.5, 1.0}
  assert 0 < out.lam[1].min() < 1
