"""Time cases in turn, round after round, so that drifts affect all of them equally."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import jax

Name = TypeVar("Name", bound=Hashable)

# After this many rounds, a case this many times slower than the best of its group is
# dropped. A single round may contain a stall, so its limit is higher.
_GIVE_UP = {1: 4.0, 2: 2.0}


def interleave(
  cases: Mapping[Name, Callable[[], object]],
  repeats: int,
  *,
  group: Callable[[Name], Hashable] | None = None,
) -> dict[Name, list[float]]:
  """Time every case `repeats` times in turn.

  Args:
    cases: {name: function that does the work}; each is called once before, untimed.
    repeats: number of rounds.
    group: function that returns the group of a case. Cases far slower than the best of
      their group, four times after one round or twice after two, are excluded from
      later rounds. None excludes no case.

  Returns:
    {name: seconds of each round}.
  """
  for run in cases.values():
    jax.block_until_ready(run())
  seconds = {name: [] for name in cases}
  running = list(cases)
  for done in range(1, repeats + 1):
    for name in running:
      start = time.perf_counter()
      jax.block_until_ready(cases[name]())
      seconds[name].append(time.perf_counter() - start)
    if group and done in _GIVE_UP:
      running = _promising(seconds, group, _GIVE_UP[done])
  return seconds


def _promising(seconds, group, limit):
  best: dict[Hashable, float] = {}
  for name, times in seconds.items():
    best[group(name)] = min([*times, best.get(group(name), math.inf)])
  return [
    name for name, times in seconds.items() if min(times) < limit * best[group(name)]
  ]


def milliseconds(times: list[float], per: float = 1) -> list[float]:
  """Return [min, median, max] of the times in seconds / `per`, in milliseconds.

  >>> milliseconds([0.2, 0.1, 0.4], per=10)
  [10.0, 20.0, 40.0]
  """
  three = min(times), statistics.median(times), max(times)
  return [round(1e3 * value / per, 4) for value in three]


def rows_of(work: str, cases: dict, repeats: int, *, per: int = 1, **more) -> list:
  """Time the cases of one work.

  Returns:
    One row per case: `ms`, [min, median, max] of a run divided by `per`, and `ratio`,
    its median over that of the first case.
  """
  seconds = interleave(cases, repeats)
  first = statistics.median(next(iter(seconds.values())))
  rows = []
  for name, times in seconds.items():
    ratio = round(statistics.median(times) / first, 3)
    ms = milliseconds(times, per)
    rows.append({"work": work, "case": name, "ms": ms, "ratio": ratio, **more})
  return rows


def show(result: dict) -> None:
  """Print the rows of `rows_of` as a table."""
  print(f"{'work':30} {'case':28} {'ms: median (range)':28} ratio")
  for row in result["rows"]:
    ms = spread(row["ms"])
    print(f"{row['work']:30} {row['case']:28} {ms:28} {row['ratio']:.3g}")


def spread(times: list[float]) -> str:
  """Write [min, median, max] as a median with its range.

  >>> spread([1.0, 2.0, 4.0])
  '2 (1 to 4)'
  """
  low, middle, high = (f"{v:.3g}" if v < 1000 else f"{v:.0f}" for v in times)
  return f"{middle} ({low} to {high})"
