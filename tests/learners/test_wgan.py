"""One step of a GAN is what its formulas say, record by record."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gan_cases import (
  CLASSES,
  DATA,
  FEATURES,
  NETWORKS,
  SGD,
  critic_grad_by_hand,
  ctx_at,
  descended,
  device,
  generator_grad_by_hand,
  own_ctx,
  records,
  rows_of,
  same,
  start,
  take_row,
)

import mixdef
from mixdef.core.hooks import Defense
from mixdef.core.randomness import row_keys
from mixdef.defenses.adamixup import adamixup
from mixdef.defenses.mixing import mixup
from mixdef.learners import mixup_gan, par_gan
from mixdef.learners._gan import between, gather, gradient_penalty, latents
from mixdef.learners.wgan import wgan_gp
from mixdef.models import image_networks, table_networks

ROWS, CTX = rows_of(3), ctx_at()
PICTURES = records(shape=(8, 8))
PICTURE_NETWORKS = image_networks((8, 8), CLASSES, width=2, latent=3)
gan = functools.partial(wgan_gp, NETWORKS, SGD, critic_steps=1)


def defended_batch(learner, rows=ROWS, ctx=CTX, critic=0):
  """The batch of a critic's rows, as its defense mixes it."""
  batch, own = gather(device(DATA), rows, CLASSES), own_ctx(ctx, critic)
  state = {"mixup": (), "adamixup": ()}
  return (learner.batch(batch, state, own) if learner.batch else batch), own


def step(learner, state, rows=ROWS, ctx=CTX, data=DATA):
  return jax.jit(learner.step)(state, device(data), rows, ctx)


@pytest.mark.slow
@pytest.mark.parametrize(
  "defense",
  [None, mixup(), mixup(per="record", pairs=True), adamixup()],
  ids=["none", "mixup", "pairs", "adamixup"],
)
def test_a_step_descends_the_losses_of_the_formulas(defense):
  """Pitfall 101: with mixing, the penalty's points carry the mixed conditions."""
  learner = gan(defense=defense)
  state = start(learner)
  batch, own = defended_batch(learner)
  if defense:  # else the conditions of the penalty could not be told apart
    unmixed, _ = defended_batch(gan())
    assert not np.allclose(batch.x, unmixed.x)
    assert not np.allclose(batch.y, unmixed.y) or "adamixup" in str(defense)
  d, g = take_row(state.params["d"], 0), state.params["g"]
  value, grads = critic_grad_by_hand(d, g, batch, own)
  new_d = descended(d, grads)
  new_g = descended(g, generator_grad_by_hand(g, new_d, batch, own))
  after, metrics = step(learner, state)
  np.testing.assert_allclose(metrics["critic_loss"], value, rtol=1e-4)
  assert same(take_row(after.params["d"], 0), new_d, atol=1e-5)
  assert same(after.params["g"], new_g, atol=1e-5)
  assert not same(new_g, g, atol=1e-5)


@pytest.mark.slow
def test_the_penalty_has_its_weight():
  learner = gan(penalty=2.5)
  state = start(learner)
  batch, own = defended_batch(learner)
  d, g = take_row(state.params["d"], 0), state.params["g"]
  value, _ = critic_grad_by_hand(d, g, batch, own, penalty=2.5)
  _, metrics = step(learner, state)
  np.testing.assert_allclose(metrics["critic_loss"], value, rtol=1e-4)


@pytest.mark.slow
def test_the_distance_is_the_mean_score_of_members_above_that_of_fakes():
  learner = gan()
  state = start(learner)
  batch, own = defended_batch(learner)
  z = latents(own.key, batch.index, learner.latent)
  real = learner.predict(state, batch.x, y=batch.y)
  fake = learner.predict(state, learner.generate(state, z, batch.y), y=batch.y)
  _, metrics = step(learner, state)
  expected = (real - fake)[:3].mean()  # the fourth row is padding
  np.testing.assert_allclose(metrics["distance"], expected, rtol=1e-4)


@pytest.mark.slow
def test_pitfall_99_no_mixing_is_the_base_gan_to_the_bit():
  base = wgan_gp(NETWORKS, critic_steps=1)
  plain = start(base)
  off = start(mixup_gan(NETWORKS, alpha=0.0))
  for i in range(2):
    plain, _ = step(base, plain, ctx=ctx_at(i))
    off, _ = step(mixup_gan(NETWORKS, alpha=0.0, critic_steps=1), off, ctx=ctx_at(i))
  assert same(off[:3], plain[:3])


@pytest.mark.slow
def test_pitfall_99_no_mixing_is_the_program_of_the_base_gan():
  learners = {alpha: mixup_gan(PICTURE_NETWORKS, alpha=alpha) for alpha in (0.0, 1.0)}
  learners["base"] = wgan_gp(PICTURE_NETWORKS)
  state, programs = start(learners["base"], PICTURES), {}
  for name, learner in learners.items():
    own = state._replace(defense={} if name == "base" else {"mixup": ()})
    lowered = jax.jit(learner.step).lower(own, device(PICTURES), ROWS, CTX)
    programs[name] = lowered.as_text()
  assert programs[0.0] == programs["base"] != programs[1.0]


@pytest.mark.slow
def test_a_swept_alpha_of_zero_is_the_base_gan():
  data, rows = device(DATA), ROWS

  @jax.jit
  def first_step(alpha):
    learner = gan(defense=mixup(alpha))
    return learner.step(start(learner), data, rows, CTX)[0].params

  base, _ = step(gan(), start(gan()))
  assert same(first_step(0.0), base.params, atol=1e-6)
  assert not same(first_step(1.0), base.params, atol=1e-4)


def test_classifiers_and_gans_share_the_mixing_function():
  mix = mixup(0.7)
  classifier = mixdef.classifier(mixdef.models.mlp(4, num_classes=CLASSES), SGD, mix)
  batch = gather(device(DATA), ROWS, CLASSES)
  one, other = (
    learner.batch(batch, {"mixup": ()}, CTX) for learner in (classifier, gan(mix))
  )
  assert gan(mix).traits == classifier.traits
  assert same(one, other)
  assert not same(one.x, batch.x)


@pytest.mark.slow
def test_pitfall_101_the_gradient_of_the_sum_holds_that_of_each_record():
  x = jnp.asarray(PICTURES.x[:5])
  y = jax.nn.one_hot(jnp.arange(5) % CLASSES, CLASSES)
  critic = PICTURE_NETWORKS.critic
  variables = critic.init(jax.random.key(0), x, y)

  def alone(x, y):
    slope = jax.grad(lambda x: critic.apply(variables, x[None], y[None])[0])(x)
    return (jnp.linalg.norm(slope) - 1) ** 2

  together = gradient_penalty(lambda x: critic.apply(variables, x, y), x)
  np.testing.assert_allclose(together, jax.vmap(alone)(x, y), rtol=1e-4)


def test_pitfall_101_a_flat_critic_has_a_finite_penalty_and_gradient():
  def penalty(slope):
    return gradient_penalty(lambda x: (x * slope).sum(-1), jnp.ones((4, 3))).sum()

  value, gradient = jax.value_and_grad(penalty)(jnp.zeros(3))
  np.testing.assert_allclose(value, 4.0, rtol=1e-5)
  assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_pitfall_157_constant_pictures_have_finite_second_gradients():
  networks = image_networks((16, 16), CLASSES, width=2)
  x, y = jnp.full((2, 16, 16), 0.5), jnp.ones((2, CLASSES)) / CLASSES
  params = networks.critic.init(jax.random.key(0), x, y)

  def penalty(params):
    return gradient_penalty(lambda x: networks.critic.apply(params, x, y), x).sum()

  gradient = jax.jit(jax.grad(penalty))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_points_of_the_penalty_lie_between_a_record_and_its_fake():
  ids = jnp.arange(40)
  real, fake = jnp.zeros((40, 2, 3)), jnp.ones((40, 2, 3))
  share = between(jax.random.key(0), real, fake, ids)
  assert (share == share[:, :1, :1]).all()  # one u a record
  share = share[:, 0, 0]
  assert len(np.unique(share)) == 40
  assert 0 <= share.min() < 0.1
  assert 0.9 < share.max() <= 1
  few = between(jax.random.key(0), real[:2], fake[:2], ids[jnp.array([7, 3])])
  np.testing.assert_array_equal(few[:, 0, 0], share[jnp.array([7, 3])])


def test_latents_are_normal_and_follow_the_record():
  key = jax.random.key(1)
  z = latents(key, jnp.arange(500), 4)
  assert abs(z.mean()) < 5 / np.sqrt(z.size)
  assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
  np.testing.assert_array_equal(
    latents(key, jnp.array([9, 2]), 4), z[jnp.array([9, 2])]
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("when", "expected"),
  [("after", [2, 5, 8, 11, 14]), ("first", [0, 3, 4, 7, 8, 11, 12])],
)
def test_pitfall_102_the_generator_steps_when_declared(when, expected):
  """Three critic steps for one of the generator, epochs of four steps."""
  learner = wgan_gp(NETWORKS, critic_steps=3, generator_steps=when)
  state, moved, counted = start(learner), [], []
  jitted = jax.jit(learner.step)
  for i in range(15):
    new, metrics = jitted(state, device(DATA), ROWS, ctx_at(i))
    assert not same(new.params["d"], state.params["d"])
    if not same(new.params["g"], state.params["g"]):
      moved.append(i)
    if metrics["generator_steps"]:
      counted.append(i)
    state = new
  assert moved == counted == expected


@pytest.mark.slow
@pytest.mark.parametrize("against", ["all", "last"])
def test_pitfall_103_the_generator_hears_the_critics_declared(against):
  learner = par_gan(NETWORKS, SGD, critics=3, critic_steps=1, generator_against=against)
  rows = jax.tree.map(
    lambda *leaves: jnp.concatenate(leaves), *(rows_of(4, first=f) for f in (0, 8, 16))
  )
  state = start(learner)

  def generator_after(*silent):
    quiet = jax.tree.map(
      lambda leaf: leaf.at[jnp.array(silent, int)].set(0.0), state.params["d"]
    )
    params = {**state.params, "d": quiet}
    return step(learner, state._replace(params=params), rows)[0].params["g"]

  everyone = generator_after()
  heard = [not same(generator_after(k), everyone) for k in range(3)]
  assert heard == ([True] * 3 if against == "all" else [False, False, True])
  assert same(generator_after(0, 1, 2), state.params["g"])  # no critic, no gradient


@pytest.mark.slow
def test_the_generator_descends_the_mean_of_the_critics_losses():
  learner = par_gan(NETWORKS, SGD, mixup(), critics=2, critic_steps=1)
  parts = [rows_of(4), rows_of(3, 2, first=10)]
  rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
  state = start(learner)
  after, _ = step(learner, state, rows)
  g, grads = state.params["g"], []
  for k, part in enumerate(parts):
    batch, own = defended_batch(learner, part, critic=k)
    d = take_row(state.params["d"], k)
    d = descended(d, critic_grad_by_hand(d, g, batch, own)[1])
    assert same(take_row(after.params["d"], k), d, atol=1e-5)
    grads.append(generator_grad_by_hand(g, d, batch, own))
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
  assert same(after.params["g"], descended(g, mean), atol=1e-5)


def test_critics_start_unlike_each_other_and_answer_in_columns():
  learner = par_gan(NETWORKS, critics=3)
  state = start(learner)
  x, y = jnp.asarray(DATA.x), jax.nn.one_hot(DATA.y, CLASSES)
  scores = learner.predict(state, x, y=y)
  assert scores.shape == (len(DATA), 3)
  for k in range(3):
    d = {"params": take_row(state.params["d"], k)}
    expected = NETWORKS.critic.apply(d, x, y)
    np.testing.assert_allclose(scores[:, k], expected, rtol=1e-5)
  assert len(np.unique(scores[0])) == 3


def test_scores_without_a_condition_favour_no_class():
  learner = gan()
  state, x = start(learner), jnp.asarray(DATA.x)
  y = jnp.full((len(x), CLASSES), 1 / CLASSES)
  np.testing.assert_array_equal(
    learner.predict(state, x), learner.predict(state, x, y=y)
  )


@pytest.mark.slow
def test_padding_changes_nothing():
  learner = gan()
  one, other = (step(learner, start(learner), rows_of(3, n)) for n in (0, 2))
  assert same(one, other, atol=1e-6)


@pytest.mark.slow
def test_statistics_follow_the_fakes_of_critic_and_generator_steps_without_padding():
  learner = wgan_gp(PICTURE_NETWORKS, SGD, critic_steps=1)
  state = start(learner, PICTURES)
  batch = gather(device(PICTURES), ROWS, CLASSES)
  z = latents(own_ctx(CTX).key, batch.index, learner.latent)
  stats = state.stats
  for _ in range(2):  # the same latents, before the generator's step
    _, stats = PICTURE_NETWORKS.generator.apply(
      *({"params": state.params["g"], **stats}, z[:3], batch.y[:3]),
      train=True,
      mutable=["batch_stats"],
    )
  after, _ = step(learner, state, data=PICTURES)
  assert same(after.stats, stats, atol=1e-5)
  assert not same(after.stats, state.stats, atol=1e-3)


def test_critics_draw_apart():
  keys = row_keys(CTX.key, jnp.arange(2))
  one, other = (latents(key, jnp.arange(3), 4) for key in keys)
  assert not np.allclose(one, other)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"penalty": -1.0}, "penalty is -1.0; pass a number of at least 0"),
    ({"critic_steps": 0}, "critic_steps is 0; pass an integer of at least 1"),
    ({"critics": 0}, "critics is 0; pass an integer of at least 1"),
    ({"generator_steps": "last"}, "'after', 'first'"),
    ({"generator_against": "first"}, "'all', 'last'"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    wgan_gp(NETWORKS, **options)


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ("dropout(0.5)", "sets fields of a classifier"),
    ("selena", "learns from classifiers trained before"),
    ("early_stopping(3)", "reads a classifier's outputs after each epoch"),
    ("confidence_masking", "changes a classifier's released outputs"),
    ("ema", "releases other weights than those trained"),
    ("label_smoothing|focal_loss", "acts on a classifier's loss"),
    ("relaxloss", "acts on a classifier's loss"),
    ("adversarial_regularization", "acts on a classifier's loss"),
  ],
)
def test_what_a_gan_has_no_place_for_is_refused_by_name(text, why):
  name = text.partition("|")[2] or text.partition("(")[0]
  with pytest.raises(ValueError, match=why) as raised:
    wgan_gp(NETWORKS, defense=mixdef.parse(text))
  assert f"wgan_gp does not support {name}" in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("hook", ["rows", "log_probs", "finish", "release_params"])
def test_hooks_of_a_classifier_are_refused(hook):
  part = Defense("mine", **{hook: lambda *_: None})
  with pytest.raises(ValueError, match="wgan_gp does not support mine"):
    wgan_gp(NETWORKS, defense=part)


@pytest.mark.parametrize(
  ("networks", "message"),
  [
    (table_networks(FEATURES, 3), "expect 3 classes, but the data have 2"),
    (table_networks(4, CLASSES), r"shape \(4,\), but the data have \(6,\)"),
  ],
)
def test_networks_of_other_sizes_are_refused(networks, message):
  with pytest.raises(ValueError, match=message):
    start(wgan_gp(networks))


@pytest.mark.slow
def test_a_critic_that_compares_records_is_refused():
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, y):
      return nn.BatchNorm(use_running_average=False)(nn.Dense(1)(x))[:, 0]

  with pytest.raises(ValueError, match="a record's score would depend on others"):
    start(wgan_gp(NETWORKS._replace(critic=Normed())))


@pytest.mark.slow
def test_the_optimizer_keeps_a_state_for_each_network():
  learner = par_gan(NETWORKS, optax.adam(1e-3), critics=2)
  counts = [state[0].count for state in start(learner).opt.values()]
  assert [count.shape for count in counts] == [(), (2,)]
