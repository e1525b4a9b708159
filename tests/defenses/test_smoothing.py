"""Weighted smoothing: its table, its noise and where they act."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import (
  DATA,
  KEEP,
  REFERENCE,
  SPEC,
  D,
  K,
  Loop,
  N,
  after,
  assert_same,
  ctx_at,
  in_epoch,
  init,
  make_batch,
  make_log_probs,
  rows_at,
)

from mixdef.defenses import mixup, weighted_smoothing
from mixdef.defenses.smoothing import project


def naive_mentr(p, y):
  rest = [p[k] * np.log(1 - p[k]) for k in range(len(p)) if k != y]
  return -(1 - p[y]) * np.log(p[y]) - sum(rest)


def naive_table(log_probs, y, members):
  """The z-scores in a plain loop over records and classes, 1 where out."""
  p = np.exp(np.asarray(log_probs, np.float64))
  m = np.array([naive_mentr(p[i], y[i]) for i in range(len(y))])
  z = np.ones(len(y))
  for i in np.flatnonzero(members):
    own = [m[j] for j in np.flatnonzero(members) if y[j] == y[i]]
    z[i] = (m[i] - np.mean(own)) / (np.std(own) + np.exp(-20))
  return z


def refreshed(part, log_probs, members=KEEP, epoch=3):
  state = part.init(None, SPEC)
  return part.epoch(state, after(in_epoch(epoch), log_probs, members))


def table(z, valid=True):
  z = jnp.broadcast_to(jnp.float32(z), (N,))
  return {"z": z, "valid": jnp.array(valid), "nonfinite": jnp.int32(0)}


def noise_of(part, state, batch, log_probs, seeds=4000):
  """The change of each row's output over many seeds, [seeds,B,K]."""

  def one(seed):
    return part.log_probs(
      log_probs, state, in_epoch(4, seed=seed)._replace(batch=batch)
    )

  return np.asarray(jax.vmap(one)(jnp.arange(seeds))) - np.asarray(log_probs)


def test_golden_projection():
  p, n = jnp.array([[0.7, 0.2, 0.1]]), jnp.array([[0.1, -0.5, 0.2]])
  gap, z = 0.5, -0.5
  q = p + n * gap * (1 - z)
  np.testing.assert_allclose(q, [[0.775, -0.175, 0.25]], rtol=1e-5)
  expected = [[0.645833, 0.145833, 0.208333]]
  np.testing.assert_allclose(jnp.exp(project(q)), expected, atol=1e-6)
  np.testing.assert_allclose(-project(q)[0, 0], 0.437214, atol=1e-6)


def test_step_is_the_formula_with_the_rows_own_noise():
  part, batch, log_probs = weighted_smoothing(0.3), make_batch(), make_log_probs()
  z = jnp.linspace(-2, 3, N)
  got = part.log_probs(log_probs, table(z), in_epoch(4)._replace(batch=batch))
  key = in_epoch(4).key
  for i in range(6):
    p = np.exp(np.asarray(log_probs[i], np.float64))
    n = 0.3 * np.asarray(jax.random.normal(jax.random.fold_in(key, i), (K,)))
    top = np.sort(p)[::-1]
    q = np.abs(p + n * (top[0] - top[1]) * (1 - float(z[i])))
    np.testing.assert_allclose(np.exp(got[i]), q / q.sum(), rtol=1e-4, atol=1e-6)


def test_table_equals_a_naive_loop_over_members():
  log_probs = make_log_probs(N)
  state = refreshed(weighted_smoothing(), log_probs)
  np.testing.assert_allclose(
    state["z"], naive_table(log_probs, np.asarray(DATA.y), np.asarray(KEEP)), rtol=1e-4
  )
  assert bool(state["valid"])
  assert int(state["nonfinite"]) == 0


def test_pitfall_72_out_records_do_not_enter_the_moments():
  log_probs = make_log_probs(N)
  other = jnp.where(KEEP[:, None], log_probs, make_log_probs(N, scale=9.0, seed=5))
  a, b = (refreshed(weighted_smoothing(), one)["z"] for one in (log_probs, other))
  np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(a[~KEEP], 1)


def test_a_class_of_one_member_has_z_zero_and_an_absent_class_is_no_error():
  members = jnp.zeros(N, bool).at[jnp.array([0, 3, 6, 1])].set(True)  # no class 2
  for norm in ("class_zscore", "class_minmax"):
    state = refreshed(weighted_smoothing(norm=norm), make_log_probs(N), members)
    assert float(state["z"][1]) == 0
    assert np.isfinite(state["z"]).all()


def test_members_without_a_finite_measure_get_no_noise_and_are_counted():
  log_probs = make_log_probs(N).at[0].set(jnp.nan).at[9].set(jnp.nan)
  state = refreshed(weighted_smoothing(), log_probs)
  assert int(state["nonfinite"]) == 1  # record 9 is no member
  assert float(state["z"][0]) == 1
  others = KEEP.at[0].set(False)
  clean = refreshed(weighted_smoothing(), make_log_probs(N), others)
  np.testing.assert_allclose(state["z"], clean["z"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["mentr", "log_mentr", "ce"])
@pytest.mark.parametrize("norm", ["class_zscore", "global_zscore", "class_minmax"])
def test_norms_and_measures(norm, measure):
  log_probs, y, members = make_log_probs(N), np.asarray(DATA.y), np.asarray(KEEP)
  p = np.exp(np.asarray(log_probs, np.float64))
  m = np.array([naive_mentr(p[i], y[i]) for i in range(N)])
  if measure == "log_mentr":
    m = np.log(m)
  if measure == "ce":
    m = -np.log(p[np.arange(N), y])
  got = refreshed(weighted_smoothing(norm=norm, measure=measure), log_probs)["z"]
  for i in np.flatnonzero(members):
    own = m[members & ((y == y[i]) if norm.startswith("class") else True)]
    if norm == "class_minmax":
      expected = (m[i] - own.min()) / (own.max() - own.min())
    else:
      expected = (m[i] - own.mean()) / own.std()
    np.testing.assert_allclose(got[i], expected, rtol=1e-3, atol=1e-4)
  raw = refreshed(weighted_smoothing(norm="none", measure=measure), log_probs)["z"]
  np.testing.assert_allclose(raw[KEEP], m[members], rtol=1e-4)


def test_measures_of_one_hot_answers_are_finite():
  log_probs = jax.nn.log_softmax(1e4 * jax.nn.one_hot(DATA.y.at[0].set(1), K))
  for measure in ("mentr", "log_mentr", "ce"):
    state = refreshed(weighted_smoothing(measure=measure), log_probs)
    assert int(state["nonfinite"]) == 0
    assert np.isfinite(state["z"]).all()


def test_pitfall_72_no_noise_before_the_first_table():
  part, batch, log_probs = weighted_smoothing(0.5), make_batch(), make_log_probs()
  state = part.init(None, SPEC)
  for epoch in range(4):
    got = part.log_probs(log_probs, state, in_epoch(epoch)._replace(batch=batch))
    np.testing.assert_array_equal(got, log_probs)
    state = part.epoch(state, after(in_epoch(epoch), make_log_probs(N)))
    assert bool(state["valid"]) == (epoch == 3)
  assert np.abs(
    part.log_probs(log_probs, state, in_epoch(4)._replace(batch=batch)) - log_probs
  ).max()


@pytest.mark.parametrize(
  ("factor", "z", "expected"),
  [("literal", -1.0, 2.0), ("literal", 3.0, 2.0), ("clip", 3.0, 0.0), ("clip", 0.0, 1)],
)
def test_pitfall_72_noise_has_the_scale_of_one_minus_z(factor, z, expected):
  part = weighted_smoothing(1e-3, factor=factor, use_gap=False)
  log_probs = jnp.log(jnp.full((6, K), 1 / K))
  noise = noise_of(part, table(z), make_batch(), log_probs)[:, 0]
  # d log q_k = K (n_k - mean n): variance K^2 (1 - 1/K) sigma^2.
  spread = expected * 1e-3 * K * np.sqrt(1 - 1 / K)
  np.testing.assert_allclose(noise.std(0), spread, rtol=0.1, atol=1e-6)


@pytest.mark.slow
def test_pitfall_72_the_table_follows_records_through_shuffling_and_mixing():
  part, batch = weighted_smoothing(0.3), make_batch()
  z = jnp.where(jnp.arange(N) == 2, -3.0, 1.0)  # only record 2 is noisy
  order = jnp.array([5, 2, 0, 1, 4, 3])
  moved = jax.tree.map(lambda leaf: leaf[order], batch)
  got = part.log_probs(make_log_probs(), table(z), in_epoch(4)._replace(batch=moved))
  changed = np.abs(got - make_log_probs()).max(-1) > 1e-5
  np.testing.assert_array_equal(changed, order == 2)
  mixed = mixup(jnp.float32(jnp.inf)).batch(batch, (), in_epoch(0))
  got = part.log_probs(make_log_probs(), table(z), in_epoch(4)._replace(batch=mixed))
  changed = np.abs(got - make_log_probs()).max(-1) > 1e-5
  np.testing.assert_array_equal(changed, (mixed.index == 2) | (mixed.partner == 2))


def test_pitfall_73_gradient_flows_through_the_projection_only():
  part, batch = weighted_smoothing(0.4), make_batch()
  state = table(-1.0)

  def loss(logits):
    out = part.log_probs(
      jax.nn.log_softmax(logits), state, in_epoch(4)._replace(batch=batch)
    )
    return -(batch.y * out).sum()

  logits = make_log_probs()
  shift = shift_of(logits)

  def frozen(logits):
    return -(batch.y * project(jax.nn.softmax(logits) + shift)).sum()

  assert np.abs(shift).max() > 0.05
  np.testing.assert_allclose(
    jax.grad(loss)(logits), jax.grad(frozen)(logits), rtol=1e-4, atol=1e-5
  )


def shift_of(logits):
  """What sigma = 0.4 and z = -1 add to the probabilities, from the formula."""
  p = jax.nn.softmax(logits)
  top = jnp.sort(p, -1)
  rows = [jax.random.fold_in(in_epoch(4).key, i) for i in range(6)]
  n = jnp.stack([jax.random.normal(row, (K,)) for row in rows])
  return 0.4 * n * ((top[:, -1] - top[:, -2]) * 2.0)[:, None]


def test_pitfall_159_zeros_keep_loss_and_gradient_finite():
  q = jnp.array([[1.0, 0.0, 0.0], [0.0, -1e-38, 1.0], [1e-20, 1.0, 0.0]])
  value, gradient = jax.value_and_grad(lambda q: -project(q).sum())(q)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(project(q).min(), -36.0)


def test_logit_noise_shifts_the_logits():
  part = weighted_smoothing(0.2, position="logit", use_gap=False)
  noise = noise_of(part, table(0.0), make_batch(), make_log_probs())
  differences = noise[:, :, 0] - noise[:, :, 1]
  np.testing.assert_allclose(differences.std(0), 0.2 * np.sqrt(2), rtol=0.1)


def test_input_noise_is_added_to_the_records():
  part, batch = weighted_smoothing(0.2, position="input"), make_batch()
  z = jnp.where(jnp.arange(N) == 2, -1.0, 1.0)

  def one(seed):
    return part.batch(batch, table(z), in_epoch(4, seed=seed)).x - batch.x

  noise = np.asarray(jax.vmap(one)(jnp.arange(2000)))
  np.testing.assert_allclose(noise[:, 2].std(), 0.4, rtol=0.05)
  assert np.abs(np.delete(noise, 2, 1)).max() == 0
  plain = part.batch(batch, table(1.0, valid=False), in_epoch(4))
  np.testing.assert_array_equal(plain.x, batch.x)


def test_gradient_noise_has_the_spread_of_noise_on_each_records_gradient():
  part, batch = (
    weighted_smoothing(0.2, position="gradient"),
    make_batch(weight=[1] * 5 + [0]),
  )
  z = jnp.linspace(-2, 2, N)

  def losses(params, batch, ctx):
    return batch.x @ params["w"] * 0, ()

  def one(seed):
    estimate = part.value_and_grad(losses)
    params = {"w": jnp.zeros(D)}
    return estimate(params, batch, table(z), in_epoch(4, seed=seed))[1]["w"]

  noise = np.asarray(jax.vmap(one)(jnp.arange(2000)))
  expected = 0.2 * np.sqrt(((1 - np.asarray(z[:5])) ** 2).sum()) / 5
  np.testing.assert_allclose(noise.std(), expected, rtol=0.05)


def test_zero_sigma_traced_is_plain_training():
  batch, log_probs = make_batch(), make_log_probs()

  def one(sigma):
    part = weighted_smoothing(sigma)
    return part.log_probs(log_probs, table(-1.0), in_epoch(4)._replace(batch=batch))

  got = jax.vmap(one)(jnp.array([0.0, 0.3]))
  np.testing.assert_array_equal(got[0], log_probs)
  assert np.abs(got[1] - log_probs).max() > 0.01


def test_models_of_one_ensemble_draw_other_noise():
  loop = Loop(weighted_smoothing(1.0))
  state = init(loop.learner)
  noisy = state._replace(defense={"weighted_smoothing": table(-1.0)})
  moved = noisy._replace(key=jax.random.key(7))
  a, b = (loop.jitted(s, DATA, rows_at(8), ctx_at(8))[0] for s in (noisy, moved))
  assert any(
    np.abs(x - y).max() > 1e-4
    for x, y in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True)
  )
  again = loop.jitted(noisy, DATA, rows_at(8), ctx_at(8))[0]
  assert_same(a.params, again.params)
  assert not bool((KEEP & REFERENCE).any())


@pytest.mark.parametrize("measure", ["mentr", "log_mentr", "ce"])
def test_pitfall_08_the_table_is_finite_for_one_hot_outputs(measure):
  part = weighted_smoothing(measure=measure, start=0)
  sure = jnp.log(jnp.maximum(jax.nn.one_hot(DATA.y, K), 1e-38))
  wrong = jnp.log(jnp.maximum(jax.nn.one_hot((DATA.y + 1) % K, K), 1e-38))
  half = jnp.arange(N)[:, None] % 2 == 0
  ctx = after(ctx_at(1), jnp.where(half, sure, wrong))
  state = part.epoch(part.init(jax.random.key(0), SPEC), ctx)
  assert jnp.isfinite(state["z"]).all()
  assert jnp.abs(state["z"][KEEP]).max() > 0
