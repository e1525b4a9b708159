"""What every defense of the catalogue must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import (
  CLASSIFIERS,
  DATA,
  D,
  K,
  Loop,
  after,
  assert_same,
  ctx_at,
  init,
  make_batch,
  make_data,
  make_log_probs,
  rows_at,
)

from mixdef.core.chaining import chain
from mixdef.core.parsing import parse
from mixdef.defenses import CATALOGUE

NAMES = CLASSIFIERS
# One of each kind of hook: the others take these steps with the slow tests.
SOME = ("mixup", "weighted_smoothing", "relaxloss", "weight_decay", "dp_sgd", "ema")
NEUTRAL = {name: one.neutral for name, one in CATALOGUE.items() if one.neutral}
OTHER_ARGUMENTS = [
  "adamixup('performance', label='soft')",
  "adamixup('beta')",
  "adamixup('probability', schedule='to_min')",
  "mixup(inf, per='record', pairs=True)",
  "mixup(0.3, name='other')",
  "past(0.1, start=0.0)",
  "cutmix(inf, per='record')",
  "cutout(3)",
  "random_crop(2, fill='reflect')",
  "random_flip(1.0)",
  "gaussian_noise(0.3, clip=False)",
  "disturb_label(1.0)",
  "hamp_label(1.0, official_grid=True)",
  "relaxloss(0.5, form='tabular', upper=0.3, detach=True)",
  "relaxloss(ascent='correct_only')",
  "weighted_smoothing(position='gradient', norm='class_minmax')",
  "weighted_smoothing(position='input', measure='ce', factor='clip')",
  "weighted_smoothing(position='logit', norm='global_zscore', use_gap=False)",
  "weighted_smoothing(norm='none', measure='log_mentr', start=0)",
  "early_stopping(patience=2)",
  "distillation(form='hinton', official_scale=True)",
  "dmp(4.0, entropy=0.9)",
  "selena(2, non_models=1)",
  "confidence_masking(2, decimals=1, temperature=3.0)",
  "hamp_output(3)",
  "memguard(2.0, steps=5, epochs=3)",
  "mmd(10.0, bandwidth=0.5, gate=0.0)",
  "adversarial_regularization(10.0, attack_steps=2, attack_rate=0.001)",
  "ccl(0.2, form='ccql')",
  "dp_sgd(0.5, multiplicity=3)",
  "dp_sgd(0.1, clipping='adaptive')",
  "hamp",
  "focal_loss(0.5)",
  "hamp_entropy(0.1, official_scale=True)",
]
VARIANTS = [*NAMES, *NEUTRAL.values(), *OTHER_ARGUMENTS]

PICTURES_ONLY = {"cutmix", "cutout", "random_crop", "random_flip"}


def shape_of(text):
  """The shape of a record, which the network flattens."""
  return (1, D, 1) if text.partition("(")[0] in PICTURES_ONLY else (D,)


def data_of(text, scale=1.0):
  data = make_data(scale=scale)
  return data._replace(x=data.x.reshape(-1, *shape_of(text)))


@functools.cache
def loop_of(text):
  return Loop(parse(text))


@functools.cache
def trained(text, seed=0):
  return loop_of(text).train(seed, data=data_of(text))


def signature(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.aval.weak_type), tree)


@pytest.mark.parametrize(
  "text",
  [
    *NAMES,
    *NEUTRAL.values(),
    *(pytest.param(text, marks=pytest.mark.slow) for text in OTHER_ARGUMENTS),
  ],
)
def test_state_keeps_its_form_and_stays_finite(text):
  start, end = init(loop_of(text).learner), trained(text)
  assert signature(start) == signature(end)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(end.params))
  assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(end.defense))
  answers = loop_of(text).learner.predict(end, DATA.x)
  assert answers.shape == (len(DATA.x), K)
  assert np.isfinite(answers).all()


@pytest.mark.parametrize("text", VARIANTS)
def test_every_part_is_read_back_from_its_text(text):
  part = parse(text)
  assert str(parse(str(part))) == str(part)


@pytest.mark.parametrize("name", NAMES)
def test_pitfall_153_one_trace_for_all_steps(name):
  trained(name)
  loop = loop_of(name)
  traces = loop.traces
  loop.train(seed=1, steps=6, data=data_of(name))
  assert loop.traces == traces


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_jitted_step_equals_eager_step(name):
  loop = loop_of(name)
  start = init(loop.learner)
  arguments = (start, data_of(name), rows_at(6), ctx_at(6))
  assert_same(loop.jitted(*arguments), loop.step(*arguments), 1e-5)


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=() if n in SOME else pytest.mark.slow) for n in NAMES],
)
def test_vmapped_models_equal_looped_ones(name):
  loop = loop_of(name)
  one_by_one = [trained(name, seed) for seed in range(3)]
  starts = [init(loop.learner, seed) for seed in range(3)]
  together = loop.run(
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
    step=loop.mapped,
    data=data_of(name),
  )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
  assert_same(together, stacked, 1e-5)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_neutral_parameter_is_the_identity(name):
  plain, neutral = loop_of("none"), loop_of(NEUTRAL[name])
  undefended, defended = trained("none"), trained(NEUTRAL[name])
  assert_same(defended.params, undefended.params, 1e-6)
  assert_same(
    neutral.learner.predict(defended, DATA.x),
    plain.learner.predict(undefended, DATA.x),
    1e-5,
  )


def acts_on_rows(name):
  """Whether a defense changes rows, each by itself."""
  part = CATALOGUE[name]()
  hooks = (part.batch, part.log_probs, part.loss, part.release_output)
  coupled = part.traits.order == "mix" or part.traits.couples == "batch"
  return any(hooks) and not coupled


@pytest.mark.parametrize("name", list(filter(acts_on_rows, NAMES)))
def test_rows_are_treated_alike_in_any_order(name):
  part = CATALOGUE[name]()
  state, ctx = trained(name).defense[part.name], ctx_at(7)
  order = jnp.array([3, 0, 5, 1, 4, 2])
  batch, log_probs = make_batch(shape=shape_of(name)), make_log_probs()
  moved = jax.tree.map(lambda leaf: leaf[order], batch)
  losses = -(batch.y * log_probs).sum(-1)
  here = ctx._replace(batch=batch, log_probs=log_probs, queries=batch.x)
  there = ctx._replace(batch=moved, log_probs=log_probs[order], queries=moved.x)
  if part.batch:
    expected = jax.tree.map(lambda leaf: leaf[order], part.batch(batch, state, ctx))
    assert_same(part.batch(moved, state, ctx), expected, 1e-6)
  if part.log_probs:
    expected = part.log_probs(log_probs, state, here)[order]
    assert_same(part.log_probs(log_probs[order], state, there), expected, 1e-6)
  if part.loss:
    expected = part.loss(losses, state, here)[order]
    got = part.loss(losses[order], state, there)
    assert_same(got, expected, 1e-6)
  if part.release_output:
    expected = part.release_output(log_probs, state, here)[order]
    got = part.release_output(log_probs[order], state, there)
    assert_same(got, expected, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_survive(name):
  loop = loop_of(name)
  start = init(loop.learner)
  extreme = data_of(name, scale=1e4)
  state, metrics = loop.jitted(start, extreme, rows_at(6), ctx_at(6))
  assert np.abs(loop.learner.predict(start, extreme.x, raw=True)).max() > 1e3
  assert np.isfinite(metrics["loss"])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
  assert np.isfinite(loop.learner.predict(start, extreme.x)).all()


@pytest.mark.parametrize("name", NAMES)
def test_out_records_never_reach_the_parameters(name):
  """Pitfalls 60, 72 and 146: not by mixing, class moments or padding."""
  data = data_of(name)
  out = (~data.auxiliary) & (jnp.arange(len(data.x)) >= 8)
  other = data._replace(x=data.x.at[out].set(100.0))
  assert_same(loop_of(name).train(data=other), trained(name))


def test_every_default_is_the_canonical_name():
  assert all(str(make()) == name for name, make in CATALOGUE.items())
  assert {call.partition("(")[0] for call in CATALOGUE.aliases.values()} <= set(
    CATALOGUE
  )
  assert len(NEUTRAL) >= 29  # the others change the outputs with any argument


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("mixup(per='row')", "'batch', 'record'"),
    ("mixup('a')", "pass a number"),
    ("adamixup('beta', start=0.5, end=0.6)", "at most 0.5"),
    ("adamixup('performance', schedule='raw')", "drop schedule"),
    ("label_smoothing(1.5)", "epsilon is 1.5; pass a number of at least 0 and"),
    ("relaxloss(-1)", "of at least 0"),
    ("relaxloss(upper=0)", "above 0 and at most 1"),
    ("relaxloss(form='tabular', ascent='correct_only')", "no gradient ascent"),
    ("ccl(1.5)", "at least 0 and at most 1"),
    ("ccl(beta=0.0)", "above 0"),
    ("ccl(form='quadratic')", "'ccel', 'ccql'"),
    ("focal_loss(-1.0)", "at least 0"),
    ("confidence_penalty(-0.1)", "at least 0"),
    ("hamp_entropy(-0.1)", "at least 0"),
    ("weighted_smoothing(norm='zscore')", "'class_zscore'"),
    ("weight_decay(True)", "pass a number"),
    ("dropout(1.0)", "drops all units"),
    ("ema(1.1)", "decay is 1.1"),
    ("early_stopping(0)", "an integer of at least 1"),
    ("early_stopping(5, patience=2)", "pass only one"),
    ("distillation(0.0)", "above 0"),
    ("dmp(0.0)", "temperature is 0.0; pass a number above 0"),
    ("dmp(entropy=1.5)", "above 0 and at most 1"),
    ("selena(0)", "an integer of at least 1"),
    ("selena(5, non_models=5)", "leaves no teacher trained on a record"),
    ("confidence_masking(0)", "an integer of at least 1"),
    ("confidence_masking(temperature=-1.0)", "above 0"),
    ("hamp_output(0)", "pool is 0; pass an integer of at least 1"),
    ("memguard(-0.5)", "budget is -0.5; pass a number of at least 0"),
    ("memguard(steps=0)", "an integer of at least 1"),
    ("mmd(-1.0)", "coefficient is -1.0; pass a number of at least 0"),
    ("mmd(bandwidth=0.0)", "above 0"),
    ("mmd(gate=3.0)", "gate is 3.0; pass a number of at least 0 and at most 1"),
    ("adversarial_regularization(-1.0)", "coefficient is -1.0"),
    ("adversarial_regularization(attack_steps=0)", "an integer of at least 1"),
    ("adversarial_regularization(attack_rate=0.0)", "above 0"),
    ("past(-1e-3)", "coefficient is -0.001; pass a number of at least 0"),
    ("past(start=1.5)", "at least 0 and at most 1"),
  ],
)
def test_arguments_out_of_range_are_refused_with_the_reason(text, reason):
  with pytest.raises(ValueError, match=reason):
    parse(text)


@pytest.mark.slow
def test_epoch_hooks_see_the_epoch_that_ended():
  part = CATALOGUE["early_stopping"](4)
  state = {"early_stopping": {"w": jnp.zeros(2)}}
  for step, expected in ((7, 1.0), (9, 0.0)):  # the ends of the epochs 3 and 4
    ctx = after(ctx_at(step), None, variables={"w": jnp.ones(2)})
    new = chain(part).epoch(state, ctx)
    np.testing.assert_array_equal(new["early_stopping"]["w"], expected)
