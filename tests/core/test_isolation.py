"""A guarantee holds whatever parts and networks are composed: measured, or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from sensitivity import CLIP, SPEC, B, K, sensitivity

from mixdef.core.chaining import chain, from_optax
from mixdef.core.hooks import Ctx, Data, Defense, weighted_mean
from mixdef.core.traits import Traits
from mixdef.defenses import (
  ccl,
  confidence_masking,
  disturb_label,
  dp_sgd,
  early_stopping,
  ema,
  gaussian_noise,
  hamp_output,
  label_smoothing,
  mixup,
  weight_decay,
)
from mixdef.learners import wgan_gp
from mixdef.learners.classifier import classifier
from mixdef.models import Networks

TOLERANCE = 1e-3


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.Dense(8)(x)))


class Centred(nn.Module):
  """Batch normalisation that keeps no statistics."""

  @nn.compact
  def __call__(self, x):
    h = nn.Dense(8)(x)
    return nn.Dense(K)(h - h.mean(0))


class AttentionOverBatch(nn.Module):
  @nn.compact
  def __call__(self, x):
    h = nn.Dense(8)(x)
    return nn.Dense(K)(h + 3 * nn.softmax(h @ h.T) @ h)


class LargestOfBatch(nn.Module):
  @nn.compact
  def __call__(self, x):
    h = nn.Dense(8)(x)
    return nn.Dense(K)(h * (h >= h.max(0)))


class MixingLeaf(nn.Module):
  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 8))
    return 50 * jnp.roll(x, 1, 0) @ kernel + x.sum(0) @ kernel


class Mixing(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(MixingLeaf()(x)))


class Capacity(nn.Module):
  """Two experts, each of which takes the first two rows that choose it."""

  @nn.compact
  def __call__(self, x):
    chosen = nn.Dense(2)(x)
    first = jax.nn.one_hot(chosen.argmax(-1), 2)
    taken = first * (jnp.cumsum(first, 0) <= 2)
    experts = jnp.stack([nn.Dense(8)(x), nn.Dense(8)(x)], 1)
    return nn.Dense(K)((experts * (taken * chosen)[..., None]).sum(1))


class Dropped(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    h = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))
    return nn.Dense(K)(h)


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.RNN(nn.OptimizedLSTMCell(4))(x[..., None])[:, -1])


def learner_of(*parts, model=None):
  return classifier(model or Net(), optax.sgd(1.0), chain(*parts))


def init(learner):
  return jax.jit(lambda: learner.init(jax.random.key(0), SPEC))()


@pytest.mark.slow
@pytest.mark.parametrize(
  "model",
  [Centred, AttentionOverBatch, LargestOfBatch, Mixing, Capacity, Dropped, Recurrent],
  ids=lambda model: model.__name__,
)
def test_a_network_that_mixes_rows_is_given_one_record_at_a_time(model):
  learner = learner_of(dp_sgd(0, CLIP), model=model())
  assert sensitivity(learner) <= 1 + TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"estimator": "microbatch"}, {"multiplicity": 2}])
def test_other_estimates_bound_a_network_that_mixes_rows(options):
  learner = learner_of(
    gaussian_noise(0.5, clip=False), dp_sgd(0, CLIP, **options), model=Centred()
  )
  assert sensitivity(learner) <= 1 + TOLERANCE


@pytest.mark.slow
def test_a_recurrent_layer_is_clipped_without_microbatches(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  assert (
    0.5 < sensitivity(learner_of(dp_sgd(0, CLIP), model=Recurrent())) <= 1 + TOLERANCE
  )
  assert said == []


def mean_loss(losses, batch):
  return weighted_mean(losses, batch.weight)


def part(name="mine", **hooks):
  return Defense(name, text=name, **hooks)


def rows_of(batch, rows):
  return jax.tree.map(lambda leaf: leaf[rows], batch)


COUPLING = {
  "weights times ten": part(
    batch=lambda b, s, c: b._replace(weight=10 * b.weight),
  ),
  "weights that sum to one": part(
    batch=lambda b, s, c: b._replace(weight=b.weight / b.weight.sum())
  ),
  "negative weights": part(batch=lambda b, s, c: b._replace(weight=-b.weight)),
  "weights of NaN": part(batch=lambda b, s, c: b._replace(weight=jnp.nan * b.weight)),
  "weights of one for padding": part(
    batch=lambda b, s, c: b._replace(weight=jnp.ones_like(b.weight)),
  ),
  "every row twice": part(
    batch=lambda b, s, c: jax.tree.map(lambda a: jnp.concatenate([a, a]), b)
  ),
  "half of the rows": part(batch=lambda b, s, c: rows_of(b, slice(None, None, 2))),
  "the first row everywhere": part(
    batch=lambda b, s, c: rows_of(b, jnp.zeros(b.weight.shape, int))
  ),
  "rows in other places": part(batch=lambda b, s, c: rows_of(b, jnp.s_[::-1])),
  "mixing without a trait": part(batch=lambda b, s, c: b._replace(x=b.x + b.x[::-1])),
  "sorted by content": part(batch=lambda b, s, c: b._replace(x=jnp.sort(b.x, 0))),
  "labels of the majority": part(
    batch=lambda b, s, c: b._replace(
      y=jnp.broadcast_to(jax.nn.one_hot(b.y.sum(0).argmax(), K), b.y.shape)
    )
  ),
  "mixup without its traits": mixup()._replace(traits=Traits()),
  "a batch of noise drawn at once": part(
    batch=lambda b, s, c: b._replace(x=b.x + jax.random.normal(c.key, b.x.shape))
  ),
  "centred answers": part(log_probs=lambda lp, s, c: lp - lp.mean(0)),
  "a gate on the mean loss": part(
    loss=lambda l, s, c: jnp.where(mean_loss(l, c.batch) > 2, 5 * l, l)
  ),
  "a gate on the weights": part(
    loss=lambda l, s, c: jnp.where(c.batch.weight.sum() > 2, 5 * l, l)
  ),
  "a gate in the last epoch": part(
    loss=lambda l, s, c: jnp.where(c.epoch == c.epochs - 1, l - l.max(), l)
  ),
  "losses by rank": part(loss=lambda l, s, c: l * jnp.argsort(jnp.argsort(l))),
  "the sum of the losses": part(loss=lambda l, s, c: l.sum()),
  "a number for a loss": part(loss=lambda l, s, c: 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", COUPLING)
def test_a_part_that_couples_rows_is_refused_at_init(fault):
  defense = chain(COUPLING[fault], dp_sgd(0, CLIP))
  with pytest.raises(ValueError, match=r"mine|mixup") as caught:
    defense.init(jax.random.key(0), SPEC)
  assert "guarantee=False" in str(caught.value)
  assert "\n" not in str(caught.value)


# The check has batches of another size, so that these hide from it.
HIDDEN = {
  "rows of one batch size turned round": part(
    batch=lambda b, s, c: rows_of(b, jnp.s_[::-1]) if len(b.weight) == B else b
  ),
  "losses of one batch size added up": part(
    loss=lambda l, s, c: l + 5 * l.sum() if len(l) == B else l
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fault", "estimator"), [*zip(HIDDEN, ("microbatch", "ghost"), strict=True)]
)
def test_a_part_that_hides_from_the_check_still_sees_one_row_at_a_time(
  fault, estimator
):
  learner = learner_of(HIDDEN[fault], dp_sgd(0, CLIP, estimator=estimator))
  assert 0.5 < sensitivity(learner) <= 1 + TOLERANCE


def test_the_measure_finds_a_part_that_raises_a_records_share():
  """Without a guarantee nothing is isolated, and the measure sees it."""
  times_ten = COUPLING["weights times ten"]
  learner = learner_of(times_ten, dp_sgd(0, CLIP, guarantee=False))
  assert sensitivity(learner, scales=(1.0,)) == pytest.approx(10, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
  "parts",
  [
    (gaussian_noise(0.5, clip=False), label_smoothing(), ccl()),
    (disturb_label(0.5), weight_decay()),
  ],
)
@pytest.mark.parametrize("multiplicity", [1, 3])
def test_parts_that_act_row_by_row_are_admitted_and_bounded(parts, multiplicity):
  learner = learner_of(*parts, dp_sgd(0, CLIP, multiplicity=multiplicity))
  # A decay of the weights moves every step alike.
  assert 0.9 < sensitivity(learner) <= 1 + TOLERANCE


# Hooks that could be shown the members.


def keeps_members(hook, **more):
  """Keep the members and tell them in the answers."""

  def look(state, ctx):
    del state
    return ctx.members.astype(jnp.float32) + ctx.data.x.sum() + ctx.data.y.sum()

  def answer(log_probs, state, ctx):
    del ctx
    return log_probs + state.sum()

  def start(key, spec):
    del key
    return jnp.zeros(spec.num_records)

  return part(init=start, release_output=answer, **{hook: look}, **more)


@pytest.mark.parametrize(
  "one",
  [
    keeps_members("finish"),
    keeps_members("epoch"),
    part(update=lambda state, ctx: state),
    part(rows=lambda key, members, reference: members),
  ],
  ids=["finish", "epoch", "update", "rows"],
)
def test_hooks_that_are_shown_members_are_refused(one):
  with pytest.raises(ValueError, match=r"mine .* give up epsilon with dp_sgd\("):
    chain(one, dp_sgd())
  chain(one, dp_sgd(guarantee=False))


DATA = Data(jnp.ones((B, 5)), jnp.arange(B) % K, jnp.array([False, False, False, True]))


@pytest.mark.parametrize("first", [True, False])
def test_a_part_that_claims_to_give_up_epsilon_does_not_hide_another(first):
  """The part that states epsilon decides what may stand beside it."""
  other = Defense("other", traits=Traits(per_example=True, no_guarantee=True))
  spy = Defense("spy", epoch=lambda state, ctx: ctx.members)
  for bad in (mixup(), spy, Defense("some", rows=lambda key, members, own: members)):
    parts = [other, bad, dp_sgd()] if first else [dp_sgd(), bad, other]
    with pytest.raises(ValueError, match=f"{bad.name}.*(dp_sgd|members)"):
      chain(*parts)


def test_only_the_part_that_clips_draws_persons():
  other = Defense("other", traits=Traits(per_person=4))
  for clipped in (dp_sgd(), dp_sgd(unit="person", per_person=2)):
    with pytest.raises(ValueError, match="other draws 4 rows of a person"):
      chain(clipped, other)


def test_only_the_part_that_clips_draws_by_turns():
  other = Defense("other", traits=Traits(bands=3))
  for clipped in (dp_sgd(), dp_sgd(bands=2)):
    with pytest.raises(ValueError, match="other draws 3 groups of the members in turn"):
      chain(clipped, other)


@pytest.mark.parametrize("hook", ["epoch", "finish"])
def test_what_is_declared_post_processing_is_not_shown_the_members(hook):
  keeper = keeps_members(hook, traits=Traits(post_processing=True))
  learner = learner_of(keeper, dp_sgd(0, CLIP))
  members = jnp.array([True, False, True, False])
  ctx = Ctx(jax.random.key(0), 0, 0, 1, 1, B)
  told = []
  for marked in (members, ~members & ~DATA.auxiliary):
    x = DATA.x.at[:3].set(jnp.arange(3.0)[:, None] * marked[:3, None])
    state = getattr(learner, hook)(init(learner), DATA._replace(x=x), marked, ctx)
    told.append(np.asarray(state.defense["mine"]))
  np.testing.assert_array_equal(*told)
  reference = float(DATA.x[3].sum() + DATA.y[3])
  np.testing.assert_array_equal(told[0], reference)  # their own records it may read


def test_an_update_that_reads_losses_behind_a_promise_is_refused():
  def count(state, ctx):
    return state + ctx.losses.sum()

  liar = part(
    init=lambda key, spec: jnp.float32(0),
    update=count,
    traits=Traits(post_processing=True),
  )
  learner = learner_of(liar, dp_sgd(0, CLIP))
  with pytest.raises(ValueError, match="mine is declared post_processing, so its"):
    sensitivity(learner)


def test_the_first_record_is_not_handed_to_a_part():
  peeker = part(init=lambda key, spec: spec.example)
  learner = learner_of(peeker, dp_sgd(0, CLIP))
  spec = SPEC._replace(example=jnp.full((1, 5), 7.0))
  assert not learner.init(jax.random.key(0), spec).defense["mine"].any()


def test_parts_after_the_noise_need_no_members():
  for one in (ema(), early_stopping(2), early_stopping(patience=2), hamp_output(8)):
    assert one.traits.post_processing
    chain(one, dp_sgd())
  chain(confidence_masking(), weight_decay(), dp_sgd())


def test_a_traced_hyper_parameter_of_a_part_is_no_obstacle():
  def started(scale):
    scaled = part(loss=lambda l, s, c: scale * l)
    return learner_of(scaled, dp_sgd(0, CLIP)).init(jax.random.key(0), SPEC).params

  params = jax.jit(jax.vmap(started))(jnp.arange(1.0, 3.0))
  assert all(len(leaf) == 2 for leaf in jax.tree.leaves(params))


def test_an_optax_transform_of_records_is_checked_alike():
  theirs = from_optax("theirs", optax.identity(), per_example=True)
  with pytest.raises(ValueError, match="mine increases the weight"):
    init(learner_of(COUPLING["weights times ten"], theirs))


class MixingGenerator(nn.Module):
  @nn.compact
  def __call__(self, z, y, *, train=False, weight=None):
    h = nn.Dense(8)(jnp.concatenate([z, y], -1))
    return nn.sigmoid(nn.Dense(5)(5 * (h - h.mean(0))))


class MixingCritic(nn.Module):
  @nn.compact
  def __call__(self, x, y):
    h = nn.Dense(8)(jnp.concatenate([x, y], -1))
    return nn.Dense(1)(nn.tanh(h + 5 * (h - h.mean(0))))[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["microbatch", "ghost"])
def test_networks_of_a_gan_that_mix_rows_are_given_one_record_at_a_time(estimator):
  networks = Networks(MixingGenerator(), MixingCritic(), 2, K, (5,))
  learner = wgan_gp(
    networks, optax.sgd(1.0), dp_sgd(0, CLIP, estimator=estimator), critic_steps=9
  )
  moved = sensitivity(learner, lambda state: state.params["d"], scales=(1.0,))
  assert 0.5 < moved <= 1 + TOLERANCE
