import csv
import json

import pytest

from mixdef.auditing import sweep as engine
from mixdef.cli import job, sweep

SMALL = {"model": "mlp(8)", "epochs": 2, "quick": True, "strategy": "vmap"}
ATTACKS = "gap, loss_threshold, lira_offline"


def settings_of(**options):
  return sweep.SweepSettings(**{**SMALL, "attacks": ATTACKS, **options})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sweep") / "run"
  settings = settings_of(defenses="none; label_smoothing([0.2, 0.6]); mmd")
  return folder, job.execute(settings, folder, sweep.run)


def by_defense(result):
  return {cell["defense"]: cell for cell in result["cells"]}


@pytest.mark.slow
def test_every_cell_has_its_results_or_the_reason(swept):
  _, result = swept
  cells = by_defense(result)
  smoothed = ["label_smoothing(epsilon=0.2)", "label_smoothing(epsilon=0.6)"]
  assert list(cells) == ["none", *smoothed, "mmd"]
  for name in ("none", *smoothed):
    assert set(cells[name]["attacks"]) == {"gap", "loss_threshold", "lira_offline"}
    assert 0 <= cells[name]["test_accuracy"] <= 1
  assert "--auxiliary=500" in cells["mmd"]["not_run"]


@pytest.mark.slow
def test_cells_of_one_program_equal_cells_trained_alone(swept, tmp_path):
  _, result = swept
  text = "label_smoothing(0.6)"
  alone = job.execute(settings_of(defenses=text), tmp_path / "alone", sweep.run)
  (cell,) = alone["cells"]
  together = by_defense(result)[cell["defense"]]
  for name in ("train_accuracy", "test_accuracy", "num_records"):
    assert cell[name] == together[name]
  assert cell["attacks"]["loss_threshold"]["auc"] == pytest.approx(
    together["attacks"]["loss_threshold"]["auc"], abs=1e-6
  )


@pytest.mark.slow
def test_a_second_run_adds_cells_and_computes_none_again(swept, monkeypatch):
  folder, result = swept
  kept = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*/*.json")}
  assert len(kept) == 4
  assert not list(folder.rglob("checkpoints"))
  more = settings_of(defenses="none; label_smoothing(0.4)")
  trained = []
  results = engine._results

  def counted(of, grid, scratch):
    trained.append(grid.text)
    return results(of, grid, scratch)

  monkeypatch.setattr(engine, "_results", counted)
  added = job.execute(more, folder, sweep.run)
  assert trained == ["label_smoothing(0.4)"]
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert set(by_defense(result)) < set(by_defense(added))


@pytest.mark.slow
def test_clutter_of_desktops_in_a_run_folder_is_skipped(swept):
  folder, _ = swept
  for path in list(folder.rglob("*")):
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (path.parent / ".DS_Store").write_bytes(b"\0")
    (path.parent / "Thumbs.db").write_bytes(b"\xd0\xcf")
  settings = settings_of(defenses="none; label_smoothing(0.2)")
  again = job.execute(settings, folder, sweep.run)
  assert {"none", "label_smoothing(epsilon=0.2)"} <= set(by_defense(again))


@pytest.mark.slow
def test_a_longer_family_trains_only_what_is_new(tmp_path, monkeypatch):
  options = {"num_shadows": 2, "attacks": "gap"}
  pair = settings_of(defenses="label_smoothing([0.2, 0.6])", **options)
  before = job.execute(pair, tmp_path, sweep.run)["cells"]
  trained = []
  many = engine.fit_many

  def counted(learner, data, members, **rest):
    trained.append(len(members))
    return many(learner, data, members, **rest)

  monkeypatch.setattr(engine, "fit_many", counted)
  longer = "label_smoothing([0.2, 0.4, 0.6])"
  twice = f"{longer}; label_smoothing(0.6)"
  settings = settings_of(defenses=twice, **options)
  after = job.execute(settings, tmp_path, sweep.run)["cells"]
  assert trained == [2]
  assert [cell["defense"][-4:-1] for cell in after] == ["0.2", "0.4", "0.6"]
  assert {cell["family"] for cell in after} == {longer}
  assert [after[i]["test_accuracy"] for i in (0, 2)] == [
    cell["test_accuracy"] for cell in before
  ]


@pytest.mark.slow
def test_what_was_refused_is_tried_again(tmp_path, monkeypatch):
  settings = settings_of(defenses="none", num_shadows=2, attacks="gap")

  def refuse(*_, **__):
    raise ValueError("too little memory")

  with monkeypatch.context() as patch:
    patch.setattr(engine, "fit_many", refuse)
    (refused,) = job.execute(settings, tmp_path, sweep.run)["cells"]
  assert refused["not_run"] == "too little memory"
  (cell,) = job.execute(settings, tmp_path, sweep.run)["cells"]
  assert "not_run" not in cell


@pytest.mark.slow
def test_what_another_strategy_left_half_trained_is_trained_anew(tmp_path, monkeypatch):
  options = {"defenses": "none", "num_shadows": 2, "attacks": "gap"}

  def stop(self, units, **metrics):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr("mixdef.training.progress.Progress.advance", stop)
    with pytest.raises(KeyboardInterrupt):
      job.execute(settings_of(**options), tmp_path, sweep.run)
  assert list(tmp_path.rglob("strategy.json"))
  changed = settings_of(**{**options, "strategy": "scan"})
  (cell,) = job.execute(changed, tmp_path, sweep.run)["cells"]
  assert cell["strategy"] == "scan"


def test_a_missing_data_set_stops_before_anything_is_trained(tmp_path):
  settings = settings_of(
    defenses="none", datasets="digits, mnist", data_dir=str(tmp_path / "data")
  )
  with pytest.raises((FileNotFoundError, ImportError), match="mnist"):
    job.execute(settings, tmp_path / "run", sweep.run)
  assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_pitfall_86_finished_cells_keep_their_recipe_after_an_error(
  tmp_path, monkeypatch
):
  settings = settings_of(defenses="none; l1", num_shadows=2, attacks="gap")
  attacked = engine._attacked
  seen = []

  def second_fails(*args):
    seen.append(args)
    if len(seen) == 2:
      raise ValueError("a wrong argument")
    return attacked(*args)

  monkeypatch.setattr(engine, "_attacked", second_fails)
  with pytest.raises(ValueError, match="a wrong argument"):
    job.execute(settings, tmp_path, sweep.run)
  other = settings_of(defenses="none", num_shadows=2, attacks="gap", epochs=3)
  with pytest.raises(ValueError, match="epochs was 2, now 3"):
    job.execute(other, tmp_path, sweep.run)


@pytest.mark.slow
def test_standardized_records_cost_dp_sgd_its_cell(tmp_path):
  settings = settings_of(
    defenses="none; dp_sgd", standardize=True, num_shadows=2, attacks="gap"
  )
  none, private = job.execute(settings, tmp_path, sweep.run)["cells"]
  assert "not_run" not in none
  assert "--standardize computes means" in private["not_run"]


@pytest.mark.slow
def test_another_recipe_needs_another_folder(swept):
  folder, _ = swept
  with pytest.raises(ValueError, match="epochs was 2, now 3"):
    job.execute(settings_of(defenses="none", epochs=3), folder, sweep.run)


@pytest.mark.slow
def test_the_tables_hold_every_cell(swept):
  folder, result = swept
  with (folder / "sweep.csv").open() as file:
    rows = {row["defense"]: row for row in csv.DictReader(file)}
  metrics = by_defense(result)["none"]["attacks"]["loss_threshold"]
  assert float(rows["none"]["loss_threshold_auc"]) == metrics["auc"]
  assert rows["mmd"]["not_run"]
  table = (folder / "sweep.md").read_text().splitlines()
  widths = {line.count("|") for line in table[:5]}
  assert len(widths) == 1
  assert (folder / "sweep.png").stat().st_size > 10_000
  json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
  ("options", "reason"),
  [
    ({}, "--study=NAME or --defenses"),
    ({"study": "kaya", "defenses": "none"}, "pass either"),
    ({"study": "nobody"}, "choose from kaya"),
    ({"defenses": " ; "}, "contains no defense"),
    ({"defenses": "none", "defense": "mixup"}, "--defense is not used by this job"),
    ({"defenses": "none; l1([-1.0])"}, "at least 0"),
    ({"defenses": "none", "num_shadows": 1}, "at least 2 models"),
    ({"defenses": "none", "attacks": "nothing"}, "nothing"),
    ({"defenses": "none", "attacks": ""}, "--attacks is empty"),
  ],
)
def test_what_cannot_be_compared_is_refused_at_once(options, reason):
  with pytest.raises(ValueError, match=reason):
    settings_of(**options)


def test_data_sets_and_seeds_are_every_combination():
  settings = settings_of(defenses="none", datasets="digits, mnist", seeds=2, seed=3)
  assert [(one.dataset, one.seed) for one in settings.runs()] == [
    ("digits", 3),
    ("digits", 4),
    ("mnist", 3),
    ("mnist", 4),
  ]
