"""Progress with an estimate of the remaining time, shown as a bar or as lines."""

import sys
import time

from absl import logging

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
  """Show progress towards a total: a bar on a terminal, lines elsewhere.

  The first units include compilation, so the remaining time is estimated from the
  following units.

  Args:
    total: total units of work.
    unit: name of a unit, for example "epoch".
    shown: if False, nothing is shown.
  """

  def __init__(self, total: int, *, unit: str, shown: bool):
    self._total, self._unit, self._shown = total, unit, shown
    self._done = 0
    self._paced_from: tuple[float, int] | None = None  # time, and units done by then
    self._last_line = time.monotonic()
    self._bar = None
    if shown and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=total, unit=unit, dynamic_ncols=True, smoothing=0)

  def resume(self, done: int) -> None:
    """Start from work done in an earlier run, which is excluded from the estimate."""
    self._done += done
    if self._paced_from:
      since, before = self._paced_from
      self._paced_from = since, before + done
    if self._bar:
      self._bar.initial += done
      self._bar.update(done)

  def advance(self, units: int, **metrics: float) -> None:
    """Add finished work and show the latest metrics."""
    self._done += units
    now = time.monotonic()
    if self._bar:
      self._bar.set_postfix({k: f"{v:.4g}" for k, v in metrics.items()}, refresh=False)
      self._bar.update(units)
      if not self._paced_from:
        self._bar.unpause()
        self._bar.initial = self._done
    elif self._shown and (
      self._done >= self._total or now - self._last_line > _SECONDS_BETWEEN_LINES
    ):
      self._last_line = now
      words = "".join(f"{name} {value:.4g}, " for name, value in metrics.items())
      logging.info(
        "%d/%d %ss, %s%s",
        self._done,
        self._total,
        self._unit,
        words,
        self._time_left(now),
      )
    if not self._paced_from:
      self._paced_from = now, self._done

  def _time_left(self, now: float) -> str:
    if self._done >= self._total:
      return "done"
    since, before = self._paced_from or (now, self._done)
    if self._done == before:
      return "time left not known yet"
    left = (now - since) / (self._done - before) * (self._total - self._done)
    return f"about {left:.0f} s left"

  def close(self) -> None:
    """Leave the bar on the screen as it is."""
    if self._bar:
      self._bar.close()
