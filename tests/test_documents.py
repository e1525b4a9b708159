"""Every Python block of the documents runs as printed."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(path, capsys):
  blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
  assert blocks
  space = {"__name__": "__main__"}
  for block in blocks:
    exec(compile(block, str(path), "exec"), space)
  if path.name == "your_own_model.md":
    assert float(capsys.readouterr().out) > 0.7  # random labels are memorised


def test_readme_opens_with_exactly_two_commands():
  before_sections = (ROOT / "README.md").read_text().split("\n## ")[0]
  assert len(re.findall(r"```bash\n", before_sections)) == 2
