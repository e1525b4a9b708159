"""Progress with an estimate of the time left: a bar on a terminal, lines elsewhere."""

import sys
import time

from absl import logging

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
  """Count work towards a total and show it.

  Args:
    total: units of work.
    unit: what one is, for example "epoch".
    shown: False keeps silent.
  """

  def __init__(self, total: int, *, unit: str, shown: bool):
    self._total, self._unit, self._shown = total, unit, shown
    self._done, self._at_start = 0, 0
    self._started = self._last_line = time.monotonic()
    self._bar = None
    if shown and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=total, unit=unit, dynamic_ncols=True)

  def resume(self, done: int) -> None:
    """Start from work done in an earlier run; it does not enter the estimate."""
    self._done += done
    self._at_start += done
    if self._bar:
      self._bar.initial = self._done
      self._bar.update(done)

  def advance(self, units: int, **figures: float) -> None:
    """Add finished work and show the latest figures."""
    self._done += units
    if self._bar:
      self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
      self._bar.update(units)
      return
    now = time.monotonic()
    finished = self._done >= self._total
    if self._shown and (finished or now - self._last_line > _SECONDS_BETWEEN_LINES):
      self._last_line = now
      rate = (now - self._started) / max(self._done - self._at_start, 1)
      left = rate * (self._total - self._done)
      words = "".join(f"{name} {value:.4g}, " for name, value in figures.items())
      logging.info(
        "%d/%d %ss, %sabout %.0f s left",
        *(self._done, self._total, self._unit, words, left),
      )

  def close(self) -> None:
    """Leave the bar on the screen as it is."""
    if self._bar:
      self._bar.close()
