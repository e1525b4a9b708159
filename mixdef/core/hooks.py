"""Defenses as transforms: the nouns, `@defense`, and what hooks do with rows.

A `Defense` is a bundle of optional pure functions, each acting at one point of
training or release. `mixdef.chain` composes them; a learner calls the composed hooks.
The letters in shapes: B batch, K classes, N records, M models of a stage.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.registry import DEFENSES

Hook = Any  # a function, or None where nothing acts; typed by the tables below


class Ctx(NamedTuple):
  """Where training stands; only `key` differs per model.

  `batch_size` is the public one, whatever number of records a step happens to draw.
  """

  key: Any
  step: Any
  epoch: Any
  epochs: Any
  steps_per_epoch: Any = 1
  batch_size: Any = 1

  @property
  def progress(self):
    """Share of the epochs that are over, in [0, 1]; constant inside an epoch."""
    return self.epoch / self.epochs


class Rows(NamedTuple):
  """The rows of one step [B], dealt by the training loop.

  Weight 1 marks a member, reference 1 a record of the defender's own; both are 0 for
  padding.
  """

  index: Any
  weight: Any
  reference: Any


class Batch(NamedTuple):
  """One batch: x [B,...], y [B,K] on the simplex, and where each row comes from.

  A row is `lam * record[index] + (1 - lam) * record[partner]`; unmixed rows have
  partner = index and lam = 1. `view` int [B] says which of its record's views a row is,
  where records have several, side by side; None where each has one.
  """

  x: Any
  y: Any
  index: Any
  weight: Any
  reference: Any
  partner: Any
  lam: Any
  view: Any = None


class Data(NamedTuple):
  """Records on the device, shared by all models: x [N,...], y int [N].

  `reference` bool [N] marks the defender's own records: never members, never audited.
  """

  x: Any
  y: Any
  reference: Any


class Spec(NamedTuple):
  """What a state is initialised from; the integers are static.

  `example` is one record [1,...], or zeros where a guarantee is given, `variables` the
  model's (None until it has been initialised), `table` [N,K] the log-probabilities of
  the stage before (or None), `num_members` the public training-set size.
  """

  example: Any
  variables: Any
  table: Any
  num_records: int
  num_members: int
  num_classes: int
  batch_size: int
  steps_per_epoch: int
  epochs: int


class View(NamedTuple):
  """A whole-data look at the model, given to the `epoch` and `finish` hooks.

  `predict(x)` returns log-probabilities [.,K] in inference mode; in `finish` it uses
  the weights that will be released. `keep` bool [N] marks the rows trained on.
  """

  variables: Any
  predict: Callable
  x: Any
  y: Any
  keep: Any
  reference: Any


class Stage(NamedTuple):
  """M trainings that come before this one, on other rows.

  `rows(key, keep [N], reference [N]) -> bool [M,N]` says who trains on what;
  `table(key, log_probs [M,N,K], rows [M,N], keep [N]) -> [N,K]` condenses their outputs
  into `Spec.table`. `defense` None means the rest of the chain. `question(learner,
  state, x [B,...], y [B]) -> [B,...]` is what they are asked instead of
  log-probabilities, and `columns` how many the table then has instead of K.
  """

  rows: Callable
  table: Callable
  models: int = 1
  defense: Any = None
  question: Any = None
  columns: int | None = None


class Defense(NamedTuple):
  """Optional pure functions, each acting at one point; None = it does not act there.

  `name` is unique in a chain: it names the part's state and its random stream. `text`
  is the canonical call that `mixdef.parse` reads back.

  ```
  model          {field: value} set on the linen module
  before         (Stage, ...)
  rows           (key, keep [N], reference [N]) -> bool [N], the rows trained on
  init           (key, spec) -> state
  batch          (batch, state, ctx) -> batch
  log_probs      (log_probs [B,K], state, ctx, batch) -> [B,K]
  loss           (losses [B], state, ctx, log_probs, batch) -> [B]
  value_and_grad (losses_fn) -> (params, batch, state, ctx)
                                -> ((value, (losses, aux)), grads)
  grads          (grads, state, ctx, params) -> (grads, state)
  update         (state, ctx, losses, log_probs, batch, variables) -> state
  epoch, finish  (state, ctx, view) -> state
  release_params (variables, state) -> variables
  release_output (log_probs [B,K], state, ctx, x) -> [B,K]
  ```

  Traits order the batch hooks (`table`, `augment`, `mix`, `label`) and state what a
  part needs or forbids: `per_example`, `whole_batch`, `cross_example`, `poisson`,
  `needs_reference` (refused without), `reference_rows` (they ride in the batches),
  `quantities` (it computes with records: token ids and other integers are refused),
  `no_guarantee`, `states_epsilon` (of differential privacy, in its state),
  `post_processing` (its `update`, `epoch` and `finish` need no member), `critic` (its
  loss is of a GAN's critic), `opaque` (the text cannot be read back).

  Beside a part that is `per_example` and gives a guarantee, `batch`, `log_probs` and
  `loss` see one record at a time, `update` gets None for losses, log-probabilities and
  batch, and views hold zeros in place of the members; see `mixdef.core.isolation`.
  """

  name: str
  text: str = ""
  model: Mapping[str, Any] | None = None
  before: tuple[Stage, ...] = ()
  rows: Hook = None
  init: Hook = None
  batch: Hook = None
  log_probs: Hook = None
  loss: Hook = None
  value_and_grad: Hook = None
  grads: Hook = None
  update: Hook = None
  epoch: Hook = None
  finish: Hook = None
  release_params: Hook = None
  release_output: Hook = None
  traits: frozenset[str] = frozenset()
  parts: tuple["Defense", ...] | None = None  # of a chain; None for a single defense

  def __str__(self) -> str:
    return self.text or self.name


_LITERALS = (bool, int, float, str, type(None), tuple, list, dict)


def defense(factory: Any = None, *, aliases: Mapping[str, str] | None = None) -> Any:
  """Register a factory of defenses, record its calls as text and accept `name=`.

  The factory may leave `name` empty: it becomes the factory's name, or the `name=`
  given by the caller, which lets one chain hold a defense twice.

  Args:
    factory: `(...) -> Defense`; without it, `defense(aliases=...)` is the decorator.
    aliases: other names, each with the call that it stands for.

  Returns:
    The factory, which `mixdef.parse` finds by its name.

  Raises:
    ValueError: for a name that another defense has.
  """
  if factory is None:
    return functools.partial(defense, aliases=aliases)
  signature = inspect.signature(factory)
  named = inspect.Parameter(
    "name", inspect.Parameter.KEYWORD_ONLY, default=factory.__name__, annotation=str
  )

  @functools.wraps(factory)
  def make(*args, name: str = factory.__name__, **kwargs) -> Defense:
    try:
      given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
      raise TypeError(f"{factory.__name__}: {error}") from None
    words, opaque = [], False
    for key, value in given.items():
      value = value.item() if isinstance(value, np.generic) else value
      parameter = signature.parameters[key]
      if not isinstance(value, _LITERALS):
        opaque = True
      elif type(value) is type(parameter.default) and value == parameter.default:
        continue
      words.append(f"{key}={value!r}")
    if name != factory.__name__:
      words.append(f"name={name!r}")
    text = factory.__name__ + (f"({', '.join(words)})" if words else "")
    made = factory(*args, **kwargs)
    traits = made.traits | ({"opaque"} if opaque else frozenset())
    return made._replace(name=name, text=text, traits=traits)

  parameters = [*signature.parameters.values(), named]
  make.__dict__["__signature__"] = signature.replace(parameters=parameters)
  return DEFENSES.register(make, aliases=aliases)


def weighted_mean(values, weight):
  """Mean of `values` [B] over the rows with weight; 0 when there are none."""
  return (values * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def mean_value_and_grad(losses_fn, *, microbatch=None):
  """Estimate the gradient of the mean loss, as a chain without an estimator does.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`.
    microbatch: rows differentiated at once, one group after the other, so that memory
      does not grow with B; None is the whole batch. With it the loss of a row must
      depend on that row alone, and each leaf of `aux` must lead with the axis B.

  Returns:
    What `Defense.value_and_grad` returns; the same to rounding for any `microbatch`.
  """

  def run(params, batch, state, ctx):
    del state
    total = jnp.maximum(batch.weight.sum(), 1.0)

    def share(params, rows):
      losses, aux = losses_fn(params, rows, ctx)
      return (losses * rows.weight).sum() / total, (losses, aux)

    differentiate = jax.value_and_grad(share, has_aux=True)
    size = batch.weight.shape[0]
    if microbatch is None or microbatch >= size:
      return differentiate(params, batch)

    def add(sums, rows):
      (value, out), grads = differentiate(params, rows)
      return jax.tree.map(jnp.add, sums, (value, grads)), out

    def wide_zeros(p):
      # A long sum of bfloat16 stalls at 256 times its terms.
      return jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))

    zeros = (jnp.zeros_like(total), jax.tree.map(wide_zeros, params))
    groups = _microbatches(batch, microbatch)
    (value, grads), out = jax.lax.scan(add, zeros, groups)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    out = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], out)
    return (value, out), grads

  return run


def _microbatches(batch, size):
  """Cut a batch into groups of `size` rows, the last filled up with rows of weight 0.

  They repeat the last row: then they are finite wherever the batch is.
  """
  count = batch.weight.shape[0]
  groups = -(-count // size)
  rows = jnp.arange(groups * size)
  if count % size:
    batch = jax.tree.map(lambda leaf: leaf[jnp.minimum(rows, count - 1)], batch)
    batch = batch._replace(weight=jnp.where(rows < count, batch.weight, 0))
  return jax.tree.map(lambda leaf: leaf.reshape(groups, size, *leaf.shape[1:]), batch)


def take(table, batch: Batch):
  """Rows [B,...] of a per-record table [N,...], mixed as the batch was mixed."""
  lam = batch.lam.reshape(batch.lam.shape + (1,) * (table.ndim - 1))
  return lam * table[batch.index] + (1 - lam) * table[batch.partner]
