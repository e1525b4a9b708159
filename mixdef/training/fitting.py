"""`fit` and `fit_many`: train one model, or S models in the same training loop."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.learner import Learner
from mixdef.core.randomness import random_key
from mixdef.data import Dataset, validate_members
from mixdef.training.ensemble import Ensemble, Run
from mixdef.training.options import Options
from mixdef.training.prepare import prepare
from mixdef.training.shadows import open_shadows
from mixdef.training.traces import check_trace


def fit(
  learner: Learner,
  data: Dataset,
  members=None,
  *,
  epochs: int,
  batch_size: int = 128,
  seed: int = 0,
  noise_seed: int | None = None,
  num_members: int | None = None,
  out: str | pathlib.Path | None = None,
  trace: str | None = None,
  every: int | None = None,
  progress: bool = False,
) -> Run:
  """Train one model.

  Args:
    learner: the learner to train.
    data: the records.
    members: bool [N], the members; defaults to all records that are not auxiliary.
    epochs: number of passes over the members.
    batch_size: average number of members per step.
    seed: random seed.
    noise_seed: seed of the noise, if an epsilon is stated; see `fit_many`.
    num_members: public size of the training set; see `fit_many`.
    out: folder for checkpoints and metrics.jsonl, here or on a bucket (`gs://`,
      `s3://`); an interrupted call resumes from it.
    trace: "loss" keeps the losses of all records of `data` during the training as
      `Run.trace`, for `attacks.lt_iqr`, and in `out`. They are private: they tell
      members from others. The model is the same, to the last bit, as without.
    every: epochs between two points of the trace. The default costs about 5% of the
      time of a training that is not very short.
    progress: show a progress bar (on a terminal) or progress lines.

  Returns:
    The `Run`.

  Raises:
    TypeError: if an argument is not a learner or not a `Dataset`.
    ValueError: for sizes out of range, a defense that needs auxiliary records, or a
      folder that holds another run.
  """
  _check_kinds(learner, data)
  members = ~data.auxiliary if members is None else np.asarray(members)
  options = Options(
    epochs=epochs,
    batch_size=batch_size,
    seed=seed,
    noise_seed=noise_seed,
    strategy="loop",
    num_members=num_members,
    out=out,
    trace=trace,
    every=every,
    progress=progress,
  )
  check_trace(trace, every, learner)
  with _opened(learner, data, members[None], options) as shadows:
    states = shadows.train()
  return dataclasses.replace(shadows.ensemble(states)[0], trace=shadows.trace)


def fit_many(
  learner: Learner | Callable[..., Learner],
  data: Dataset,
  members,
  *,
  epochs: int,
  batch_size: int = 128,
  seed: int = 0,
  noise_seed: int | None = None,
  strategy: str = "auto",
  memory_gb: float | None = None,
  num_members: int | None = None,
  model_ids: Any = None,
  sweep: Mapping[str, Any] | None = None,
  out: str | pathlib.Path | None = None,
  signals: Mapping[str, Any] | None = None,
  keep_params: bool = True,
  progress: bool = False,
) -> Ensemble:
  """Train S models on S subsets of the same records.

  Args:
    learner: the learner to train; with `sweep`, a function `(**values) -> Learner`.
    data: the records, which are stored on the device once, or streamed if they do not
      fit there beside a model.
    members: bool [S,N], the membership matrix.
    epochs: number of passes over the members.
    batch_size: average number of members per step: records, or persons if the defense
      draws persons, as `dp_sgd(unit="person")` does.
    seed: random seed; see `model_ids`.
    noise_seed: used only if an epsilon is stated. The epsilon does not hold against an
      attacker who knows both this seed and `seed`, and can repeat every draw of the
      training. None draws a seed from the operating system, and stores it in `out` so
      that training can resume.
    strategy: "vmap", "scan", "loop", "processes" (one pinned to each core of a CPU), or
      "auto", which measures them, unless the training is short, and logs its choice.
      Models depend on the strategy only through rounding; name one to repeat a
      training to the last bit.
    memory_gb: upper bound on the memory of records and models in training; defaults to
      60% of free memory. Models that do not fit at once are trained in equal chunks.
    num_members: public size of a training set, counted as batches are, which determines
      the steps per epoch and the sampling probability. The default, the mean over
      models, is computed from the membership itself. Set it if epsilon must hold
      rigorously, or if models added later must train like existing ones.
    model_ids: int [S], selects the random stream (seed, id) of each model; defaults to
      0..S-1. Models with the same id and different hyper-parameters are paired.
    sweep: hyper-parameters that differ between models, {name: [S]}.
    out: folder for models, checkpoints and metrics.jsonl, here or on a bucket
      (`gs://`, `s3://`). An interrupted call resumes from it, and a call with more
      models adds them. Models are loaded from there when they are used, so that memory
      holds one chunk of them. Several processes share one folder and the work; without
      it, each process trains all models by itself.
    signals: arguments of `Ensemble.signals`, such as `population` and `views` (may be
      empty). Each chunk of models is queried as soon as it is trained, and the outputs
      are kept in `out`, where `Ensemble.signals` with the same arguments finds them.
      Several processes then share this work, too.
    keep_params: False writes only the outputs that `signals` selects, not the models;
      other queries then require training again.
    progress: show a progress bar (on a terminal) or progress lines.

  Returns:
    The `Ensemble`, models in the order of `members`.

  Raises:
    TypeError: if an argument is not a learner or not a `Dataset`.
    ValueError: for sizes out of range, a defense that needs auxiliary records, a
      folder that holds another run, or outputs to keep without a folder.
    BlockingIOError: if another process is writing in the folder.
    OSError: if the folder cannot be written; what is there stays whole.
    Stopped: if a worker or another process failed; the same call resumes.
  """
  options = Options(
    epochs=epochs,
    batch_size=batch_size,
    seed=seed,
    noise_seed=noise_seed,
    strategy=strategy,
    memory_gb=memory_gb,
    num_members=num_members,
    model_ids=model_ids,
    sweep=sweep,
    out=out,
    signals=signals,
    keep_params=keep_params,
    progress=progress,
  )
  with _opened(learner, data, members, options) as shadows:
    states = shadows.train()
  return shadows.ensemble(states)


def _opened(learner, data, members, options):
  """Check the arguments of `fit_many` against the data, and open its training."""
  _check_kinds(learner, data)
  members = validate_members(members, len(data))
  if (members & data.auxiliary).any():
    raise ValueError("members selects auxiliary records: they cannot be members")
  if (data.always_member & ~members).any():
    raise ValueError(
      "members omits records marked always_member: draw it with subsets(data, "
      "num_models)"
    )
  values = {name: jnp.asarray(value) for name, value in (options.sweep or {}).items()}
  for name, value in values.items():
    if value.shape[:1] != (len(members),):
      raise ValueError(
        f"sweep[{name!r}] has shape {value.shape}: give one value for each of the "
        f"{len(members)} models"
      )
  model_ids = (
    np.arange(len(members)) if options.model_ids is None else options.model_ids
  )
  model_ids = _check_ids(model_ids, len(members))
  stream = random_key(options.seed)
  keys = jax.vmap(lambda i: jax.random.fold_in(stream, i))(model_ids)
  training = prepare(
    learner,
    values,
    data,
    members,
    keys,
    epochs=options.epochs,
    batch_size=options.batch_size,
    num_members=options.num_members,
  )
  return open_shadows(learner, data, training, options)


def _check_kinds(learner, data):
  """Reject arguments that are not a learner and a data set, such as a bare model."""
  if isinstance(learner, nn.Module):
    raise TypeError(
      f"learner is a {type(learner).__name__}, a model: give fit what "
      "classifier(model, optimizer) returns"
    )
  if not (isinstance(learner, Learner) or callable(learner)):
    raise TypeError(
      f"learner is of type {type(learner).__name__}: give fit what "
      "classifier(model, optimizer) returns"
    )
  if not isinstance(data, Dataset):
    raise TypeError(
      f"data is of type {type(data).__name__}: make it a Dataset, "
      "Dataset.from_arrays(x, y)"
    )


def _check_ids(model_ids, count):
  """Return the ids of the models' random streams as uint32 [S]."""
  model_ids = np.asarray(model_ids)
  if model_ids.shape != (count,):
    raise ValueError(
      f"model_ids have shape {model_ids.shape}: give one for each of {count} models"
    )
  if (
    model_ids.dtype.kind not in "ui" or model_ids.min() < 0 or model_ids.max() >= 2**32
  ):
    raise ValueError(
      f"model_ids={model_ids.tolist()!r} of type {model_ids.dtype} must be "
      "integers of at least 0 and below 2**32"
    )
  return jnp.asarray(model_ids.astype(np.uint32))
