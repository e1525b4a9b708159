"""Confidence masking and HAMP's output: answers that say less, with the same label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import DATA, KEEP, SPEC, K, Loop, ctx_at

from mixdef.defenses import confidence_masking, hamp_output
from mixdef.defenses.release import MASKED

OPTIONS = [
  {},
  {"top": 2},
  {"top": 3, "decimals": 1},
  {"decimals": 0},
  {"decimals": 2},
  {"temperature": 1e6},
  {"temperature": 0.01},
  {"top": 4, "decimals": 1, "temperature": 20.0},
]


def release(log_probs, **options):
  part = confidence_masking(**options)
  return part.release_output(jnp.log(jnp.array(log_probs)), (), ctx_at())


@pytest.mark.parametrize("options", OPTIONS)
def test_pitfall_16_the_label_of_every_record_is_kept(options):
  rng = np.random.default_rng(0)
  smooth = rng.dirichlet(np.ones(5), 300)
  ties = np.array(
    [
      [0.2] * 5,
      [0.1, 0.4, 0.4, 0.1, 0],
      [0, 0, 0.5, 0, 0.5],
      [0.249, 0.251, 0.25, 0.25, 0],
    ]
  )
  near = np.full((4, 5), 0.2) + 1e-7 * rng.normal(size=(4, 5))
  with np.errstate(divide="ignore"):
    before = jnp.maximum(
      jnp.log(jnp.array(np.concatenate([smooth, ties, near]), jnp.float32)), -200.0
    )
  part = confidence_masking(**options)
  after = part.release_output(before, (), ctx_at())
  np.testing.assert_array_equal(before.argmax(-1), after.argmax(-1))
  assert np.isfinite(after).all()
  assert after.max() <= 0


def test_pitfall_47_label_only_queries_see_no_difference_in_a_trained_model():
  loop, plain = Loop(confidence_masking()), Loop()
  masked = loop.learner.predict(loop.train(), DATA.x)
  answers = plain.learner.predict(plain.train(), DATA.x)
  np.testing.assert_array_equal(masked.argmax(-1), answers.argmax(-1))


def test_pitfall_15_masking_acts_on_every_query_and_raw_skips_it():
  loop = Loop(confidence_masking())
  state = loop.train()
  assert len(np.unique(loop.learner.predict(state, DATA.x))) == 2
  assert len(np.unique(loop.learner.predict(state, DATA.x, raw=True))) > K


def test_default_releases_the_label_only():
  out = release([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
  tiny = np.log(np.finfo(np.float32).tiny)
  np.testing.assert_allclose(out, [[0, tiny, tiny], [tiny, tiny, 0]])
  assert pytest.approx(-87.3365, abs=1e-3) == MASKED


def test_top_k_is_renormalised():
  out = jnp.exp(release([[0.5, 0.3, 0.15, 0.05]], top=2))
  np.testing.assert_allclose(out, [[0.625, 0.375, 0, 0]], atol=1e-6)


def test_rounding():
  out = jnp.exp(release([[0.512, 0.341, 0.147]], decimals=1))
  np.testing.assert_allclose(out, [[0.5, 0.3, 0.1]], rtol=1e-6)
  flat = jnp.exp(release([[0.04] * 25], decimals=1))
  np.testing.assert_allclose(flat[0, 0], 0.1, rtol=1e-6)  # the label keeps one unit
  np.testing.assert_allclose(flat[0, 1:], 0, atol=1e-30)


def test_temperature():
  p = np.array([[0.5, 0.3, 0.2]])
  expected = np.sqrt(p) / np.sqrt(p).sum()
  np.testing.assert_allclose(jnp.exp(release(p, temperature=2.0)), expected, rtol=1e-5)


def test_order_is_temperature_then_top_then_rounding():
  p = np.array([0.5, 0.3, 0.15, 0.05])
  soft = np.sqrt(p) / np.sqrt(p).sum()
  kept = soft[:2] / soft[:2].sum()
  out = jnp.exp(release(p[None], top=2, decimals=2, temperature=2.0))
  np.testing.assert_allclose(out[0, :2], np.round(kept, 2), rtol=1e-5)


def test_more_classes_than_there_are_is_refused():
  with pytest.raises(ValueError, match="top is 4, but the data have 3 classes"):
    confidence_masking(4).init(jax.random.key(0), SPEC)


SORTED = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.9, 0.06, 0.04]]))


def replace(log_probs, x, *, table=SORTED, key=0):
  """What `hamp_output` releases when its pool answered `table`."""
  part = hamp_output(len(table))
  ctx = ctx_at()._replace(key=jax.random.key(key), queries=jnp.float32(x))
  return part.release_output(jnp.float32(log_probs), table, ctx)


def distinct(rows, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, 4))


@pytest.mark.slow
def test_hamp_output_equals_a_naive_loop():
  answers = np.log(np.random.default_rng(1).dirichlet(np.ones(3), 300))
  out = np.asarray(replace(answers, distinct(300)))
  drawn = np.zeros(3)
  for row, released in zip(answers, out, strict=True):
    (chosen,) = np.flatnonzero(np.isclose(SORTED[:, 0], released.max(), atol=1e-6))
    expected = np.zeros(3)
    for place, klass in enumerate(sorted(range(3), key=lambda k: -row[k])):
      expected[klass] = SORTED[chosen, place]
    np.testing.assert_allclose(released, expected, atol=1e-6)
    drawn[chosen] += 1
  # Uniform over the pool: 100 each, give or pass 5 sigma.
  assert np.abs(drawn - 100).max() < 5 * np.sqrt(300 * 2 / 9)


def test_pitfall_16_hamp_output_keeps_the_label_and_every_entry_in_spite_of_ties():
  ties = np.log([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3]])
  answers = np.concatenate(
    [np.log(np.random.default_rng(2).dirichlet(np.ones(3), 200)), ties]
  )
  x = distinct(len(answers))
  out = replace(answers, x)
  np.testing.assert_array_equal(out.argmax(-1), np.float32(answers).argmax(-1))
  np.testing.assert_allclose(jnp.exp(out).sum(-1), 1, atol=1e-6)
  level = jnp.log(jnp.full((3, 3), 1 / 3))
  out = replace(answers, x, table=level)
  np.testing.assert_array_equal(out.argmax(-1), np.float32(answers).argmax(-1))
  np.testing.assert_allclose(out, level[0, 0], rtol=1e-6)


def test_hamp_output_tells_the_ranking_only_and_answers_a_record_once():
  x, other = distinct(200), np.random.default_rng(3).uniform(0.1, 3.0, (200, 1))
  answers = np.log(np.random.default_rng(4).dirichlet(np.ones(3), 200))
  out = replace(answers, x)
  np.testing.assert_array_equal(out, replace(answers * other, x))
  moved = np.roll(np.arange(200), 50)
  np.testing.assert_array_equal(out[moved], replace(answers[moved], x[moved]))
  assert 0.3 < (out != replace(answers, x, key=1)).any(-1).mean() < 1


@pytest.mark.parametrize("shape", [(5,), (4, 4, 1)])
def test_hamp_output_asks_about_pixels_or_bits_and_sorts_the_answers(shape):
  asked = []

  def predict(x):
    asked.append(np.asarray(x))
    return jax.nn.log_softmax(jnp.array([[0.1, 2.0, -1.0]]) * jnp.ones((len(x), 1)))

  data = DATA._replace(x=jnp.zeros((12, *shape)))
  ctx = ctx_at()._replace(predict=predict, data=data, members=KEEP)
  table = hamp_output(200).finish(None, ctx)
  assert table.shape == (200, K)
  assert (np.diff(table) <= 0).all()
  (inputs,) = asked
  assert inputs.shape == (200, *shape)
  if len(shape) == 1:
    assert set(np.unique(inputs)) == {0, 1}
    assert abs(inputs.mean() - 0.5) < 5 * 0.5 / np.sqrt(inputs.size)
  else:
    np.testing.assert_allclose(inputs * 255, np.round(inputs * 255), atol=1e-4)
    assert len(np.unique(inputs)) > 200
    assert inputs.min() >= 0
    assert inputs.max() * 255 < 254.5


@pytest.mark.slow
def test_pitfall_47_label_only_queries_of_a_hamp_model_see_no_difference():
  loop, plain = Loop(hamp_output(50)), Loop()
  state, undefended = loop.train(), plain.train()
  state = loop.learner.finish(state, DATA, KEEP, ctx_at())
  raw = plain.learner.predict(undefended, DATA.x)
  answers = loop.learner.predict(state, DATA.x)
  np.testing.assert_array_equal(answers.argmax(-1), raw.argmax(-1))
  np.testing.assert_array_equal(answers, loop.learner.predict(state, DATA.x))
  np.testing.assert_allclose(loop.learner.predict(state, DATA.x, raw=True), raw)
  # The released vectors are those of the pool, not the record's own.
  assert np.abs(np.sort(answers) - np.sort(raw)).max(-1).min() > 1e-4
