import logging

import pytest
from training_cases import halves, train

from mixdef.training import progress


@pytest.fixture
def clock(monkeypatch):
  """Return a clock that the test sets, in seconds."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def lines(caplog):
  return [record.getMessage() for record in caplog.records]


def test_time_left_excludes_compiling(clock, caplog):
  caplog.set_level(logging.INFO, logger="absl")
  shown = progress.Progress(100, unit="epoch", shown=True)
  clock[0] = 60  # the first epoch compiles
  shown.advance(1)
  clock[0] = 80
  shown.advance(10)
  clock[0] = 258
  shown.advance(89)
  assert lines(caplog) == [
    "1/100 epochs, time left not known yet",
    "11/100 epochs, about 178 s left",  # 2 s an epoch; with compiling it were 647 s
    "100/100 epochs, done",
  ]


def test_epochs_of_several_models_are_called_so(caplog):
  caplog.set_level(logging.INFO, logger="absl")
  how = {"epochs": 2, "strategy": "loop", "progress": True}
  train(members=halves(3), **how)
  train(members=halves(1), **how)
  found = [line.partition(",")[0] for line in lines(caplog) if "epochs," in line]
  assert found[-2:] == ["6/6 model epochs", "2/2 epochs"]


def test_work_of_an_earlier_run_does_not_enter_the_estimate(clock, caplog):
  caplog.set_level(logging.INFO, logger="absl")
  shown = progress.Progress(100, unit="epoch", shown=True)
  shown.resume(40)
  clock[0] = 30
  shown.advance(1, loss=0.5)
  shown.resume(9)
  clock[0] = 50
  shown.advance(10)
  assert lines(caplog) == [
    "41/100 epochs, loss 0.5, time left not known yet",
    "60/100 epochs, about 80 s left",
  ]
