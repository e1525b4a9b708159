"""The notebooks run from top to bottom and show what they say."""

import pathlib
import re

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own, in another process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  text = "".join(
    output.get("text", "")
    for cell in notebook.cells
    for output in cell.get("outputs", ())
  )
  CHECKS[path.stem](text, tmp_path)


def composed(text, folder):
  aucs = dict(re.findall(r"^(\S+).*LiRA AUC (\d\.\d+)", text, re.MULTILINE))
  assert float(aucs["none"]) > 0.55  # the undefended models leak
  assert float(aucs["dp_sgd(noise_multiplier=1.0)"]) < float(aucs["none"])
  assert (folder / "roc.png").exists()


def both_leak(text, folder):
  found = re.findall(
    r"^(\w+) +classifier: LiRA AUC (\S+) .*, LiRA AUC (\S+)$", text, re.MULTILINE
  )
  classifiers, gans = ({row[0]: float(row[n]) for row in found} for n in (1, 2))
  assert list(gans) == ["none", "mixup"]
  assert min(classifiers["none"], gans["none"]) > 0.55
  assert gans["mixup"] < gans["none"]
  assert (folder / "samples.png").exists()


CHECKS = {"compose_defenses": composed, "classifier_and_gan": both_leak}
