import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mixdef.metrics import roc, roc_plot


@pytest.fixture
def curves():
  rng = np.random.default_rng(0)
  members = rng.random((3, 400)) < 0.5
  scores = rng.normal(size=members.shape)
  return {"strong": (scores + 2 * members, members), "weak": (scores[0], members[0])}


def test_png_is_written(curves, tmp_path):
  roc_plot(curves, tmp_path / "roc.png")
  assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_svg_names_attacks_auc_and_resolution(curves, tmp_path):
  roc_plot(curves, tmp_path / "roc.svg")
  text = (tmp_path / "roc.svg").read_text()
  ElementTree.fromstring(text)
  for name, pair in curves.items():
    assert f"{name} (AUC {roc.auc(*pair):.3f})" in text
  assert "not resolvable" in text


def test_legend_is_outside_the_axes_and_equal_curves_look_different(curves, tmp_path):
  roc_plot({"one": curves["weak"], "two": curves["weak"]}, tmp_path / "roc.svg")
  svg = "{http://www.w3.org/2000/svg}"
  root = ElementTree.parse(tmp_path / "roc.svg").getroot()
  groups = {group.get("id"): group for group in root.iter(f"{svg}g")}
  assert groups["axes_1"].find(f".//{svg}g[@id='legend_1']") is None
  lines = [
    group.find(f"{svg}path")
    for name, group in groups.items()
    if name and name.startswith("line2d") and group.find(f"{svg}path") is not None
  ]
  longest = max(len(line.get("d")) for line in lines)
  one, two = (line for line in lines if len(line.get("d")) == longest)
  assert one.get("d") == two.get("d")
  assert "dasharray" not in one.get("style")
  assert "dasharray" in two.get("style")


def test_global_matplotlib_state_is_untouched(curves, tmp_path):
  import matplotlib.pyplot as plt

  before = plt.get_fignums()
  roc_plot(curves, tmp_path / "roc.png")
  assert plt.get_fignums() == before


def test_unusable_calls_are_refused(curves, tmp_path):
  with pytest.raises(ValueError, match=r"roc\.pdf"):
    roc_plot(curves, tmp_path / "roc.pdf")
  with pytest.raises(ValueError, match="no curve"):
    roc_plot({}, tmp_path / "roc.png")
