"""Every Python block of the documents runs as printed."""

import importlib.util
import json
import pathlib
import re

import pytest

from mixdef import attacks, data, defenses
from mixdef.auditing import CANARIES

ROOT = pathlib.Path(__file__).parents[1]
NOTES = [
  ROOT / "BUILD_NOTES.md",
  *(ROOT / "docs" / f"{name}.md" for name in ("decisions", "deviations", "limits")),
  *sorted((ROOT / "docs" / "results").glob("*.md")),
]
DOCUMENTS = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {*NOTES})]
SLOW = pytest.mark.slow  # three trainings of GANs
EVERY = {**defenses.CATALOGUE, **defenses.RECIPES}
AUDITED = {"audit_arrays.md": "high", "audit_your_model.md": "high"}


@pytest.mark.slow
@pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, id=path.name, marks=SLOW if path.name == "generative.md" else ())
    for path in DOCUMENTS
  ],
)
def test_python_blocks_run(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
  assert blocks
  space = {"__name__": "__main__"}
  for block in blocks:
    exec(compile(block, str(path), "exec"), space)
  if path.name in AUDITED:
    report = space["result"].report
    assert report["verdict"]["level"] == AUDITED[path.name]
    assert not report["not_run"]
    assert [page.name for page in tmp_path.rglob("*.html")] == ["report.html"]
  if path.name == "write_a_defense.md":
    assert space["undefended"] > 0.7
    assert space["flooded"] < space["undefended"] - 0.02


@pytest.mark.parametrize(
  "path", [*DOCUMENTS, *NOTES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_to_files(path):
  links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
  assert [link for link in links if not (path.parent / link).exists()] == []


def test_readme_opens_with_exactly_two_commands():
  before_sections = (ROOT / "README.md").read_text().split("\n## ")[0]
  assert len(re.findall(r"```bash\n", before_sections)) == 2


def test_readme_names_every_attack_and_every_kind_of_canary():
  words = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
  assert {*attacks.CATALOGUE, *CANARIES} <= words


def test_readme_names_every_defense_and_every_data_set():
  words = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
  assert {*EVERY, *data.CATALOGUE} <= words


def test_the_page_of_defenses_is_what_its_script_writes():
  path = ROOT / "docs" / "make_defenses.py"
  spec = importlib.util.spec_from_file_location("make_defenses", path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  costs = json.loads((ROOT / "docs" / "defense_costs.json").read_text())
  of_gans = {n for n, make in defenses.CATALOGUE.items() if "critic" in make().traits}
  measured = set(defenses.CATALOGUE) - of_gans
  assert set(costs) == measured, "bench.py --suite=defenses, again"
  assert (ROOT / "docs" / "defenses.md").read_text() == script.page(costs)
