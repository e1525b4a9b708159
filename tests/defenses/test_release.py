"""Confidence masking: coarser answers with the same label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import DATA, SPEC, K, Loop

from mixdef.defenses import confidence_masking
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
  return part.release_output(jnp.log(jnp.array(log_probs)), (), None, None)


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
  after = part.release_output(before, (), None, None)
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
  with pytest.raises(ValueError, match="top is 4, the data have 3 classes"):
    confidence_masking(4).init(jax.random.key(0), SPEC)
