"""What an audit of one model may train: nothing, or reference models."""

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from mixdef.attacks import Signals
from mixdef.auditing.released import Released
from mixdef.data import subsets
from mixdef.training import fit_many

_LEAST = 4  # reference models
_UNEVEN = 0.1  # relative difference of reference counts between the two sides


class Price(NamedTuple):
  """What an audit may train.

  Attributes:
    kind: "free" trains nothing; "shadows" trains reference models by the recipe of the
      released model, each on a random half of members and hold-out.
    models: number of reference models.
  """

  kind: str
  models: int = 0

  def __str__(self) -> str:
    return f"{self.kind}:{self.models}" if self.models else self.kind

  @classmethod
  def parse(cls, text: str) -> "Price":
    """Read "free" or "shadows:64".

    Raises:
      ValueError: for any other text, or fewer than four models.

    >>> Price.parse("shadows:16")
    Price(kind='shadows', models=16)
    """
    if text == "free":
      return cls("free")
    found = re.fullmatch(r"shadows:(\d+)", str(text))
    if not found or int(found[1]) < _LEAST:
      raise ValueError(
        f"budget={text!r}; pass 'free', or 'shadows:64' for 64 reference models, "
        f"{_LEAST} at least"
      )
    return cls("shadows", int(found[1]))


def with_references(
  price: Price,
  model: Released,
  *,
  learner: Any,
  training: Any,
  views: Any,
  seed: int,
  out: Any,
  progress: bool,
) -> tuple[Signals, dict[str, Any]]:
  """Train what the price allows, and query it as the released model was.

  Args:
    price: what to train.
    model: the released model.
    learner: recipe of the reference models, or None for that of the `Run`.
    training: `epochs` and `batch_size` of the released model, or None.
    views: as in `audit_release`, like the others.
    seed: random seed.
    out: folder of the models, or None.
    progress: whether to show the progress.

  Returns:
    Signals [1 + S, N, Q] whose model 0 is the released one; and facts about the
    references for the report.

  Raises:
    ValueError: if records or a recipe are needed and missing.
  """
  if price.kind == "free":
    return model.signals, {"models": 0, "seconds": 0.0, "times": None}
  data, run = model.data, model.run
  if data is None:
    raise ValueError(
      f"budget={str(price)!r} trains reference models on the records: pass the model "
      "with members= and holdout=, not only its outputs"
    )
  if run is not None:
    learner = learner or run.learner
    own = {"epochs": run.plan.epochs, "batch_size": run.plan.batch_size}
    training = {**own, **(training or {})}
  if learner is None or "epochs" not in (training or {}):
    raise ValueError(
      f"budget={str(price)!r} needs the recipe: pass learner=classifier(...) and "
      "training={'epochs': ..., 'batch_size': ...} as the model was trained"
    )
  how, keep = dict(training), subsets(data, price.models, seed=seed)
  epochs, how["epochs"] = how["epochs"], _same_steps(how, model.members, len(data))
  ensemble = fit_many(
    learner,
    data,
    keep,
    seed=seed,
    num_members=round(len(data) / 2),
    out=None if out is None else out / "references",
    signals=None if out is None else {"population": model.population, "views": views},
    progress=progress,
    **how,
  ).converged()
  others = ensemble.signals(population=model.population, views=views, progress=progress)
  signals = _stacked(model.signals, others)
  _refuse_uneven(signals)
  seconds = round(ensemble.seconds, 1)
  return signals, {
    "models": len(ensemble),
    "seconds": seconds,
    "times": None if run is None or not run.seconds else seconds / run.seconds,
    "size": round(len(data) / 2),
    "epochs": how["epochs"],
    "released_epochs": epochs,
  }


def _same_steps(training, members, count):
  """Return the epochs in which half of the records take the released model's steps."""
  batch = training.get("batch_size", 128)
  steps = training["epochs"] * -(-int(members.sum()) // batch)
  return max(1, round(steps / -(-round(count / 2) // batch)))


def _stacked(own: Signals, others: Signals) -> Signals:
  """Return the signals of the released model, followed by those of the references."""

  def both(name) -> Any:
    first, second = getattr(own, name), getattr(others, name)
    return None if first is None or second is None else np.concatenate([first, second])

  population = None
  if own.population is not None and others.population is not None:
    population = _stacked(own.population, others.population)
  return dataclasses.replace(
    own,
    phi=both("phi"),
    hinge=both("hinge"),
    correct=both("correct"),
    members=both("members"),
    log_probs=both("log_probs"),
    population=population,
    design="bernoulli",
    target=own.target,
  )


def _refuse_uneven(signals: Signals) -> None:
  """Require that members and hold-out have equally many references without them."""
  out, member = (~signals.members[1:]).sum(0), signals.members[0]
  sides = out[member], out[~member]
  means = [float(side.mean()) for side in sides]
  error = np.sqrt(sum(side.var() / len(side) for side in sides))
  gap = abs(means[0] - means[1])
  if gap > 5 * error and gap > _UNEVEN * max(means):
    raise ValueError(
      f"members have {means[0]:.1f} references without them on average and the "
      f"hold-out {means[1]:.1f}, so their scores are not comparable: train the "
      "references on random subsets of both"
    )
