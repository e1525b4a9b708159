"""The table of `--suite=cpu`: one row per work, from the times of its cases."""

import math
import statistics
from typing import Any

from mixdef.cli.benchmarks.peers import RECIPES
from mixdef.cli.benchmarks.timing import milliseconds, spread
from mixdef.cli.benchmarks.works import EPOCHS, RECORDS

OURS, PEAK = "ours", "peak"


def row_of(
  title: str,
  seconds: dict[tuple[str, str], list[float]],
  *,
  model_steps: int,
  batch: int,
  step_flops: float,
  peak_flops: float,
) -> dict:
  """Create the row of one work.

  Args:
    title: title of the work.
    seconds: {(group, variant): seconds of each round}. Groups are "ours", PyTorch's
      recipes, and "peak"; a variant that was dropped from rounds is reported, but never
      as the best.
    model_steps: number of models times number of steps per round.
    batch: number of records per step.
    step_flops: floating-point operations of one step of one model.
    peak_flops: floating-point operations of the "peak" case.

  Returns:
    Milliseconds per step and model on all cores, as [min, median, max]: `ours` (for the
    fastest `strategy`), `torch_default`, `torch_tuned` and `torch_bf16` (of the
    faster layout; None without PyTorch), and all `variants`, the fastest first.
    `ratio_default` and so on are PyTorch's median over ours; `ratio_ranges` [min, max]
    are over paired rounds. `peak_fraction` is our rate over the fastest round of
    "peak".
  """
  fastest_first = sorted(seconds.items(), key=_slowness)
  timed = {group for group, _ in seconds}
  variants = {
    group: {variant: times for (own, variant), times in fastest_first if own == group}
    for group in (OURS, *RECIPES, PEAK)
    if group in timed
  }
  best = {group: next(iter(own.values())) for group, own in variants.items()}
  strategy, ours = next(iter(variants[OURS])), best[OURS]
  row: dict[str, Any] = {"work": title, "strategy": strategy}
  row["ours"] = milliseconds(ours, model_steps)
  ranges = {}
  for recipe in RECIPES:
    row[f"torch_{recipe}"] = row[f"ratio_{recipe}"] = None
    if recipe in best:
      theirs = best[recipe]
      row[f"torch_{recipe}"] = milliseconds(theirs, model_steps)
      ratio = statistics.median(theirs) / statistics.median(ours)
      row[f"ratio_{recipe}"] = round(ratio, 3)
      pairs = [their / own for their, own in zip(theirs, ours, strict=True)]
      ranges[recipe] = [round(min(pairs), 3), round(max(pairs), 3)]
  peak = peak_flops / min(best[PEAK])
  per_step = statistics.median(ours) / model_steps
  shadow_seconds = per_step * math.ceil(RECORDS / batch) * EPOCHS
  return {
    **row,
    "ratio_ranges": ranges,
    "peak_fraction": round(step_flops / per_step / peak, 3),
    "peak_gflops": round(peak / 1e9, 1),
    "shadows_per_minute": round(60 / shadow_seconds, 3),
    "variants": {
      group: {name: milliseconds(times, model_steps) for name, times in own.items()}
      for group, own in variants.items()
      if group != PEAK
    },
  }


def _slowness(case):
  """Sort cases by the number of rounds (most first), then by their median time."""
  _, times = case
  return -len(times), statistics.median(times)


def show(result: dict) -> None:
  """Print all variants of all works as one table."""
  about = result["about"]
  print(
    f"{about['models']} models, batch {about['batch_size']}; ms per step and "
    "model, all cores together: median (range)\n"
    "ratio: PyTorch's median (eager, not compiled) over our best (range over the "
    "rounds)\n"
    f"a shadow: {about['epochs']} epochs of {about['records']:,} records\n"
  )
  for row in result["rows"]:
    print(
      f"{row['work']}: {row['peak_fraction']:.0%} of {row['peak_gflops']:.0f} GFLOP/s, "
      f"{row['shadows_per_minute']:.3g} shadows per minute"
    )
    for group, variants in row["variants"].items():
      for place, (variant, times) in enumerate(variants.items()):
        ratio = "" if place or group == OURS else _ratio(row, group)
        side = group if group == OURS else f"torch {group}"
        print(f"  {f'{side}, {variant}':30}{spread(times):28}{ratio}".rstrip())
  if about["note"]:
    print(about["note"])


def _ratio(row, recipe):
  low, high = row["ratio_ranges"][recipe]
  return f"{row[f'ratio_{recipe}']:.2f} ({low:.2f} to {high:.2f})"
