"""`fit` and `fit_many`: the one train loop, for one model and for S of them."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.data import Dataset, validate_keep
from mixdef.learner import Learner
from mixdef.training.ensemble import Ensemble, Run
from mixdef.training.loop import Loop
from mixdef.training.prepare import prepare
from mixdef.training.programs import STRATEGIES
from mixdef.training.progress import Progress
from mixdef.training.store import Store, digest, same_or_refuse
from mixdef.training.strategy import choose, memory_budget, models_at_once


def fit(
  learner: Learner,
  data: Dataset,
  keep=None,
  *,
  epochs: int,
  batch_size: int = 128,
  seed: int = 0,
  num_members: int | None = None,
  out: str | pathlib.Path | None = None,
  progress: bool = False,
) -> Run:
  """Train one model.

  Args:
    learner: what to train.
    data: the records.
    keep: bool [N], the members; default every record that is not a reference.
    epochs: passes over the members.
    batch_size: members a step sees on average.
    seed: of everything random.
    num_members: public size of the training set, see `fit_many`.
    out: folder for checkpoints and metrics.jsonl; an interrupted call resumes from it.
    progress: show a progress bar (on a terminal) or lines.

  Returns:
    The `Run`.

  Raises:
    ValueError: for sizes out of range, a defense that needs reference records, or a
      folder that holds another run.
  """
  keep = ~data.reference if keep is None else np.asarray(keep)
  ensemble = fit_many(
    learner,
    data,
    keep[None],
    epochs=epochs,
    batch_size=batch_size,
    seed=seed,
    strategy="loop",
    num_members=num_members,
    out=out,
    progress=progress,
  )
  return ensemble[0]


def fit_many(
  learner: Learner | Callable[..., Learner],
  data: Dataset,
  keep,
  *,
  epochs: int,
  batch_size: int = 128,
  seed: int = 0,
  strategy: str = "auto",
  memory_gb: float | None = None,
  num_members: int | None = None,
  ids: Any = None,
  over: Mapping[str, Any] | None = None,
  out: str | pathlib.Path | None = None,
  progress: bool = False,
) -> Ensemble:
  """Train S models on S subsets of the same records.

  Args:
    learner: what to train; with `over`, a function `(**values) -> Learner`.
    data: the records, on the device once.
    keep: bool [S,N], the members of each model.
    epochs: passes over the members.
    batch_size: members a step sees on average.
    seed: of everything random; see `ids`.
    strategy: "vmap", "scan", "loop", or "auto", which measures them and logs which.
    memory_gb: bound on what the models in training may take; default 60% of what is
      free. More models than fit are trained in equal chunks.
    num_members: public size of a training set, from which steps per epoch and the
      sampling probability follow. The default, the mean row of `keep`, is read off the
      membership itself: give it where epsilon is to mean something to the letter, or
      where models added later must train like those that exist.
    ids: int [S], whose random stream (seed, id) each model draws from; default 0..S-1.
      Models of one id and different hyper-parameters are paired.
    over: hyper-parameters that differ per model, {name: [S]}.
    out: folder for checkpoints and metrics.jsonl; an interrupted call resumes from it.
    progress: show a progress bar (on a terminal) or lines.

  Returns:
    The `Ensemble`, models in the order of `keep`.

  Raises:
    ValueError: for sizes out of range, a defense that needs reference records, or a
      folder that holds another run.
  """
  keep = validate_keep(keep, len(data))
  if (keep & data.reference).any():
    raise ValueError("keep selects reference records: they cannot be members")
  if (data.always & ~keep).any():
    raise ValueError(
      "keep leaves out records marked always: draw it with "
      "subsets(..., eligible=data.audited, always=data.always)"
    )
  if strategy not in (*STRATEGIES, "auto"):
    known = ", ".join((*STRATEGIES, "auto"))
    raise ValueError(f"strategy={strategy!r} is none of {known}")
  values = {name: jnp.asarray(value) for name, value in (over or {}).items()}
  for name, value in values.items():
    if value.shape[:1] != (len(keep),):
      raise ValueError(
        f"over[{name!r}] has shape {value.shape}: give one value for each of the "
        f"{len(keep)} models"
      )
  ids = jnp.arange(len(keep)) if ids is None else jnp.asarray(ids)
  if ids.shape != (len(keep),):
    raise ValueError(f"ids have shape {ids.shape}: give one for each of {len(keep)}")
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(ids)
  training = prepare(
    *(learner, values, data, keep, keys),
    epochs=epochs,
    batch_size=batch_size,
    num_members=num_members,
  )
  store = None
  if out is not None:
    store = Store(pathlib.Path(out))
    _sign(store, training, seed)
  strategy, size = _decide(training, strategy, memory_budget(memory_gb), store)
  padded = -(-training.count // size) * size
  work = training.work * padded // training.count
  loop = Loop(store, Progress(work, unit="epoch", shown=progress))
  chunks = []
  for first in range(0, training.count, size):
    # The last chunk repeats its last model, so that all chunks share one program.
    rows = np.minimum(np.arange(first, first + size), training.count - 1)
    real = min(size, training.count - first)
    states = loop.run(training.take(rows), strategy, f"models-{first:05d}", real)
    states = jax.tree.map(lambda leaf, real=real: leaf[:real], states)
    chunks.append(states if size == training.count else _to_host(states))
  loop.progress.close()
  states = chunks[0]
  if len(chunks) > 1:
    states = jax.tree.map(_join, *chunks)
  return Ensemble(
    source=learner,
    values=values,
    states=states,
    keep=keep,
    data=data,
    plan=training.plan,
    strategy=strategy,
    history=loop.history,
    models_at_once=size,
  )


def _sign(store, training, seed):
  """Refuse a folder whose run differs in anything that shapes the states."""
  learner, data = training.learner, training.data
  signature = {
    "learner": learner.text,
    "records": digest(data.x, data.y, data.reference),
    "keep": digest(training.keep),
    "keys": digest(jax.random.key_data(training.keys)),
    "program": digest(np.frombuffer(training.program_text().encode(), np.uint8)),
    "hyper_parameters": {name: digest(v) for name, v in training.values.items()},
    "seed": seed,
    "jax": jax.__version__,
    **training.plan._asdict(),
  }
  path = store.folder / "checkpoints" / "signature.json"
  same_or_refuse(path, signature, fix="Choose another out folder.")


def _decide(training, strategy, budget, store):
  """The strategy and chunk size; a resume uses what the first run decided."""
  path = store and store.folder / "checkpoints" / "strategy.json"
  if path and path.exists():
    decided = json.loads(path.read_text())
    if strategy in ("auto", decided["strategy"]):
      return decided["strategy"], decided["models_at_once"]
  if strategy == "auto":
    strategy, size = choose(training, budget)
  else:
    size = models_at_once(training, strategy, budget)
  if path:
    decided = {"strategy": strategy, "models_at_once": size}
    same_or_refuse(path, decided, fix="Choose another out folder.")
  return strategy, size


def _to_host(states):
  """Make room for the next chunk; random keys stay, for numpy cannot hold them."""
  return jax.tree.map(lambda leaf: leaf if _is_key(leaf) else np.asarray(leaf), states)


def _join(*leaves):
  return (jnp if _is_key(leaves[0]) else np).concatenate(leaves)


def _is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
