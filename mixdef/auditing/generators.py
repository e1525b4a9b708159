"""Sample grids and utility metrics of trained generators."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixdef.attacks.gan._sampling import grid, interpolations, samples
from mixdef.core.learner import Learner
from mixdef.core.randomness import generator
from mixdef.data import to_float
from mixdef.training import Ensemble, Run
from mixdef.utility import Extractor, downstream_accuracy, dwp, dwpre, sample_quality

_COLUMNS = 12  # samples drawn per class
_REMARKS = {
  "fd": "distance to held-out records, lower is better; biased up for few records",
  "fid": "distance to held-out records, lower is better; biased up for few records",
  "kid": "distance to held-out records, lower is better; may be negative",
  "density": "around held-out records; 1 on average for real records",
  "coverage": "of held-out records, higher is better; grows with the number of samples",
}
_SIDE = 20  # minimum size of an image in pixels, so that small images are visible


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """An image for a report: x [H,W] or [H,W,C] in [0,1], magnified `scale` times.

  Attributes:
    name: file name, without a suffix.
    title: what the image shows.
    caption: how to read the image.
    x: the pixels.
    scale: number of rows and columns per pixel.
  """

  name: str
  title: str
  caption: str
  x: np.ndarray
  scale: int


@dataclasses.dataclass(frozen=True)
class Generated:
  """The report's section on generators: `metrics` as in report.json, and images."""

  metrics: dict[str, Any]
  pictures: Sequence[Mosaic] = ()


def describe_generators(
  ensemble: Ensemble,
  extractor: Extractor | None = None,
  *,
  classifier: Learner | None = None,
  models: int = 2,
  num_samples: int = 2048,
  columns: int = 100,
  adaptive: Sequence[dict[str, Any]] = (),
  theory: dict[str, Any] | None = None,
  seed: int = 0,
) -> Generated:
  """Draw samples of generators and measure their utility.

  For images, this computes the Frechet and kernel distances, density, coverage and
  downstream accuracy, all against held-out records, which are not covered by copies of
  training records. Next to each stands the same metric of the model's own members. For
  binary tables, it computes the two dimension-wise comparisons of the first model. For
  all other data, nothing is measured.

  Args:
    ensemble: trained GANs, on data with held-out records.
    extractor: feature extractor for images; tables need none.
    classifier: classifier trained on samples for the downstream accuracy; default that
      of `downstream_accuracy`.
    models: number of models to measure, starting with the first.
    num_samples: number of images drawn from each.
    columns: number of columns of a table that `dwpre` predicts: those with the most
      ones.
    adaptive: rows of the adaptive grid, for the report.
    theory: result of `theory_report`, for the report.
    seed: random seed of the samples.

  Returns:
    The `Generated`; images are of the first model.

  Raises:
    ValueError: for models that make no records, data without a held-out file, or
      pictures without an extractor.
  """
  data, learner = ensemble.data, ensemble.learner
  if learner.kind != "generators":
    raise ValueError(f"{learner.text} does not generate records; pass trained GANs")
  if data.test is None:
    raise ValueError(
      f"{data.name} has no held-out records, on which utility is measured: call "
      "data.hold_out(0.2)"
    )
  runs = [ensemble[model] for model in range(min(models, len(ensemble)))]
  metrics: dict[str, Any] = {
    "utility": [],
    "adaptive": list(adaptive),
    "theory": theory,
  }
  if data.x.ndim == 2:
    if np.isin(data.x, (0, 1)).all():
      metrics["columns"] = _of_table(runs[0], columns, seed)
    return Generated(metrics)
  if extractor is None:
    raise ValueError("images are compared by features: pass an extractor")
  each = [_of_pictures(run, extractor, classifier, num_samples, seed) for run in runs]
  metrics["utility"] = _joined(each)
  return Generated(metrics, _mosaics(runs[0], seed))


def _of_pictures(run: Run, extractor: Extractor, classifier, count: int, seed: int):
  """Return {metric: (of samples, of real records, remark)} of one generator."""
  made = samples(run, count, seed=seed)
  members = run.data.select(np.flatnonzero(run.members))
  test: Any = members.test
  held_out = to_float(test.x)
  of_samples, of_real = (
    sample_quality(extractor, held_out, x, seed=seed)
    for x in (made[0], to_float(members.x))
  )
  found = {
    name: (of_samples[name], of_real[name], _REMARKS[name.partition("_")[0]])
    for name in of_samples
    if name.partition("_")[0] in _REMARKS and not name.endswith("_std")
  }
  trained = downstream_accuracy(made, members, learner=classifier, seed=seed)
  return found | {
    "downstream_accuracy": (
      trained["accuracy"],
      trained["real_accuracy"],
      "of a classifier trained on samples or on real records, tested on held-out "
      "records",
    )
  }


def _joined(each):
  """Average the metrics of several generators."""
  rows = []
  for name, (_, _, remark) in each[0].items():
    values, real = (np.array([one[name][side] for one in each]) for side in (0, 1))
    rows.append(
      {
        "name": name,
        "value": float(values.mean()),
        "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
        "real": float(real.mean()),
        "note": remark,
      }
    )
  return rows


def _of_table(run: Run, columns: int, seed: int):
  """Compare as many samples, drawn from their probabilities, as there are members."""
  data: Any = run.data
  real, held_out = data.x[run.members], data.test.x
  shares = samples(run, len(real), seed=seed)[0]
  synthetic = shares > generator(seed).random(shares.shape)
  frequent = np.argsort(-real.mean(0), kind="stable")[:columns]
  return {
    "dwp": dwp(real, synthetic),
    "dwpre": dwpre(real, synthetic, held_out, columns=np.sort(frequent)),
  }


def _mosaics(run: Run, seed: int) -> list[Mosaic]:
  """Draw samples, real records and interpolations, with one row per class."""
  data = run.data
  made = grid(run, _COLUMNS, seed=seed)
  members = np.flatnonzero(run.members)
  rows = [
    to_float(data.x[members[data.y[members] == label][:_COLUMNS]])
    for label in range(data.num_classes)
  ]
  real = np.ones_like(made)
  for row, records in zip(real, rows, strict=True):
    row[: len(records)] = records
  ways = interpolations(run, _COLUMNS, seed=seed)
  return [
    _mosaic("samples", "Samples", "One row per class, one column per latent.", made),
    _mosaic(
      "real",
      "Training records",
      "Some of the records on which this model was trained.",
      real,
    ),
    _mosaic(
      "interpolations",
      "Interpolations",
      "From one latent to another: sudden changes between copies of training records "
      "would indicate memorization.",
      ways,
    ),
  ]


def _mosaic(name: str, title: str, caption: str, x: np.ndarray) -> Mosaic:
  """Arrange images [R,C,H,W] or [R,C,H,W,D] in a grid with white lines between them."""
  rows, columns, height, width = x.shape[:4]
  x = x.reshape(rows, columns, height, width, -1)
  x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
  whole = x.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), -1)
  return Mosaic(name, title, caption, whole, scale=max(1, -(-2 * _SIDE // height)))
