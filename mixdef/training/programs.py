"""The compiled programs of a training, one set per learner, plan and strategy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixdef.core.learner import Learner
from mixdef.core.platform import traced_for
from mixdef.core.randomness import fold_in_name
from mixdef.core.streamed import Withheld
from mixdef.training.devices import compiled, on_one_device
from mixdef.training.sampling import Plan, chunk_of, epoch_rows, turns_of
from mixdef.training.workers import in_workers

STRATEGIES = ("vmap", "scan", "loop", "processes")


class Programs(NamedTuple):
  """Compiled functions over S models; `values` [S] are hyper-parameters per model.

  ```
  init    (keys, tables, values, data) -> states
  deal    (states, values, rows [S,N], data, persons, epoch)
          -> (dealt, metrics of no steps): the `Rows` [S,steps,B] of all steps, with the
          overflow [S,steps] of their capacity
  train   (states, values, dealt, metrics, data, epoch, first, last)
          -> (states, metrics {name: [S]} plus those of the steps first..last-1)
  epoch   (states, values, members [S,N], data, epoch) -> states
  finish  (states, values, members [S,N], data) -> states
  predict (states, values, x [B,...]) -> log-probabilities [S,B,K]
  raw     the same without the output hooks
  ```

  If the records are streamed, `data.x` holds a single one as an example, and in `train`
  the `Block` of the steps first..last-1. Rows are dealt by a program of their own, so
  that the steps are compiled in the same way for all records and for blocks of them.
  """

  init: Any  # compiled functions, which can also be lowered
  deal: Any
  train: Any
  epoch: Any
  finish: Any
  predict: Any
  raw: Callable


def over_models(function: Callable, strategy: str, *, shared: int) -> Any:
  """Map a function of one model over the leading axis of all but `shared` arguments.

  `vmap` runs the models side by side in one program, and `scan` one after another in
  one program, both on every device of this process. `loop` runs them one after another
  from Python, on one device. `processes` runs one per CPU core, in worker processes.
  The last `shared` arguments are the same for all models.
  """
  if strategy == "processes":
    traced = over_models(function, "vmap", shared=shared)
    return in_workers(function, shared=shared, traced=traced)
  if strategy == "vmap":

    def side_by_side(*args):
      axes = (0,) * (len(args) - shared) + (None,) * shared
      return jax.vmap(function, in_axes=axes)(*args)

    return compiled(side_by_side, shared=shared)
  if strategy == "scan":

    def in_turn(*args):
      own, rest = args[:-shared], args[-shared:]
      return jax.lax.map(lambda one: function(*one, *rest), own)

    return compiled(in_turn, shared=shared)
  one_model = jax.jit(function)

  def loop(*args):
    own, rest = on_one_device((args[:-shared], args[-shared:]))
    count = jax.tree.leaves(own)[0].shape[0]
    return _stacked([one_model(*_taken(own, i), *rest) for i in range(count)])

  return loop


@jax.jit  # one program, not one per leaf shape
def _taken(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


@jax.jit
def _stacked(trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.lru_cache(maxsize=32)
def of_one(source: Learner | Callable, plan: Plan) -> Programs:
  """Build the functions of one model, without the axis S, which are not compiled yet.

  Args:
    source: a learner, or `(**values) -> Learner`, called inside the trace.
    plan: the static sizes.
  """
  steps = plan.steps_per_epoch

  def learner_of(values):
    return source if isinstance(source, Learner) else source(**values)

  def ctx(state, name, count, *, step, epoch):
    key = jax.random.fold_in(fold_in_name(state.key, name), count)
    return plan.position(key, step, epoch)

  def init(key, table, values, data):
    return learner_of(values).init(key, plan.spec(data, table))

  def stepper(values, data, epoch, deal):
    """Return `(state, step) -> (state, metrics)`, given the rows of each step."""
    learner = learner_of(values)

    def one_step(state, i):
      batch, overflow = deal(i)
      step = epoch * steps + i
      where = ctx(state, "step", step, step=step, epoch=epoch)
      state, metrics = learner.step(state, data, batch, where)
      return state, {**metrics, "overflow": overflow.astype(jnp.float32)}

    return one_step

  def deal(state, values, rows, data, persons, epoch):
    key = jax.random.fold_in(fold_in_name(state.key, "order"), epoch)
    chunk = chunk_of(state.key, rows, plan.num_shards) if plan.num_shards > 1 else None
    turns = None
    if plan.bands > 1:
      count = plan.num_records if persons is None else len(persons.first)
      turns = turns_of(state.key, count, plan, epoch)
    draw = epoch_rows(key, rows, data.auxiliary, plan, chunk, persons, turns)
    one_step = stepper(values, data, epoch, draw)
    shapes = jax.eval_shape(one_step, state, jnp.int32(0))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.map(draw, jnp.arange(steps)), zeros

  def train(state, values, dealt, metrics, data, epoch, first, last):
    def known(i):
      return jax.tree.map(lambda leaf: leaf[i], dealt)

    one_step = stepper(values, data, epoch, known)

    def body(i, carry):
      state, metrics = one_step(carry[0], i)
      return state, jax.tree.map(jnp.add, carry[1], metrics)

    return jax.lax.fori_loop(first, last, body, (state, metrics))

  def all_records(data):
    """Withhold the records if there is only an example of them."""
    if len(data.x) == plan.num_records:
      return data
    shape = plan.num_records, *data.x.shape[1:]
    return data._replace(x=Withheld(shape, data.x.dtype))

  def epoch_end(state, values, members, data, epoch):
    learner = learner_of(values)
    if learner.epoch:
      end = ctx(state, "epoch", epoch, step=(epoch + 1) * steps, epoch=epoch)
      state = learner.epoch(state, all_records(data), members, end)
    return state

  def finish(state, values, members, data):
    learner = learner_of(values)
    if learner.finish:
      last = plan.epochs * steps
      end = ctx(state, "finish", last, step=last, epoch=plan.epochs)
      state = learner.finish(state, all_records(data), members, end)
    return state._replace(opt=())  # training is over: free its memory

  def predict(state, values, x, raw=False):
    return learner_of(values).predict(state, x, raw=raw)

  raw = functools.partial(predict, raw=True)
  functions = init, deal, train, epoch_end, finish, predict, raw
  return Programs(*(traced_for(plan.platform, function) for function in functions))


@functools.lru_cache(maxsize=32)
def programs(source: Learner | Callable, plan: Plan, strategy: str) -> Programs:
  """Build the programs of one training.

  Args:
    source: a learner, or `(**values) -> Learner`, called inside the trace.
    plan: the static sizes.
    strategy: one of `STRATEGIES`.
  """
  one, here = of_one(source, plan), _here(strategy)
  return Programs(
    init=over_models(one.init, here, shared=1),
    deal=over_models(one.deal, here, shared=3),
    train=over_models(one.train, strategy, shared=4),
    epoch=over_models(one.epoch, strategy, shared=2),
    finish=over_models(one.finish, strategy, shared=1),
    predict=over_models(one.predict, here, shared=1),
    raw=over_models(one.raw, here, shared=1),
  )


@functools.lru_cache(maxsize=32)
def query_program(
  source: Learner | Callable,
  platform: str,
  strategy: str,
  function: Callable,
  rows: int,
) -> Callable:
  """Build the program that evaluates a custom function of every model.

  Args:
    source: a learner, or `(**values) -> Learner`.
    platform: what the program is for, as in `Plan`.
    strategy: one of `STRATEGIES`.
    function: `(learner, state, *rows) -> [B,...]`.
    rows: number of arrays of rows that it accepts.

  Returns:
    `(states, values, *rows [B,...]) -> [S,B,...]`.
  """

  def run(state, values, *rows):
    learner = source if isinstance(source, Learner) else source(**values)
    return function(learner, state, *rows)

  return over_models(traced_for(platform, run), _here(strategy), shared=rows)


def _here(strategy):
  """Return a strategy without workers, for all but training.

  These are fast, may call into Python, and always run in this process.
  """
  return "loop" if strategy == "processes" else strategy
