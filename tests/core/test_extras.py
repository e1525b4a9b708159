import importlib.util

import pytest

from mixdef.core import extras


@pytest.fixture
def bare(monkeypatch):
  """Make optional packages look as if they were not installed."""
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name in extras._EXTRAS else found
  )


def test_a_missing_package_is_named_with_its_extra(bare):
  extras.require()
  for package, extra in (("matplotlib", "report"), ("PIL", "images")):
    with pytest.raises(ModuleNotFoundError, match=rf"{package} .*'mixdef\[{extra}\]'"):
      extras.require(package)


def test_a_job_that_needs_it_is_refused_before_it_writes(bare, tmp_path, capsys):
  from mixdef.cli import job, lira

  with pytest.raises(SystemExit) as ended:
    job.main(lira.JOB, ["--quick", f"--out={tmp_path / 'run'}"])
  assert ended.value.code == 2
  assert capsys.readouterr().err == (
    "lira: matplotlib is not installed: pip install 'mixdef[report]'\n"
  )
  assert not (tmp_path / "run").exists()
