"""One decorator and one file add a thing; its name works wherever names do."""

import sys
import textwrap

import numpy as np
import pytest

import mixdef
from mixdef.attacks import ATTACKS, Signals
from mixdef.core import registry
from mixdef.core.grids import read_grids

MINE = '''
import numpy as np
import mixdef
from mixdef import Dataset, Defense
from mixdef.models import mlp


@mixdef.defense
def flooding(level=0.1):
  return Defense("", loss=lambda losses, *rest: abs(losses - level) + level)


@mixdef.attack(family="threshold", reads="signals", note="a threshold of mine")
def largest(signals, *, target, sign=1.0):
  """Score a record by its largest log-probability."""
  return sign * np.asarray(signals.phi[target]).mean(-1)


@mixdef.dataset
def tiny(data_dir):
  x = np.random.default_rng(0).random((40, 3), np.float32)
  return Dataset.from_arrays(x, np.arange(40) % 2, num_classes=2)


@mixdef.model
def narrow(*, num_classes):
  return mlp(4, num_classes=num_classes)


def bare():
  return Defense("bare")


three = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """A module of the user's in the current folder."""
  (tmp_path / "my_module.py").write_text(MINE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.delitem(sys.modules, "my_module", raising=False)
  yield
  sys.modules.pop("my_module", None)


def test_a_defense_of_a_module_is_read_and_written_by_its_text(mine):
  text = "my_module:flooding(0.3)|mixup"
  made = mixdef.parse(text)
  assert str(made) == "my_module:flooding(level=0.3)|mixup"
  assert str(mixdef.parse(str(made))) == str(made)
  assert [part.name for part in made.parts] == ["flooding", "mixup"]
  # Once imported it has its plain name as well.
  assert mixdef.flooding(0.3).text == "flooding(level=0.3)"
  (grid,) = read_grids("my_module:flooding([0.1, 0.2])")
  assert grid.texts[1] == "my_module:flooding(level=0.2)"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("my_module:absent", "my_module has no defense named absent"),
    ("my_module:three", "my_module has no defense named three"),
    ("no_such_module:flooding", "'no_such_module' cannot be imported: ModuleNotFound"),
    ("my_module:bare", "my_module:bare has no text .*: decorate it with @defense"),
    ("my_module:tiny('x')", "returns a Dataset, not a defense"),
    ("my_module:flooding(depth=3)", r"my_module:flooding\(depth=3\): .*'depth'"),
    ("my_module:flooding(", "cannot read"),
  ],
)
def test_what_a_module_lacks_is_one_line(mine, text, message):
  with pytest.raises(ValueError, match=message) as raised:
    mixdef.parse(text)
  assert "\n" not in str(raised.value)


def test_a_module_that_fails_is_named_with_its_error(mine, tmp_path):
  (tmp_path / "broken.py").write_text("1 / 0\n")
  with pytest.raises(ValueError, match=r"module .broken. .*: ZeroDivisionError: "):
    mixdef.parse("broken:flooding")


def test_an_attack_of_ones_own_enters_the_audit(mine):
  rng = np.random.default_rng(0)
  members = rng.random((6, 300)) < 0.5
  signals = Signals.from_phi(
    rng.normal(size=(6, 300, 1)) + 2.0 * members[..., None], members
  )
  named = mixdef.audit(signals, attacks=["gap", "my_module:largest"]).report
  given = sys.modules["my_module"].largest
  passed = mixdef.audit(signals, attacks=[given, "gap"]).report
  row = named["attacks"]["my_module:largest"]
  assert row["auc"] == passed["attacks"]["largest"]["auc"] > 0.85
  assert (row["family"], row["note"]) == ("threshold", "a threshold of mine")
  assert row["about"] == "Score a record by its largest log-probability."
  turned = mixdef.audit(signals, attacks="my_module:largest(sign=-1.0)").report
  assert turned["attacks"]["my_module:largest(sign=-1.0)"]["auc"] < 0.2


def test_changed_code_of_ones_own_is_not_answered_from_earlier_results(mine, tmp_path):
  from mixdef.cli.settings import Settings

  members = mixdef.subsets(60, 4, seed=0)
  phi = np.random.default_rng(0).normal(size=(4, 60, 1))
  signals = Signals.from_phi(phi + members[..., None], members)
  settings = {"defense": "my_module:flooding(0.3)"}

  def outcome():
    how = {"attacks": "my_module:largest", "out": tmp_path / "audit"}
    report = mixdef.audit(signals, **how).report
    inputs = Settings(**settings).inputs()
    return report["strongest"]["auc"], inputs["content of my_module"]

  first, again = outcome(), outcome()
  assert first == again
  turned = MINE.replace("return sign *", "return -sign *")
  (tmp_path / "my_module.py").write_text(turned + "\n")
  sys.modules.pop("my_module")
  auc, content = outcome()
  assert auc == pytest.approx(1 - first[0])
  assert content != first[1]


def test_an_attack_without_the_decorator_is_told_of_it():
  def bare(signals, *, target):
    return signals.phi[target]

  with pytest.raises(ValueError, match=r"or @mixdef\.attack.* above a custom function"):
    ATTACKS.names([bare])
  decorated = mixdef.attack(family="mine", reads="signals")(bare)
  assert ATTACKS.names([decorated]) == ["bare"]
  assert ATTACKS.families["mine"] == [bare]


def test_data_sets_and_networks_of_a_module(mine):
  from mixdef.cli import texts

  assert len(mixdef.load("my_module:tiny")) == 40
  assert mixdef.load("tiny").num_classes == 2
  (network,) = texts.networks("my_module:narrow", num_classes=3)
  assert (network.widths, network.num_classes) == ((4,), 3)
  with pytest.raises(ValueError, match=r"os:getcwd failed .*returns a mixdef.Dataset"):
    mixdef.load("os:getcwd")
  with pytest.raises(ValueError, match="os:fspath returned a str: write a function"):
    mixdef.load("os:fspath")


@pytest.mark.parametrize("of", ["defense", "attack", "dataset", "model", "learner"])
def test_a_second_factory_of_a_name_is_refused(of, tmp_path, monkeypatch, mine):
  taken = {
    "defense": "@mixdef.defense\ndef mixup(): ...",
    "attack": "@mixdef.attack(family='x', reads='signals')\ndef rmia(): ...",
    "dataset": "@mixdef.dataset\ndef digits(): ...",
    "model": "@mixdef.model\ndef mlp(): ...",
    "learner": "@mixdef.learner\ndef ban_mpr(): ...",
  }
  before = {name: dict(one) for name, one in _registries()}
  (tmp_path / "second.py").write_text(f"import mixdef\n{taken[of]}\n")
  with pytest.raises(ValueError, match=r"is already registered by mixdef.*rename"):
    registry.import_module("second")
  assert {name: dict(one) for name, one in _registries()} == before


def test_a_cell_that_runs_twice_replaces_its_own_factory():
  cell = textwrap.dedent("""
    import mixdef
    @mixdef.defense
    def twice(level=LEVEL):
      return mixdef.Defense("", loss=lambda losses, *rest: losses)
  """)
  for level in (1, 2):
    exec(cell.replace("LEVEL", str(level)), {"__name__": "__main__"})
  assert mixdef.twice.__signature__.parameters["level"].default == 2


def test_aliases_and_recipes_are_names_too():
  with pytest.raises(
    ValueError, match=r"'l2' is already registered by mixdef\.defenses"
  ):
    registry.DEFENSES.register(test_aliases_and_recipes_are_names_too, name="l2")
  assert str(mixdef.parse("ccql")) == "ccl(form='ccql')"


def test_plugins_are_imported_and_a_broken_one_is_named(mine, monkeypatch, caplog):
  class Point:
    name, module, dist = "mine", "my_module", None

  class Broken(Point):
    name, module = "theirs", "no_such_module"

  monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [Point])
  registry.load_plugins()
  assert str(mixdef.parse("flooding(0.2)")) == "flooding(level=0.2)"
  monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [Broken])
  registry.load_plugins()
  assert "plugin 'theirs' of a package is skipped: module 'no_such_module'" in (
    caplog.text
  )


def _registries():
  return [(n, r) for n, r in vars(registry).items() if isinstance(r, registry.Registry)]
