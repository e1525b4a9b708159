"""What the pages of docs/extend add works in the places that they name."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "extend").glob("[a-z]*.md"))
_BLOCK = re.compile(
  r"(?:`(mixdef/[\w/]+\.py)`(?:, with the imports)?:\n\n)?^```python\n(.*?)^```",
  re.DOTALL | re.MULTILINE,
)
NAMES = {
  "attack": "mixdef.attacks.CATALOGUE['median_gap']",
  "data_set": "mixdef.data.CATALOGUE['coins']",
  "defense": "mixdef.defenses.CATALOGUE['flooding']",
  "learner": "mixdef.learners.GANS['lean_gan']",
  "network": "mixdef.models.CATALOGUE['linear']",
  "report_section": "mixdef.core.registry.SECTIONS['agreement']",
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
  """A copy of the package with what every page adds, in its place."""
  folder = tmp_path_factory.mktemp("extended")
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "mixdef", folder / "mixdef", ignore=ignored)
  for page in PAGES:
    for place, code in _BLOCK.findall(page.read_text()):
      if not place:
        continue
      file = folder / place
      if file.exists():
        code += file.read_text().split('"""', 2)[2]
      file.write_text(code)
  return folder


def run(folder, code):
  env = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_adds_one_short_file_and_one_import_line(page):
  placed = [(place, code) for place, code in _BLOCK.findall(page.read_text()) if place]
  (file, code), (package, line) = placed
  assert not (ROOT / file).exists()
  assert (ROOT / package).exists()
  assert len(code.splitlines()) <= 30
  assert len(line.splitlines()) == 1


def test_every_name_is_registered(extended):
  assert set(NAMES) == {page.stem for page in PAGES}
  run(extended, "import mixdef\n" + "\n".join(NAMES.values()))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_rest_of_a_page_runs(page, extended):
  blocks = [code for place, code in _BLOCK.findall(page.read_text()) if not place]
  assert blocks
  run(extended, "\n".join(blocks))
