"""Defenses as transforms: the nouns, `chain`, `from_optax` and `@defense`.

A `Defense` is a bundle of optional pure functions, each acting at one point of
training or release. `chain` composes them; a learner calls the composed hooks. The
letters in shapes: B batch, K classes, N records, M models of a stage.
"""

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Hook = Any  # a function, or None where nothing acts; typed by the tables below


class Ctx(NamedTuple):
  """Where training stands; every field is traced, only `key` differs per model."""

  key: Any
  step: Any
  epoch: Any
  epochs: Any

  @property
  def progress(self):
    """Share of the epochs that are over, in [0, 1); constant inside an epoch."""
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
  partner = index and lam = 1.
  """

  x: Any
  y: Any
  index: Any
  weight: Any
  reference: Any
  partner: Any
  lam: Any


class Data(NamedTuple):
  """Records on the device, shared by all models: x [N,...], y int [N].

  `reference` bool [N] marks the defender's own records: never members, never audited.
  """

  x: Any
  y: Any
  reference: Any


class Spec(NamedTuple):
  """What a state is initialised from; the integers are static.

  `example` is one record [1,...], `variables` the model's (None until it has been
  initialised), `table` [N,K] the log-probabilities of the stage before (or None),
  `num_members` the public training-set size.
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
  the weights that will be released.
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
  into `Spec.table`. `defense` None means the rest of the chain.
  """

  rows: Callable
  table: Callable
  models: int = 1
  defense: Any = None


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
  `needs_reference`, `no_guarantee`, `opaque`.
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
  parts: tuple["Defense", ...] = ()

  def __str__(self) -> str:
    return self.text


_BATCH_ORDER = ("table", "augment", "mix", "label")
_LITERALS = (bool, int, float, str, type(None), tuple, list, dict)


def defense(factory: Callable[..., Defense]) -> Callable[..., Defense]:
  """Make a factory of defenses: record its call as text and accept `name=`.

  The factory may leave `name` empty: it becomes the factory's name, or the `name=`
  given by the caller, which lets one chain hold a defense twice.
  """
  signature = inspect.signature(factory)

  @functools.wraps(factory)
  def make(*args, name: str = factory.__name__, **kwargs) -> Defense:
    given = signature.bind(*args, **kwargs).arguments
    words, opaque = [], False
    for key, value in given.items():
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

  return make


def fold_in_name(key, *names: str):
  """Derive a key from stable names, so that no stream depends on a position."""
  for name in names:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
  return key


def chain(*defenses: Defense) -> Defense:
  """Compose defenses; flat and associative, `chain()` is the identity.

  The state is `{name: state}`. Batch hooks are ordered stably by trait (table, augment,
  mix, label), the gradient estimator's own `grads` hook runs first, all else in the
  order given. Each part draws from its own random stream, so adding or removing a part
  never changes another part's randomness.

  Args:
    *defenses: parts or chains.

  Returns:
    One `Defense` with the parts under `parts`.

  Raises:
    ValueError: for parts that cannot be combined, with the reason.

  >>> str(chain(from_optax("a", lambda key: None), chain()))
  "from_optax('a')"
  """
  parts = tuple(part for one in defenses for part in one.parts or _leaf(one))
  _refuse(parts)

  def with_hook(hook):
    return [part for part in parts if getattr(part, hook) is not None]

  def own(ctx, hook, part):
    return ctx._replace(key=fold_in_name(ctx.key, hook, part.name))

  def thread(hook):
    """Pass a value through every part's hook."""
    acting = with_hook(hook)
    if hook == "batch":
      acting = sorted(acting, key=_batch_rank)
    if not acting:
      return None

    def run(value, state, ctx, *rest):
      for part in acting:
        mine = (state[part.name], own(ctx, hook, part))
        value = getattr(part, hook)(value, *mine, *rest)
      return value

    return run

  def write(hook):
    """Let every part's hook rewrite its own state."""
    acting = with_hook(hook)
    if not acting:
      return None

    def run(state, ctx, *rest):
      new = {
        part.name: getattr(part, hook)(state[part.name], own(ctx, hook, part), *rest)
        for part in acting
      }
      return {**state, **new}

    return run

  def init(key, spec):
    return {
      part.name: _strongly_typed(part.init(fold_in_name(key, part.name), spec))
      if part.init
      else ()
      for part in parts
    }

  def grads(value, state, ctx, params):
    state = dict(state)
    for part in sorted(with_hook("grads"), key=lambda part: not part.value_and_grad):
      value, state[part.name] = part.grads(
        value, state[part.name], own(ctx, "grads", part), params
      )
    return value, state

  def value_and_grad(losses_fn):
    (part,) = with_hook("value_and_grad")
    estimate = part.value_and_grad(losses_fn)
    return lambda params, batch, state, ctx: estimate(
      params, batch, state[part.name], ctx
    )

  def release_params(variables, state):
    (part,) = with_hook("release_params")
    return part.release_params(variables, state[part.name])

  fields = {key: value for part in parts for key, value in (part.model or {}).items()}
  return Defense(
    name="chain",
    text="|".join(map(str, parts)) or "none",
    model=fields or None,
    before=next((part.before for part in parts if part.before), ()),
    rows=next((part.rows for part in parts if part.rows), None),
    init=init,
    batch=thread("batch"),
    log_probs=thread("log_probs"),
    loss=thread("loss"),
    value_and_grad=value_and_grad if with_hook("value_and_grad") else None,
    grads=grads if with_hook("grads") else None,
    update=write("update"),
    epoch=write("epoch"),
    finish=write("finish"),
    release_params=release_params if with_hook("release_params") else None,
    release_output=thread("release_output"),
    traits=frozenset().union(*(part.traits for part in parts)),
    parts=parts,
  )


def _leaf(defense):
  """A defense that is no chain, as parts; the empty chain has none."""
  return () if defense.text == "none" else (defense,)


def _refuse(parts):
  """Raise for parts that cannot be combined."""
  names = [part.name for part in parts]
  for name in names:
    if name == "chain":
      raise ValueError("a part cannot be called 'chain': give it another name=")
    if names.count(name) > 1:
      raise ValueError(
        f"two parts of the chain are called {name!r}: give one of them "
        f"another name, {name}(..., name='{name}_2')"
      )
  once = {
    "gradient estimators": [part for part in parts if part.value_and_grad],
    "staged parts": [part for part in parts if part.before],
    "mixers": [part for part in parts if "mix" in part.traits],
    "parts that choose the rows": [part for part in parts if part.rows],
    "parts that release other weights": [part for part in parts if part.release_params],
  }
  for what, found in once.items():
    if len(found) > 1:
      both = " and ".join(part.name for part in found)
      raise ValueError(f"a chain can hold one of the {what}, not {both}: drop one")
  fields = [key for part in parts for key in (part.model or {})]
  for field in fields:
    if fields.count(field) > 1:
      raise ValueError(f"two parts set the model's {field!r}: keep one of them")
  clipped = next((part for part in parts if "per_example" in part.traits), None)
  if clipped:
    for part in parts:
      _refuse_with_clipping(part, clipped)


def _refuse_with_clipping(part, clipped):
  """Raise where a part makes the bound of per-record clipping void."""
  if "whole_batch" in part.traits:
    raise ValueError(
      f"{clipped.name} clips each record's gradient, but {part.name} makes the loss of "
      f"a record depend on the whole batch: drop one of them"
    )
  if "no_guarantee" in clipped.traits:
    return
  give_up = f"drop one, or give up epsilon with {clipped.name}(..., guarantee=False)"
  if "cross_example" in part.traits:
    raise ValueError(
      f"{part.name} lets a record act on other records' rows, so clipping row by row "
      f"in {clipped.name} bounds no record: {give_up}"
    )
  if part.before:
    raise ValueError(
      f"{part.name} trains on the members before, and the epsilon of {clipped.name} "
      f"counts one training: {give_up}"
    )


def _batch_rank(part):
  ranks = [_BATCH_ORDER.index(trait) for trait in part.traits if trait in _BATCH_ORDER]
  return min(ranks, default=_BATCH_ORDER.index("augment"))


def _strongly_typed(state):
  """Drop weak types, which would make the step trace twice."""

  def cast(leaf):
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)

  return jax.tree.map(cast, state)


def from_optax(name: str, transform, *, per_example: bool = False) -> Defense:
  """Make any optax `GradientTransformation` a defense with its own state per model.

  Args:
    name: the part's name in the chain.
    transform: a `GradientTransformation`, or `key -> GradientTransformation` for one
      that draws noise: it is built from each model's own key, so vmapped shadow models
      never share noise.
    per_example: hand the transform gradients with a leading batch axis [B,...], as
      `optax.contrib.differentially_private_aggregate` expects. Padded rows are zero
      gradients, and such a transform divides by B with the padding.

  Returns:
    The defense; its text is opaque, so a run with it needs an explicit text.

  Guarantee: none is stated by mixdef; with noise it is the transform's own.
  """

  def make(key):
    return transform if hasattr(transform, "init") else transform(key)

  def value_and_grad(losses_fn):
    def run(params, batch, state, ctx):
      def one(row):
        def loss(params):
          one_row = jax.tree.map(lambda leaf: leaf[None], row)
          losses, aux = losses_fn(params, one_row, ctx)
          aux = jax.tree.map(lambda leaf: leaf[0], aux)
          return losses[0] * row.weight, (losses[0], aux)

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads

      (losses, aux), grads = jax.vmap(one)(batch)
      return (weighted_mean(losses, batch.weight), (losses, aux)), grads

    return run

  def init(key, spec):
    return make(key).init(spec.variables["params"])

  def grads(value, state, ctx, params):
    return make(ctx.key).update(value, state, params)

  return Defense(
    name,
    text=f"from_optax({name!r})",
    init=init,
    value_and_grad=value_and_grad if per_example else None,
    grads=grads,
    traits=frozenset({"opaque", "per_example"} if per_example else {"opaque"}),
  )


def weighted_mean(values, weight):
  """Mean of `values` [B] over the rows with weight; 0 when there are none."""
  return (values * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def take(table, batch: Batch):
  """Rows [B,...] of a per-record table [N,...], mixed as the batch was mixed."""
  lam = batch.lam.reshape(batch.lam.shape + (1,) * (table.ndim - 1))
  return lam * table[batch.index] + (1 - lam) * table[batch.partner]


def row_keys(key, ids):
  """One key per row [B], a function of the row's id only."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def hash_rows(x):
  """Hash the content of each row of x [B,...] to uint32 [B]."""
  bits = x.reshape(x.shape[0], -1).astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(bits, jnp.uint32)
  place = jnp.arange(bits.shape[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
  # Entries are scrambled (the finaliser of MurmurHash3) before they are summed: a sum
  # of anything near linear in the place would collide on binary tables.
  mixed = bits ^ place[None]
  for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(odd)
  return (mixed ^ (mixed >> 16)).sum(1, dtype=jnp.uint32)
