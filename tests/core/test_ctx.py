"""What hooks are given: their arguments, and what `ctx` holds at each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import (
  DATA,
  KEEP,
  Loop,
  N,
  ctx_at,
  init,
  learner_of,
  make_batch,
  rows_at,
)

from mixdef.core.chaining import chain
from mixdef.core.hooks import Ctx, Defense
from mixdef.core.traits import Traits
from mixdef.defenses import dp_sgd, l1

POSITION = Ctx._fields[:6]


def known(ctx):
  """The names of what a hook finds in `ctx`."""
  return {name for name, value in ctx._asdict().items() if value is not None}


@pytest.mark.slow
def test_every_hook_finds_what_exists_at_its_point():
  found = {}

  def look(hook):
    def transform(value, state, ctx):
      found[hook] = known(ctx)
      assert (ctx.progress is None) == hook.startswith("release")
      return (value, state) if hook == "grads" else value

    def refresh(state, ctx):
      found[hook] = known(ctx)
      return state

    return refresh if hook in ("update", "epoch", "finish") else transform

  step = ("batch", "log_probs", "loss", "grads", "update")
  after = ("epoch", "finish")
  release = ("release_params", "release_output")
  part = Defense("mine", **{hook: look(hook) for hook in (*step, *after, *release)})
  learner = learner_of(part)
  state, _ = learner.step(init(learner), DATA, rows_at(0), ctx_at())
  state = learner.epoch(state, DATA, KEEP, ctx_at())
  state = learner.finish(state, DATA, KEEP, ctx_at())
  learner.predict(state, DATA.x)
  whole = {"variables", "predict", "data", "members"}
  assert found == {
    "batch": {*POSITION},
    "log_probs": {*POSITION, "batch"},
    "loss": {*POSITION, "batch", "log_probs"},
    "grads": {*POSITION, "variables"},
    "update": {*POSITION, "batch", "log_probs", "losses", "variables"},
    "epoch": {*POSITION, *whole},
    "finish": {*POSITION, *whole},
    "release_params": {"key"},
    "release_output": {"key", "queries"},
  }


@pytest.mark.parametrize(
  "options", [{}, {"estimator": "microbatch"}, {"multiplicity": 3}]
)
@pytest.mark.slow
def test_under_a_guarantee_log_probs_and_loss_find_one_record(options):
  found = []

  def look(value, state, ctx):
    del state
    assert known(ctx) <= {*POSITION, "batch", "log_probs"}
    rows = (ctx.batch, value if ctx.log_probs is None else ctx.log_probs)
    jax.debug.callback(lambda *rows: found.append(rows), *jax.tree.leaves(rows))
    return value

  part = Defense("mine", log_probs=look, loss=look)
  loop = Loop(part, dp_sgd(0.0, **options))
  state = init(loop.learner)
  jax.effects_barrier()
  found.clear()  # the check at `init` asks about several made-up rows at once
  jax.block_until_ready(loop.jitted(state, DATA, rows_at(0), ctx_at()))
  jax.effects_barrier()
  views = options.get("multiplicity", 1)
  assert {len(leaf) for leaves in found for leaf in leaves} == {views}
  records = [np.asarray(leaves[2]).tolist() for leaves in found]  # x, y, index, ...
  assert all(len(set(record)) == 1 for record in records)
  assert {record[0] for record in records} == {*rows_at(0).index.tolist()}


def test_under_a_guarantee_batch_finds_one_row_and_the_position_alone():
  found = []

  def look(batch, state, ctx):
    del state
    found.append((len(batch.weight), known(ctx)))
    return batch

  defense = chain(Defense("mine", batch=look), dp_sgd(0.0))
  batch = make_batch(N)
  ctx = ctx_at()._replace(batch=batch, losses=batch.weight)
  defense.batch(batch, {"mine": (), "dp_sgd": ()}, ctx)
  assert found == [(1, {*POSITION})]


@pytest.mark.slow
def test_under_a_guarantee_update_and_epoch_find_no_members():
  found = []

  def look(state, ctx):
    found.append(ctx)
    return state

  part = Defense("mine", update=look, epoch=look, traits=Traits(post_processing=True))
  learner = learner_of(part, dp_sgd(0.0))
  state, _ = learner.step(init(learner), DATA, rows_at(0), ctx_at())
  learner.epoch(state, DATA, KEEP, ctx_at())
  step, epoch = found
  assert known(step) == {*POSITION, "variables"}
  assert not epoch.members.any()
  assert not jnp.where(DATA.auxiliary, 0, epoch.data.y).any()
  assert not jnp.where(DATA.auxiliary[:, None], 0, epoch.data.x).any()


def test_a_hook_of_other_arguments_is_named_with_those_it_is_given():
  parts = {
    r"mine.batch must accept \(batch, state, ctx\), not \(batch\)": {
      "batch": lambda batch: batch
    },
    r"mine.update must accept \(state, ctx\), not \(state, ctx, losses\)": {
      "update": lambda state, ctx, losses: state
    },
    r"mine.value_and_grad must accept \(losses_fn\), not \(\)": {
      "value_and_grad": lambda: None
    },
  }
  for message, hooks in parts.items():
    with pytest.raises(ValueError, match=message):
      chain(Defense("mine", **hooks))


@pytest.mark.slow
def test_at_most_one_part_states_an_epsilon():
  def part(name, epsilon):
    stated = {"epsilon": epsilon, "delta": 0.1}
    return Defense(name, init=lambda key, spec: stated, guarantee=lambda state: state)

  state = {"a": {"epsilon": 2.0, "delta": 0.1}}
  assert chain(l1(), part("a", 2.0)).guarantee(state) == state["a"]
  assert chain(l1()).guarantee is None
  with pytest.raises(ValueError, match="one of the parts that account for epsilon"):
    chain(part("a", 2.0), part("b", 3.0))
