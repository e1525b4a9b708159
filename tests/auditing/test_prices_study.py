"""The study of prices: who counts as exposed, its negative control, and a small run."""

import importlib.util
import pathlib
import types

import numpy as np
import pytest
from absl import flags

import mixdef

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "prices.py"
BEST = "shadows:64", "lira_online"


@pytest.fixture(scope="module")
def study():
  spec = importlib.util.spec_from_file_location("prices_study", PATH)
  script = importlib.util.module_from_spec(spec)
  before = set(flags.FLAGS)
  spec.loader.exec_module(script)
  yield script
  for name in set(flags.FLAGS) - before:  # they are also those of jobs
    delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def found():
  """Return two releases, and scores that separate half of the members."""
  rng, releases, scores = np.random.default_rng(0), [], []
  for number in range(2):
    members = np.arange(4000) % 2 == 0
    exposed = np.arange(4000) % 4 == 0
    run = types.SimpleNamespace(members=members)
    population = np.arange(4000) % 8 == 1
    releases.append(
      types.SimpleNamespace(number=number, run=run, population=population)
    )
    score = rng.normal(size=4000) + 10 * exposed
    score[population] = 100  # must not count
    random = rng.normal(size=4000)
    rows = {("free", "lt_iqr"): random, BEST: score}
    scores.append({key: (values, 1.0) for key, values in rows.items()})
  return releases, scores


def test_the_exposed_are_members_above_nearly_all_of_the_hold_out(study, found):
  results, base = study.evaluated(*found)
  np.testing.assert_allclose(base, 0.5, atol=0.005)
  for ranked, best in zip(results["free", "lt_iqr"], results[BEST], strict=True):
    assert best["precision"] == 1
    assert ranked["precision"] < 0.8
    assert set(ranked) == {"precision", "cost"}  # a ranking has no ROC
    assert best["TPR at 1%"] == pytest.approx(0.5, abs=0.02)
    assert best["named"] == pytest.approx(1000, abs=100)


def test_nothing_is_found_if_membership_is_permuted(study, found):
  results, _ = study.evaluated(*found, permuted=True)
  for one in results[BEST]:
    assert one["AUC"] == pytest.approx(0.5, abs=0.05)
    assert one["named"] < 2
    assert one["shown"] == 0


@pytest.mark.slow
@pytest.mark.heavy
def test_the_study_runs_and_resumes(study, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(study, "_OUT", types.SimpleNamespace(value=str(tmp_path)))
  monkeypatch.setattr(study, "_DATASET", types.SimpleNamespace(value="digits"))
  study.main([])
  first = capsys.readouterr().out
  monkeypatch.setattr(mixdef.attacks, "quantile_network", None)  # nothing is run again
  study.main([])
  assert capsys.readouterr().out == first
  assert f"| {' | '.join(BEST)} |" in first
  assert "| free | lt_iqr |" in first
