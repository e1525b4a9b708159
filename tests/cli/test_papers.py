import importlib
import pkgutil

import pytest

from mixdef.cli import papers
from mixdef.cli.papers import STUDIES
from mixdef.core.grids import read_grids

NAMES = [module.name for module in pkgutil.iter_modules(papers.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_every_paper_is_offered_and_gives_its_command_and_cost(name):
  paper = importlib.import_module(f"mixdef.cli.papers.{name}")
  offered = {**papers.CLASSIFIERS, **papers.GANS, **papers.STUDIES}
  assert set(offered) == set(NAMES)
  content, flag = ("DEFENSES", "study") if name in STUDIES else ("SETTINGS", "protocol")
  assert offered[name] is getattr(paper, content)
  assert "\nCost and result: " in paper.__doc__
  commands = [line for line in paper.__doc__.splitlines() if line[:9] == "  mixdef "]
  assert commands
  for command in commands:
    _, job, *flags = command.split()
    assert f"--{flag}={name}" in flags
    kind = importlib.import_module(f"mixdef.cli.{job}").JOB.settings
    given = dict(one.removeprefix("--").split("=", 1) for one in flags)
    given.pop("protocol", None)
    values = {key: int(v) if v.isdecimal() else v for key, v in given.items()}
    kind(**{**getattr(paper, "SETTINGS", {}), **values})


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_study_is_a_grid_that_can_be_built(name):
  grids = read_grids("; ".join(STUDIES[name]))
  texts = [text for grid in grids for text in grid.texts]
  assert "none" in texts
  assert len(texts) == len(set(texts))
