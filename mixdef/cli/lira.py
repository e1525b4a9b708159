"""Train shadow models, attack each using the others, and report their leakage.

  mixdef lira --dataset=digits --defense=adamixup --num_shadows=16

Every shadow model trains on a random half of the records with the same defense, and is
the attacked model once. Writes result.json, scores.npz (scores [S,N] of each attack,
keep [S,N], and the ids of the N records in their data set) and roc.png. A second run
with the same --out resumes; with more shadows, it trains the missing ones. On several
hosts that share --out:

  mixdef lira --out=/shared/run --coordinator=auto ...
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from typing import Any

from etils import epy

from mixdef.cli import job
from mixdef.cli.settings import HostSettings

with epy.lazy_imports():
  import jax
  import numpy as np

  import mixdef
  from mixdef import auditing, metrics
  from mixdef.core import files

_FAMILIES = ("threshold", "reference")
_DRAWN = 8  # attacks in the plot, the strongest first


@dataclasses.dataclass(frozen=True)
class LiraSettings(HostSettings):
  """Settings of shadow models and their attacks."""

  mirror: bool = False
  keep_params: bool = True

  extendable = ("num_shadows",)

  def finished(self, result: dict) -> bool:
    """Return whether a result has as many shadows, stored if `keep_params`."""
    shadows = result["num_shadows"] + len(result["diverged"])
    return shadows == self.shadows and result["keep_params"] >= self.keep_params


def run(settings: LiraSettings, folder: pathlib.Path) -> dict:
  """Train shadow models and attack them; returns the content of result.json."""
  data = settings.subsample(settings.load(), halves=2)
  views = mixdef.attacks.VIEWS["mirror" if settings.mirror else "none"]
  queries = {"population": data.test, "views": views()}
  trained = mixdef.fit_many(
    settings.make_learner(data),
    data,
    signals=queries,
    keep_params=settings.keep_params,
    out=folder,
    **settings.on_halves(data),
  )
  if jax.process_index():
    return {}  # the first process reports
  shadows = trained.converged()
  signals = shadows.signals(**queries)
  every = mixdef.attacks.ATTACKS
  chosen = [name for name in every.on_signals if every.family(name) in _FAMILIES]
  found = auditing.run_attacks(chosen, signals)
  arrays: dict[str, Any] = {
    "ids": data.ids,
    "labels": data.y,
    "keep": signals.members,
    **found.scores,
  }
  with files.whole_file(folder / "scores.npz") as file:
    np.savez_compressed(file, **arrays)
  ranked = metrics.strongest_first(found.metrics)
  metrics.roc_plot(
    {name: (found.scores[name], signals.members) for name in ranked[:_DRAWN]},
    folder / "roc.png",
  )
  return {
    **auditing.accuracies(signals),
    **shadows.guarantee,
    "defense": settings.defended_by,
    "dataset": data.name,
    "num_records": len(data),
    "design": "bernoulli",
    "references": "trained with the target's defense",
    "fits": _counts(signals),
    "num_shadows": len(shadows),
    "diverged": np.flatnonzero(trained.diverged).tolist(),
    "strategy": trained.strategy,
    "seconds": round(trained.seconds, 2),
    "shadows_per_minute": round(trained.per_minute, 2),
    "keep_params": settings.keep_params,
    "attacks": found.metrics,
    "not_run": found.not_run,
  }


def _counts(signals: mixdef.Signals) -> dict[str, int]:
  """Count over all targets how often each kind of fit of LiRA was used."""
  total: collections.Counter[str] = collections.Counter()
  for target in range(len(signals.members)):
    total.update(mixdef.attacks.lira_coverage(signals, target=target))
  return dict(total)


def show(result: dict) -> None:
  """Print the metrics of the attacks as a table."""
  print(
    f"{result['dataset']}, {result['num_shadows']} shadows, {result['defense']}: train "
    f"{result['train_accuracy']:.4f}, test {result['test_accuracy']:.4f}, "
    f"{result['shadows_per_minute']:.1f} shadows per minute ({result['strategy']})"
  )
  if result["diverged"]:
    print(f"excluded because they diverged: shadows {result['diverged']}")
  pairs = next(iter(result["attacks"].values()))
  print(
    f"{pairs['num_members']} members and {pairs['num_nonmembers']} non-members over "
    f"all targets, {result['design']} subsets, references "
    f"{result['references']}; the best of {len(result['attacks'])} attacks is a "
    f"selection"
  )
  print(f"{'attack':24}{'AUC [95%]':24}{'balanced':10}TPR at 0.1% FPR [95%]")
  for name, row in result["attacks"].items():
    low, high = row["auc_ci"]
    tpr = row["tpr"]["0.001"]
    rate = "not resolvable"
    if tpr["resolvable"]:
      rate = f"{tpr['value']:.4f} [{tpr['ci'][0]:.4f}, {tpr['ci'][1]:.4f}]"
    auc = f"{row['auc']:.4f} [{low:.4f}, {high:.4f}]"
    decided = row["balanced_accuracy"]
    balanced = "none" if decided is None else f"{decided:.4f}"
    print(f"{name:24}{auc:24}{balanced:10}{rate}")
  for name, reason in result["not_run"].items():
    print(f"{name:24}not run: {reason}")


JOB = job.Job("lira", __doc__, LiraSettings, run, show, needs=("matplotlib",))
