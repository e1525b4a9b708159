"""Every Python block of the documents runs as printed."""

import pathlib
import re

import pytest

from mixdef import attacks
from mixdef.auditing import CANARIES

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
AUDITED = {"audit_arrays.md": "high", "audit_your_model.md": "high"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
  links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
  assert [link for link in links if not (path.parent / link).exists()] == []


def test_readme_opens_with_exactly_two_commands():
  before_sections = (ROOT / "README.md").read_text().split("\n## ")[0]
  assert len(re.findall(r"```bash\n", before_sections)) == 2


def test_readme_names_every_attack_and_every_kind_of_canary():
  words = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
  assert {*attacks.CATALOGUE, *CANARIES} <= words
