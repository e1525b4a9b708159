"""Train generative models, attack them, and report their leakage and utility.

  mixdef gan --dataset=digits --defense=mixup --num_shadows=16

Every GAN trains on a random half of the records and is the target once, with the others
as its references. With a defense, as many undefended GANs are trained on the same
halves, as references of the adaptive attacks; --undefended=FOLDER uses the GANs of an
earlier undefended run, with its own recipe. Writes report.html (one self-contained
page), report.json, scores.npz, the samples as PNG and result.json. A second run with
the same --out resumes. Several hosts train together with --coordinator and a shared
--out, as in mixdef lira.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from absl import logging
from etils import epy

from mixdef.cli import job
from mixdef.cli.gan_settings import GanSettings

with epy.lazy_imports():
  import jax
  import numpy as np

  import mixdef
  from mixdef import auditing, metrics, utility
  from mixdef.attacks import gan
  from mixdef.contrib.mixup_theory import report as likelihood_ratios
  from mixdef.core import files
  from mixdef.metrics import roc

_MODELS = "models"
_EXTRACTOR_EPOCHS = 20


def run(settings: GanSettings, folder: pathlib.Path) -> dict:
  """Train, attack and evaluate; returns the content of result.json."""
  data, undefended = settings.records(), None
  judge = settings.make_classifier(data)
  inception = (
    utility.inception_features(settings.inception) if settings.inception else None
  )
  trained = ["undefended references"] if settings.undefended else []
  trained.append("GANs")
  if settings.is_defended and not settings.undefended:
    trained.append("undefended references")
  stages = job.Stages(*trained, "samples and their utility", "attacks")
  train = functools.partial(_train, stages, data)
  # Load these first, so that a folder of different GANs is rejected at once.
  if settings.undefended:
    place = files.path_of(settings.undefended, "--undefended") / _MODELS
    undefended = train("undefended references", settings.undefended_run, place)
  models = train("GANs", settings, folder / _MODELS)
  if settings.is_defended and not settings.undefended:
    undefended = train(
      "undefended references", settings.without_defense, folder / "undefended"
    )
  if jax.process_index():
    return {}  # the first process reports
  models, undefended = _sound(models, undefended)
  stages.begin("samples and their utility")
  generated = auditing.describe_generators(
    models,
    inception or _extractor(settings, data, judge),
    classifier=judge,
    num_samples=settings.samples,
    adaptive=_adaptive(settings, models, undefended),
    theory=_theory(models, undefended),
    seed=settings.seed,
  )
  stages.begin("attacks")
  report = mixdef.audit(
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
  return job.save_report(report, folder)


def _train(stages, data, name, settings, folder):
  """Train one GAN on each random half of the records."""
  stages.begin(name)
  logging.info("training %s of %s", settings.defended_by, settings.learner)
  learner = settings.make_learner(data)
  queries = {"population": data.test}  # as the audit queries them
  return mixdef.fit_many(
    learner, data, signals=queries, out=folder, **settings.on_halves(data)
  )


def _sound(models, undefended):
  """Exclude the rows in which either model diverged: both share one members matrix."""
  both = [side for side in (models, undefended) if side is not None]
  sound = ~np.any([side.diverged for side in both], axis=0)
  if sound.sum() < 2:
    raise ValueError("fewer than two GANs did not diverge: reduce --learning_rate")
  return models.select(sound), None if undefended is None else undefended.select(sound)


def _generator_steps(models) -> int:
  """Count the steps of the first model's generator over the whole training."""
  rows = [row for row in models.history if row["models"].startswith("models-00000")]
  share = [row.get("generator_steps", 0.0) for row in rows]
  return round(sum(share) * models.plan.steps_per_epoch)


def _extractor(settings, data, judge):
  """Train the classifier whose features compare images; returns None for tables."""
  if data.x.ndim == 2:
    return None
  logging.info("training a classifier whose features compare samples with records")
  run = mixdef.fit(
    judge, data, epochs=_EXTRACTOR_EPOCHS, seed=settings.seed, progress=True
  )
  return utility.classifier_features(run)


def _adaptive(settings, models, undefended) -> list[dict[str, Any]]:
  """Attack with single and mixed queries, and with references of either kind."""
  cells = gan.adaptive_grid(models, undefended or models, seed=settings.seed)
  rows = []
  for name, cell in cells.items():
    query, references = name.split("/")
    if undefended is None and references != "natural":
      continue  # these references are the same models
    targets = roc.complete_targets(cell.scores, cell.members)
    if not len(targets):
      continue  # too few models: each has scores of only members or only non-members
    row = {"query": query, "references": references, "num_targets": len(targets)}
    summary = metrics.summarize(
      cell.scores[targets], cell.members[targets], seed=settings.seed
    )
    rows.append(row | summary.to_json() | {"coverage": cell.coverage})
  return rows


def _theory(models, undefended):
  """Compare the likelihood ratios of the undefended references with the models'."""
  if undefended is None or len(models) < 3:
    return None  # some record lacks references trained with it, or without it
  audited = models.data.audited
  losses = [-side.signals().phi[:, audited, 0] for side in (undefended, models)]
  return likelihood_ratios.theory_report(
    losses[0], models.members[:, audited], losses[1], fixed=True
  )


def _shown(value: float | None) -> str:
  return "none" if value is None else f"{value:.4f}"


def show(result: dict) -> None:
  """Print the verdict and the metrics of attacks and utility."""
  verdict = result["verdict"]
  print(f"{verdict['level'].replace('_', ' ')}: {verdict['headline']}")
  persons = f", {result['num_audited']:,} persons" if "num_groups" in result else ""
  print(
    f"{result['num_models']} GANs, {result['defense']}, "
    f"{result['generator_steps']} generator steps each{persons}"
  )
  for name, row in result["attacks"].items():
    low, high = row["auc_ci"]
    print(f"  {name:36}AUC {row['auc']:.4f} [{low:.4f}, {high:.4f}]")
  for row in result["generator"]["adaptive"]:
    low, high = row["auc_ci"]
    references = row["references"].replace("natural", "undefended")
    what = f"{row['query']} query, {references} references"
    print(f"  {what:36}AUC {row['auc']:.4f} [{low:.4f}, {high:.4f}]")
  for row in result["generator"]["utility"]:
    value, real = _shown(row["value"]), _shown(row["real"])
    print(f"  {row['name']:36}{value} (real records {real})")
  for name, row in (result["generator"].get("columns") or {}).items():
    correlation, rmse = _shown(row["correlation"]), _shown(row["rmse"])
    print(f"  {name:36}correlation {correlation}, RMSE {rmse}")
  for name, reason in result["not_run"].items():
    print(f"  not run: {name}: {reason}")


JOB = job.Job("gan", __doc__, GanSettings, run, show, needs=job.REPORT_NEEDS)
