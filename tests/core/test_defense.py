"""The laws of `chain`, `from_optax`, `@defense` and the helpers beside them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import (
  DATA,
  KEEP,
  SPEC,
  K,
  Loop,
  assert_same,
  ctx_at,
  in_epoch,
  init,
  learner_of,
  make_batch,
  rows_at,
)

from mixdef.core.chaining import chain, from_optax
from mixdef.core.hooks import Ctx, Defense, Stage, defense, take, weighted_mean
from mixdef.core.randomness import fold_in_name, hash_rows, row_keys
from mixdef.core.traits import Traits
from mixdef.defenses import (
  adamixup,
  distillation,
  dmp,
  dp_sgd,
  dropout,
  early_stopping,
  ema,
  l1,
  label_smoothing,
  mixup,
  mmd,
  relaxloss,
  selena,
  weight_decay,
  weighted_smoothing,
)

STACK = (mixup(), weighted_smoothing(), weight_decay(), ema(), dropout())


def trained(*defenses):
  return Loop(*defenses).train()


def test_chain_is_associative_exactly():
  a, b, *rest = STACK
  flat = trained(*STACK)
  assert_same(trained(chain(a, b), chain(*rest)), flat)
  assert_same(trained(a, chain(b, chain(*rest))), flat)


def test_empty_chain_is_the_identity_exactly():
  assert_same(trained(chain(), *STACK, chain()), trained(*STACK))
  assert chain().parts == ()
  assert str(chain()) == "none"


@pytest.mark.slow
def test_pitfall_87_adding_a_part_changes_no_other_stream():
  bare, more = trained(*STACK), trained(*STACK, label_smoothing(0.0))
  assert_same(more.params, bare.params)
  for name, state in bare.defense.items():
    assert_same(more.defense[name], state)
  batch, states = make_batch(), {part.name: () for part in (*STACK, l1())}
  alone = chain(mixup()).batch(batch, states, in_epoch(0))
  among = chain(l1(), mixup(), label_smoothing(0.0)).batch(
    batch, {**states, "label_smoothing": ()}, in_epoch(0)
  )
  assert_same(alone, among)


@pytest.mark.slow
def test_pitfall_87_a_stack_built_twice_is_the_same():
  def stack():
    return mixup(), weighted_smoothing(), dropout()

  assert_same(Loop(*stack()).train(), Loop(*stack()).train())


def test_pitfall_84_a_factory_carries_nothing_from_run_to_run():
  loop = Loop(*STACK)
  assert_same(loop.train(), loop.train())


def test_pitfall_69_the_optimizer_survives_the_end_of_an_epoch():
  loop = Loop(early_stopping(20), optimizer=optax.sgd(0.1, momentum=0.9))
  state = loop.train(steps=4)
  ended = loop.learner.epoch(state, DATA, KEEP, ctx_at(9))
  assert_same(ended.opt, state.opt)
  assert_same(ended.params, state.params)
  momentum = jax.tree.leaves(ended.opt)
  assert max(np.abs(leaf).max() for leaf in momentum) > 1e-3


def test_a_clip_that_never_acts_equals_no_defense():
  clip = from_optax("clip", optax.clip_by_global_norm(1e9))
  assert_same(trained(clip).params, trained().params, 1e-6)


def test_an_optax_transform_keeps_its_state_per_model():
  counter = from_optax("counter", optax.scale_by_schedule(lambda step: 1.0))
  assert int(trained(counter).defense["counter"].count) == 4


@pytest.mark.slow
def test_pitfall_88_vmapped_models_draw_different_optax_noise():
  noise = from_optax("noise", lambda key: optax.add_noise(0.1, 0.5, key))
  loop = Loop(noise)
  states = jax.vmap(lambda key: loop.learner.init(key, SPEC))(
    jax.random.split(jax.random.key(0), 3)
  )
  same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), states.params)
  out, _ = loop.mapped(states._replace(params=same), DATA, rows_at(6), ctx_at(6))
  kernels = np.asarray(out.params["Dense_0"]["kernel"])
  for a, b in itertools.combinations(kernels, 2):
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.slow
def test_per_example_transforms_see_each_records_gradient():
  """An aggregate that neither clips nor adds noise is the sum over all rows by B."""
  aggregate = from_optax(
    "aggregate",
    lambda key: optax.contrib.differentially_private_aggregate(
      l2_norm_clip=1e9, noise_multiplier=0.0, key=key
    ),
    per_example=True,
  )
  start = init(learner_of())
  plain, summed = (Loop(part).train(steps=1).params for part in (chain(), aggregate))
  steps = [jax.tree.map(jnp.subtract, end, start.params) for end in (plain, summed)]
  members, rows = 4, 6
  assert_same(steps[1], jax.tree.map(lambda s: s * members / rows, steps[0]), 1e-6)


@pytest.mark.slow
def test_a_hyper_parameter_may_be_mapped_over_models():
  def train(epsilon, alpha):
    learner = learner_of(label_smoothing(epsilon), relaxloss(alpha))
    state = init(learner)
    for i in range(2):
      state, _ = learner.step(state, DATA, rows_at(i), ctx_at(i))
    return state.params

  values = jnp.array([0.0, 0.3]), jnp.array([0.2, 2.0])
  together = jax.jit(jax.vmap(train))(*values)
  for i, one in enumerate(zip(*values, strict=True)):
    assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), train(*one), 1e-5)


def test_batch_hooks_run_table_augment_mix_label_whatever_the_order_given():
  def part(name, order=None):
    def batch(batch, state, ctx):
      return (*batch, name)

    return Defense(name, batch=batch, traits=Traits(order=order))

  parts = [part("d", "label"), part("c", "mix"), part("b"), part("a", "table")]
  ran = chain(*parts).batch((), {p.name: () for p in parts}, in_epoch(0))
  assert ran == ("a", "b", "c", "d")


def test_the_estimators_own_grads_hook_runs_first():
  def note(name):
    return lambda grads, state, ctx: ((*grads, name), state)

  parts = (
    Defense("late", grads=note("late")),
    Defense("own", grads=note("own"), value_and_grad=lambda losses_fn: None),
  )
  assert chain(*parts).grads((), {"late": 0, "own": 0}, in_epoch(0))[0] == (
    "own",
    "late",
  )


def test_parts_write_their_own_state_only():
  def update(state, ctx):
    return state + 1

  parts = [Defense(name, update=update) for name in "ab"] + [Defense("c")]
  state = {"a": 0, "b": 10, "c": 20}
  assert chain(*parts).update(state, in_epoch(0)) == {"a": 1, "b": 11, "c": 20}


def test_parts_draw_from_streams_of_their_own():
  def batch(batch, state, ctx):
    return (*batch, jax.random.normal(ctx.key))

  parts = [Defense(name, batch=batch) for name in "abc"]
  draws = chain(*parts).batch((), dict.fromkeys("abc", ()), in_epoch(0))
  assert len({float(d) for d in draws}) == 3


def test_weakly_typed_states_are_made_strong():
  part = Defense("p", init=lambda key, spec: {"a": jnp.asarray(1.0), "b": 2, "k": key})
  state = chain(part).init(jax.random.key(0), None)["p"]
  assert not state["a"].aval.weak_type
  assert state["b"].dtype == jnp.int32
  assert jnp.issubdtype(state["k"].dtype, jax.dtypes.prng_key)


STAGE = Stage(rows=None, table=None)
REFUSED = [
  ((mixup(), mixup()), r"two parts of the chain are called 'mixup'"),
  ((mixup(), adamixup()), "one of the mixers, not mixup and adamixup"),
  ((dp_sgd(), weighted_smoothing(position="gradient")), "gradient estimators"),
  ((distillation(), Defense("s", stages=(STAGE,))), "one of the staged parts"),
  (
    (Defense("a", rows=lambda *_: KEEP), Defense("b", rows=lambda *_: KEEP)),
    "parts that select the training rows",
  ),
  ((ema(), early_stopping()), "parts that replace the released weights"),
  ((dropout(), dropout(name="again")), "two parts set the field 'dropout'"),
  ((dp_sgd(), relaxloss()), "relaxloss makes the loss of a record depend on the whole"),
  ((dp_sgd(guarantee=False), relaxloss()), "drop one of them"),
  ((dmp(), mmd()), "trains on the auxiliary records, so mmd cannot use them"),
  ((dp_sgd(), mixup()), r"give up epsilon with dp_sgd\(..., guarantee=False\)"),
  ((adamixup(), dp_sgd()), "guarantee=False"),
  ((weighted_smoothing(), dp_sgd()), "guarantee=False"),
  (
    (dp_sgd(), weighted_smoothing(norm="none")),
    "the epoch hook of weighted_smoothing has access to the members",
  ),
]


@pytest.mark.parametrize(("parts", "reason"), REFUSED)
def test_pitfall_93_parts_that_do_not_combine_are_refused(parts, reason):
  with pytest.raises(ValueError, match=reason):
    chain(*parts)


@pytest.mark.parametrize(
  "parts",
  [
    (dp_sgd(guarantee=False), mixup()),
    (dp_sgd(), weight_decay(), ema(), label_smoothing()),
    (dp_sgd(guarantee=False), weighted_smoothing(norm="none")),
    (label_smoothing(), label_smoothing(0.2, name="again")),
  ],
)
def test_parts_that_combine_do(parts):
  assert [part.name for part in chain(*parts).parts] == [part.name for part in parts]


def test_a_part_held_twice_acts_twice():
  twice = chain(label_smoothing(0.5), label_smoothing(0.5, name="again"))
  y = twice.batch(make_batch(), {"label_smoothing": (), "again": ()}, in_epoch(0)).y
  np.testing.assert_allclose(y[0, 0], 0.25 + 0.75 / K, rtol=1e-6)


def test_the_text_of_a_factory_drops_defaults_and_marks_what_it_cannot_write():
  @defense
  def example(a=1, *, b="x", c=None):
    return Defense("")

  assert str(example()) == str(example(1, b="x")) == "example"
  assert str(example(1.0, c=(1, 2))) == "example(a=1.0, c=(1, 2))"
  assert str(example(True, name="e")) == "example(a=True, name='e')"
  assert example().traits == Traits()
  assert example(c=jnp.zeros(2)).traits == Traits(opaque=True)
  with pytest.raises(TypeError, match="unexpected keyword argument 'd'"):
    example(d=1)


def test_progress_is_the_share_of_epochs_that_are_over():
  assert [float(in_epoch(e, 4).progress) for e in range(4)] == [0, 0.25, 0.5, 0.75]
  assert Ctx(None, 0, 1, 4, 1, 1).progress == 0.25


def test_take_mixes_tables_of_any_rank():
  batch = make_batch(3)._replace(
    partner=jnp.array([2, 1, 0]), lam=jnp.array([0.25, 1.0, 0.5])
  )
  flat = jnp.array([1.0, 2.0, 3.0, 9.0])
  np.testing.assert_allclose(take(flat, batch), [2.5, 2.0, 2.0])
  deep = jnp.stack([flat, -flat], -1)
  np.testing.assert_allclose(take(deep, batch)[:, 1], [-2.5, -2.0, -2.0])


def test_row_keys_depend_on_the_row_alone():
  keys = row_keys(jax.random.key(0), jnp.array([4, 1, 4]))
  draws = jax.vmap(jax.random.normal)(keys)
  assert draws[0] == draws[2] != draws[1]


def test_hash_rows_follows_the_content():
  x = jnp.array(np.random.default_rng(0).random((50, 6)), jnp.float32)
  hashes = hash_rows(x)
  assert len(np.unique(hashes)) == 50
  np.testing.assert_array_equal(hash_rows(x[::-1])[::-1], hashes)
  np.testing.assert_array_equal(hash_rows(x.reshape(50, 2, 3)), hashes)
  assert (hash_rows(x[:, ::-1]) != hashes).all()


def test_streams_are_named_not_numbered():
  key = jax.random.key(0)
  a, b, ab = (
    jax.random.key_data(fold_in_name(key, *names)).tolist()
    for names in (["a"], ["b"], ["a", "b"])
  )
  assert len({tuple(a), tuple(b), tuple(ab)}) == 3


def test_weighted_mean_of_no_rows_is_zero():
  assert weighted_mean(jnp.array([3.0, 4.0]), jnp.zeros(2)) == 0
  assert weighted_mean(jnp.array([3.0, 4.0]), jnp.array([0.0, 1.0])) == 4


def test_hashes_of_binary_rows_do_not_collide():
  bits = np.random.default_rng(0).random((5000, 60)) < 0.2
  rows = np.unique(bits.astype(np.float32), axis=0)
  assert len(np.unique(hash_rows(jnp.asarray(rows)))) == len(rows)


def test_hashes_ignore_the_sign_of_zero():
  rows = jnp.array([[0.0, 1.0], [-0.0, 1.0]])
  one, other = jax.jit(hash_rows)(rows)
  assert one == other


def test_a_part_cannot_be_called_chain():
  with pytest.raises(ValueError, match="cannot be called 'chain'"):
    chain(l1(name="chain"))


@pytest.mark.slow
def test_stages_that_do_not_compose_with_dp_are_refused():
  for part in (selena(), dmp()):
    with pytest.raises(ValueError, match=r"earlier stages|a record influence"):
      chain(part, dp_sgd())
  chain(distillation(), dp_sgd(guarantee=False))
  with pytest.raises(ValueError, match="without bands only: drop bands"):
    chain(distillation(), dp_sgd(bands=4))
