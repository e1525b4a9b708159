"""Defenses as transforms: the core types, `@defense`, and helpers for writing hooks.

A `Defense` is a bundle of optional pure functions, each acting at one point of
training or release. `mixdef.chain` composes them; a learner calls the composed hooks.
Letters in shapes: B batch, K classes, N records, M models of a stage.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from mixdef.core.reading import digest
from mixdef.core.registry import DEFENSES, Registry
from mixdef.core.text import text_of
from mixdef.core.traits import Traits, check_traits


class Ctx(NamedTuple):
  """The random key of a hook, the position in training, and what is known there.

  The position is `step` and `epoch`, counted from 0 over the whole training, the two
  sizes behind them and `batch_size`, which is public, regardless of how many records a
  step draws. After an epoch, `step` is the number of steps taken. Any field is None
  where it does not exist, as the position is after training. A hook finds:

  ```
  batch           position
  log_probs       position, batch
  loss            position, batch, log_probs [B,K] (None for the losses of a critic)
  grads           position, variables
  update          position, batch, log_probs, losses [B], variables after the step
  epoch, finish   position, variables, predict, data, members bool [N]
  release_output  queries [B,...], the queried records
  ```

  `variables` holds {"params": ...} and the model's statistics, if it has any.
  `predict(x)` returns log-probabilities [.,K] in inference mode; in `finish` it uses
  the weights that will be released. `members` marks the records trained on.
  """

  key: Any
  step: Any
  epoch: Any
  epochs: Any
  steps_per_epoch: Any
  batch_size: Any
  batch: Any = None
  log_probs: Any = None
  losses: Any = None
  variables: Any = None
  predict: Any = None
  data: Any = None
  members: Any = None
  queries: Any = None

  @property
  def progress(self):
    """Fraction of epochs completed, in [0, 1]; constant within an epoch."""
    return None if self.epoch is None else self.epoch / self.epochs

  @property
  def position(self):
    """The key and the position alone."""
    return Ctx(*self[:6])


class Rows(NamedTuple):
  """The rows of one step [B], chosen by the training loop.

  Weight 1 marks a member, auxiliary 1 an auxiliary record of the defender; both are 0
  for padding.
  """

  index: Any
  weight: Any
  auxiliary: Any


class Batch(NamedTuple):
  """One batch: x [B,...], y [B,K] on the simplex, and the origin of each row.

  A row is `lam * record[index] + (1 - lam) * record[partner]`; unmixed rows have
  partner = index and lam = 1. `view` int [B] is the index of the row among the views of
  its record, if records have several views in the batch; None if each has one.
  `features` [B,...] are what the frozen layers of a model make of the records; None if
  they are computed from x.
  """

  x: Any
  y: Any
  index: Any
  weight: Any
  auxiliary: Any
  partner: Any
  lam: Any
  view: Any = None
  features: Any = None


class Data(NamedTuple):
  """Records on the device, shared by all models: x [N,...], y int [N].

  `auxiliary` bool [N] marks the defender's auxiliary records, which are never members
  and never audited.
  """

  x: Any
  y: Any
  auxiliary: Any


class Featured(NamedTuple):
  """`Data` with `features` [N,...], what frozen layers make of the records.

  The steps of a learner with `features` use them in place of x; no hook is shown them.
  """

  x: Any
  y: Any
  auxiliary: Any
  features: Any


class Spec(NamedTuple):
  """Inputs to `init`: example record, sizes and the previous stage's table.

  The integers are static. `example` is one record [1,...], or zeros under a guarantee;
  `variables` are the model's (None until it has been initialized); `table` [N,K] holds
  the log-probabilities of the previous stage (or None); `num_members` is the public
  training-set size, in persons if steps draw persons; `trainings` counts the private
  trainings on the same members that an epsilon covers, this one among them.
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
  trainings: int = 1


class Stage(NamedTuple):
  """M models (teachers) trained before this one, on other rows.

  `rows(key, members [N], auxiliary [N]) -> bool [M,N]` selects the rows of each
  teacher; `table(key, log_probs [M,N,K], rows [M,N], members [N]) -> [N,K]` condenses
  their outputs into `Spec.table`. If `defense` is None, they are trained with the rest
  of the chain. `query(learner, state, x [B,...], y [B]) -> [B,...]` replaces
  log-probabilities as the teachers' output; `columns` is then the number of columns of
  the table, in place of K. `composes` promises that the teachers train on all members,
  and that a record's row of the table depends on the teachers and on the record alone:
  private teachers then compose with a private student.
  """

  rows: Callable
  table: Callable
  models: int = 1
  defense: Any = None
  query: Any = None
  columns: int | None = None
  composes: bool = False


class Init(Protocol):
  """The first state of a part."""

  def __call__(self, key: Any, spec: Spec, /) -> Any:
    """Return a pytree of arrays."""


class Transform(Protocol):
  """A change of a value: a batch, outputs, losses or weights."""

  def __call__(self, value: Any, state: Any, ctx: Ctx, /) -> Any:
    """Return the changed value."""


class GradTransform(Protocol):
  """A change of the gradient, with a new state, as an optax update."""

  def __call__(self, grads: Any, state: Any, ctx: Ctx, /) -> tuple[Any, Any]:
    """Return the changed gradient and the new state."""


class Refresh(Protocol):
  """A change of the state."""

  def __call__(self, state: Any, ctx: Ctx, /) -> Any:
    """Return the new state."""


class Estimator(Protocol):
  """Another gradient than that of the mean loss; `Defense` lists the arguments."""

  def __call__(self, losses_fn: Callable, /) -> Callable:
    """Return the function that estimates it."""


class Defense(NamedTuple):
  """Optional pure functions, each acting at one point; None means no action there.

  `name` is unique in a chain and identifies the part's state and its random stream.
  `text` is the canonical call, which `mixdef.parse` reads back.

  ```
  model           {field: value} set on the linen module
  network         (network) -> network with other trained parameters, before `init`
  stages          (Stage, ...)
  rows            (key, members [N], auxiliary [N]) -> bool [N], the rows trained on
  init            (key, spec) -> state
  batch           (batch, state, ctx) -> batch
  log_probs       (log_probs [B,K], state, ctx) -> log_probs
  loss            (losses [B], state, ctx) -> losses
  value_and_grad  (losses_fn) -> (params, batch, state, ctx)
                              -> ((value, (losses, aux)), grads), or in place of
                              grads anything that the part's own `grads` turns into it
  grads           (grads, state, ctx) -> (grads, state)
  update          (state, ctx) -> state, after a step
  epoch, finish   (state, ctx) -> state
  release_params  (variables, state, ctx) -> variables
  release_output  (log_probs [B,K], state, ctx) -> log_probs
  guarantee       (state) -> {"epsilon", "delta"} of differential privacy
  noise_std       (state) -> standard deviation of the noise that the next `grads` adds
                             to every entry; optimizers may read it
  ```

  `Ctx` lists what each finds in `ctx`.

  `Traits` order the batch hooks and declare what a part requires or forbids.

  In a chain with a `per_example` part that gives a guarantee, the `batch`, `log_probs`
  and `loss` hooks of the other parts see one record at a time, `update` finds None for
  losses, log-probabilities and batch, and `epoch` and `finish` find zeros in place of
  the members; see `mixdef.core.isolation`.
  """

  name: str
  text: str = ""
  model: Mapping[str, Any] | None = None
  network: Callable | None = None
  stages: tuple[Stage, ...] = ()
  rows: Callable | None = None
  init: Init | None = None
  batch: Transform | None = None
  log_probs: Transform | None = None
  loss: Transform | None = None
  value_and_grad: Estimator | None = None
  grads: GradTransform | None = None
  update: Refresh | None = None
  epoch: Refresh | None = None
  finish: Refresh | None = None
  release_params: Transform | None = None
  release_output: Transform | None = None
  guarantee: Callable[[Any], Mapping[str, Any]] | None = None
  noise_std: Callable[[Any], Any] | None = None
  traits: Traits = Traits()
  parts: tuple["Defense", ...] | None = None  # of a chain; None for a single defense

  def __str__(self) -> str:
    return self.text or self.name


_ARGUMENTS = {
  "network": "network",
  "rows": "key, members, auxiliary",
  "init": "key, spec",
  "batch": "batch, state, ctx",
  "log_probs": "log_probs, state, ctx",
  "loss": "losses, state, ctx",
  "value_and_grad": "losses_fn",
  "grads": "grads, state, ctx",
  **dict.fromkeys(("update", "epoch", "finish"), "state, ctx"),
  "release_params": "variables, state, ctx",
  "release_output": "log_probs, state, ctx",
  **dict.fromkeys(("guarantee", "noise_std"), "state"),
}


def check_hooks(part: Defense) -> None:
  """Raise `ValueError` if a hook takes another number of arguments than it is given."""
  for name, arguments in _ARGUMENTS.items():
    hook = getattr(part, name)
    if hook is None:
      continue
    signature = inspect.signature(hook)
    try:
      signature.bind(*arguments.split(", "))
    except TypeError:
      raise ValueError(
        f"{part.name}.{name} must accept ({arguments}), not {signature}: see "
        "mixdef.core.hooks.Ctx for the fields of ctx"
      ) from None


_LONGEST = 200  # characters of an argument in a text


def _word(value):
  """Return the text of an argument; only literals can be read back."""
  plain = isinstance(value, _LITERALS)
  word = repr(value) if plain else text_of(value)
  if plain or len(word) <= _LONGEST:
    return word
  return f"<{type(value).__name__} {digest(np.frombuffer(word.encode(), np.uint8))}>"


_LITERALS = (bool, int, float, str, type(None), tuple, list)


def defense(
  factory: Any = None,
  *,
  aliases: Mapping[str, str] | None = None,
  neutral: str | None = None,
  registry: Registry = DEFENSES,
) -> Any:
  """Register a defense factory, record its calls as text and accept `name=`.

  The factory may leave `name` empty. It then becomes the factory's name, or the `name=`
  passed by the caller, which allows a chain to contain a defense twice.

  Args:
    factory: `(...) -> Defense`; without it, `defense(aliases=...)` is the decorator.
    aliases: alternative names, each with the call that it stands for.
    neutral: a call that changes nothing, for the common tests, if there is one.
    registry: where it is found; `PARTS` for parts that are not defenses.

  Returns:
    The factory, which `mixdef.parse` finds by its name.

  Raises:
    ValueError: for a name that another defense has. The factory raises it for traits
      that do not exist.
  """
  if factory is None:
    return functools.partial(
      defense, aliases=aliases, neutral=neutral, registry=registry
    )
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
      words.append(f"{key}={_word(value)}")
    if name != factory.__name__:
      words.append(f"name={name!r}")
    text = factory.__name__ + (f"({', '.join(words)})" if words else "")
    made = factory(*args, **kwargs)
    check_traits(name, made.traits)
    traits = made.traits._replace(opaque=opaque or made.traits.opaque)
    return made._replace(name=name, text=text, traits=traits)

  parameters = [*signature.parameters.values(), named]
  make.__dict__["__signature__"] = signature.replace(parameters=parameters)
  make.__dict__["neutral"] = neutral
  return registry.register(make, aliases=aliases)


def weighted_mean(values, weight):
  """Return the weighted mean of `values` [B]; 0 if all weights are 0."""
  return (values * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def take(table, batch: Batch):
  """Return rows [B,...] of a per-record table [N,...], mixed as the batch was mixed."""
  lam = batch.lam.reshape(batch.lam.shape + (1,) * (table.ndim - 1))
  return lam * table[batch.index] + (1 - lam) * table[batch.partner]
