"""Pictures do not depend on the user's own settings of matplotlib."""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from mixdef.metrics import drawing, roc_plot

CURVES = {"gap": (np.arange(20.0), np.arange(20) % 2 == 0)}
ODD = {"text.usetex": True, "axes.grid": True, "font.size": 40, "savefig.dpi": 7}


def test_a_picture_is_the_same_under_any_matplotlibrc(tmp_path):
  roc_plot(CURVES, tmp_path / "plain.png")
  with matplotlib.rc_context(ODD):
    roc_plot(CURVES, tmp_path / "odd.png")
    assert matplotlib.rcParams["font.size"] == 40  # the user's settings are back
  plain, odd = ((tmp_path / f"{name}.png").read_bytes() for name in ("plain", "odd"))
  assert plain == odd


def test_a_style_is_laid_over_the_defaults():
  with matplotlib.rc_context(ODD), drawing.plainly({"font.size": 3}):
    assert matplotlib.rcParams["font.size"] == 3
    assert not matplotlib.rcParams["text.usetex"]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["MPLBACKEND", "MATPLOTLIBRC"])
def test_settings_that_matplotlib_cannot_read_are_left_out(tmp_path, broken):
  rc = tmp_path / "style"
  rc.write_bytes(b"text.usetex: \xff\xfe True\n")
  value = "nonsense" if broken == "MPLBACKEND" else str(rc)
  script = f"""
import os, runpy
with runpy.run_path({drawing.__file__!r})["plainly"]():
  from matplotlib.figure import Figure
  Figure().savefig("made.png")
assert os.environ[{broken!r}] == {value!r}
"""
  environment = {**os.environ, broken: value, "MPLCONFIGDIR": str(tmp_path)}
  subprocess.run(
    [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True
  )
  assert (tmp_path / "made.png").exists()
