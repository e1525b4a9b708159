import numpy as np
import PIL.Image
import pytest

from mixdef.metrics import trade_off_plot


def row(**changes):
  facts = {"dataset": "digits", "family": "none", "test_accuracy": 0.9}
  return {**facts, "auc": 0.7, "auc_ci": (0.68, 0.73), **changes}


def test_it_names_every_family_and_every_data_set(tmp_path):
  path = tmp_path / "plot.svg"
  rows = [row(), row(family="mixup([0.1])", dataset="mnist"), row(test_accuracy=0.8)]
  trade_off_plot(rows, path)
  words = path.read_text()  # glyphs, and what they spell as comments
  for name in ("none", "mixup([0.1])", "digits", "mnist"):
    assert f"<!-- {name} -->" in words


def test_more_families_than_colours_are_told_apart(tmp_path):
  path = tmp_path / "plot.png"
  trade_off_plot([row(family=f"family {i}") for i in range(25)], path)
  assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
  ("lines", "strokes"), [((0, 0, 0, 0), 1), ((0, 0, 1, 1), 2), ((0, 1, 0, 1), 2)]
)
def test_points_of_different_lines_are_not_joined(tmp_path, lines, strokes):
  path = tmp_path / "plot.svg"
  rows = [row(line=line, test_accuracy=i / 10) for i, line in enumerate(lines)]
  trade_off_plot(rows, path)
  in_the_legend = 1
  drawn = path.read_text().count('<g id="LineCollection_')
  assert drawn - in_the_legend == strokes


def test_long_names_do_not_run_off_the_picture(tmp_path):
  path = tmp_path / "plot.png"
  trade_off_plot([row(family=f"{i}" + 70 * "w") for i in range(4)], path)
  with PIL.Image.open(path) as picture:
    pixels = np.asarray(picture.convert("L"))
  assert (pixels[:, [0, -1]] == 255).all()


@pytest.mark.parametrize(
  ("rows", "name", "reason"),
  [([], "plot.png", "no row"), ([row()], "plot.txt", "end the path in .png or .svg")],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, rows, name, reason):
  with pytest.raises(ValueError, match=reason):
    trade_off_plot(rows, tmp_path / name)
