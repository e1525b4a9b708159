"""Train generative models, attack them, and report what they leak and are worth.

  python experiments/gan.py --dataset=digits --defense=mixup --num_shadows=16

Every GAN trains on a random half of the records and is the target once, the others are
its references. With a defense, as many undefended GANs are trained on the same halves:
the natural references of the adaptive attacks; --natural=FOLDER takes those of an
undefended run, by its own recipe. Writes report.html (one self-contained page),
report.json, scores.npz, the samples as PNG and result.json; run again, it resumes.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import job
from absl import logging
from etils import epy
from gan_settings import GanSettings

with epy.lazy_imports():
  import numpy as np

  import mixdef
  from mixdef import auditing, metrics, utility
  from mixdef.attacks import gan
  from mixdef.contrib.mixup_theory import report as likelihood_ratios
  from mixdef.metrics import roc

_MODELS = "models"
_EXTRACTOR_EPOCHS = 20


def run(settings: GanSettings, folder: pathlib.Path) -> dict:
  """Train, attack and measure; returns what result.json holds."""
  data, natural = settings.records(), None
  judge = settings.make_classifier(data)
  inception = (
    utility.inception_features(settings.inception) if settings.inception else None
  )
  keep = mixdef.subsets(data, settings.shadows, seed=settings.seed)
  trained = ["natural references"] if settings.natural else []
  trained.append("GANs")
  if settings.is_defended and not settings.natural:
    trained.append("natural references")
  stages = job.Stages(*trained, "samples and their utility", "attacks")
  train = functools.partial(_train, stages, data, keep)
  if settings.natural:  # first, so that a folder of other GANs is refused at once
    place = pathlib.Path(settings.natural) / _MODELS
    natural = train("natural references", settings.natural_run, place)
  models = train("GANs", settings, folder / _MODELS)
  if settings.is_defended and not settings.natural:
    natural = train("natural references", settings.undefended, folder / "natural")
  models, natural = _sound(models, natural)
  stages.begin("samples and their utility")
  generated = auditing.describe_generators(
    models,
    inception or _extractor(settings, data, judge),
    classifier=judge,
    num_samples=settings.samples,
    adaptive=_adaptive(settings, models, natural),
    theory=_theory(models, natural),
    seed=settings.seed,
  )
  stages.begin("attacks")
  result = mixdef.audit(
    models,
    attacks=settings.chosen_attacks(),
    budget=settings.budget,
    generated=generated,
    setting={
      "defense": settings.defended_by,
      "learner": settings.learner,
      "model": settings.model,
      "optimizer": settings.optimizer,
      "learning_rate": settings.learning_rate,
      "generator_steps": _generator_steps(models),
      **job.provenance(settings.seed),
    },
    seed=settings.seed,
    out=folder / "attacks",
    progress=True,
  )
  page = result.save(folder)
  report = result.report
  names = ("verdict", "strongest", "attacks", "generator", "not_run")
  return {
    "report": page.name,
    **{name: report[name] for name in names},
    **report["setting"],
  }


def _train(stages, data, keep, name, settings, folder):
  """Train one GAN for each row of the keep matrix."""
  stages.begin(name)
  logging.info("training %s of %s", settings.defended_by, settings.learner)
  return mixdef.fit_many(
    settings.make_learner(data),
    data,
    keep,
    epochs=settings.passes,
    batch_size=settings.batch_size,
    **settings.seeds_of_training,
    strategy=settings.strategy,
    memory_gb=settings.memory_gb or None,
    num_members=round(0.5 * int(data.audited.sum())),
    out=folder,
    progress=True,
  )


def _sound(models, natural):
  """Leave out the rows in which either model diverged: both share one keep matrix."""
  both = [side for side in (models, natural) if side is not None]
  sound = ~np.any([side.diverged for side in both], axis=0)
  if sound.sum() < 2:
    raise ValueError("fewer than two GANs did not diverge: lower --learning_rate")
  return models.take(sound), None if natural is None else natural.take(sound)


def _generator_steps(models) -> int:
  """Count the steps of the first model's generator over the whole training."""
  rows = [row for row in models.history if row["models"].startswith("models-00000")]
  share = [row.get("generator_steps", 0.0) for row in rows]
  return round(sum(share) * models.plan.steps_per_epoch)


def _extractor(settings, data, judge):
  """Train the classifier whose features pictures are compared by; tables need none."""
  if data.x.ndim == 2:
    return None
  logging.info("training a classifier whose features compare samples with records")
  run = mixdef.fit(
    judge, data, epochs=_EXTRACTOR_EPOCHS, seed=settings.seed, progress=True
  )
  return utility.classifier_features(run)


def _adaptive(settings, models, natural) -> list[dict[str, Any]]:
  """Attack with mixed queries, and with references of either kind."""
  cells = gan.adaptive_grid(models, natural or models, seed=settings.seed)
  rows = []
  for name, cell in cells.items():
    query, references = name.split("/")
    if natural is None and references != "natural":
      continue  # the same once more
    targets = roc.complete_targets(cell.scores, cell.members)
    if not len(targets):
      continue  # too few models: every one has members alone, or none, with a score
    row = {"query": query, "references": references, "num_targets": len(targets)}
    found = metrics.summarize(
      cell.scores[targets], cell.members[targets], seed=settings.seed
    )
    rows.append(row | found.to_json() | {"coverage": cell.coverage})
  return rows


def _theory(models, natural):
  """Compare the likelihood ratios under natural references without and with it."""
  if natural is None or len(models) < 3:
    return None  # no record has an undefended reference with it and one without
  audited = models.data.audited
  losses = [-side.signals().phi[:, audited, 0] for side in (natural, models)]
  return likelihood_ratios.theory_report(
    losses[0], models.keep[:, audited], losses[1], fixed=True
  )


def _figure(value: float | None) -> str:
  return "none" if value is None else f"{value:.4f}"


def show(result: dict) -> None:
  """Print the verdict, the figures and where the report is."""
  verdict = result["verdict"]
  print(f"{verdict['level'].replace('_', ' ')}: {verdict['headline']}")
  print(
    f"{result['num_models']} GANs, {result['defense']}, "
    f"{result['generator_steps']} generator steps each"
  )
  for name, row in result["attacks"].items():
    low, high = row["auc_ci"]
    print(f"  {name:36}AUC {row['auc']:.4f} [{low:.4f}, {high:.4f}]")
  for row in result["generator"]["adaptive"]:
    low, high = row["auc_ci"]
    what = f"{row['query']} query, {row['references']} references"
    print(f"  {what:36}AUC {row['auc']:.4f} [{low:.4f}, {high:.4f}]")
  for row in result["generator"]["utility"]:
    value, real = _figure(row["value"]), _figure(row["real"])
    print(f"  {row['name']:36}{value} (real records {real})")
  for name, row in (result["generator"].get("columns") or {}).items():
    correlation, rmse = _figure(row["correlation"]), _figure(row["rmse"])
    print(f"  {name:36}correlation {correlation}, RMSE {rmse}")
  for name, reason in result["not_run"].items():
    print(f"  not run: {name}: {reason}")


if __name__ == "__main__":
  job.main("gan", GanSettings, run, show)
