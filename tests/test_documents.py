"""Every Python block of the documents runs as printed."""

import importlib.util
import json
import pathlib
import re

import pytest

from mixdef import defenses
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
    if path.name != "pitfalls.md"  # prose alone
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


@pytest.mark.parametrize(
  "path",
  [*DOCUMENTS, *NOTES, *sorted((ROOT / "docs" / "extend").glob("*.md"))],
  ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_to_files(path):
  links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
  assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_pitfall_of_a_test_name_is_an_entry_and_the_reverse():
  named = {
    int(number)
    for path in (ROOT / "tests").rglob("test_*.py")
    for numbers in re.findall(
      r"def test_pitfall_(\d+(?:_(?:and_)?\d+)*)_", path.read_text()
    )
    for number in re.findall(r"\d+", numbers)
  }
  page = (ROOT / "docs" / "pitfalls.md").read_text()
  entries = [int(number) for number in re.findall(r"(?m)^- \*\*(\d+)\.\*\* ", page)]
  assert entries == sorted(named)


def test_readme_opens_with_exactly_two_commands():
  before_sections = (ROOT / "README.md").read_text().split("\n## ")[0]
  assert len(re.findall(r"```bash\n", before_sections)) == 2


def test_readme_names_every_kind_of_canary():
  words = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
  assert set(CANARIES) <= words


def test_the_lists_are_what_their_script_writes():
  path = ROOT / "docs" / "make_pages.py"
  spec = importlib.util.spec_from_file_location("make_pages", path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  costs = json.loads((ROOT / "docs" / "defense_costs.json").read_text())
  of_gans = {n for n, make in defenses.CATALOGUE.items() if make().traits.critic}
  measured = set(defenses.CATALOGUE) - of_gans
  assert set(costs) <= measured, "mixdef bench --suite=defenses, again"
  for name, text in script.pages(costs).items():
    assert (ROOT / "docs" / name).read_text() == text, "python docs/make_pages.py"
