"""What tests of defenses share."""

import pytest
from absl import logging


@pytest.fixture
def warnings(monkeypatch):
  """What was logged, as text."""
  said = []
  monkeypatch.setattr(
    logging, "warning", lambda message, *args: said.append(message % args)
  )
  return said
