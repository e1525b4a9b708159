import dataclasses
import json
import pathlib
import shutil

import jsonschema
import numpy as np
import pytest

from mixdef.cli import compare, gan, job
from mixdef.cli.gan_settings import GanSettings
from mixdef.data import to_float

pytestmark = pytest.mark.slow  # generators are trained

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "report.schema.json"
NETWORKS = "dense_networks(hidden=8, latent=3)"
ATTACKS = ("logan", "lira_gan_discriminator_fixed", "lira_gan_reconstruction")
MODELS, MEMBERS = 4, 60
TINY = GanSettings(
  train_size=MEMBERS,
  model=NETWORKS,
  epochs=3,
  batch_size=20,
  num_shadows=MODELS,
  strategy="loop",
  attacks=", ".join(ATTACKS),
  attack_records=6,
  samples=100,
  classifier="mlp(8)",
)
DEFENDED = dataclasses.replace(TINY, learner="par_gan(critics=2)", defense="mixup")


def valid_report(folder):
  """Read the report strictly: without NaN and infinities, by the schema."""

  def refuse(word):
    raise AssertionError(f"report.json holds {word}")

  report = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
  jsonschema.validate(report, json.loads(SCHEMA.read_text()))
  return report


def trained(folder):
  """Return when each history of training was written, and how many rows it has."""
  return {
    path.relative_to(folder): (path.stat().st_mtime_ns, len(path.read_text()))
    for path in folder.rglob("metrics.jsonl")
  }


def cells(report):
  return {
    (row["query"], row["references"]): row for row in report["generator"]["adaptive"]
  }


@pytest.fixture(scope="module")
def undefended(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gan") / "none"
  return folder, job.execute(TINY, folder, gan.run)


@pytest.fixture(scope="module")
def defended(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gan") / "mixup"
  return folder, job.execute(DEFENDED, folder, gan.run)


def test_gan_writes_the_contract(undefended):
  folder, returned = undefended
  result, report = (
    json.loads((folder / "result.json").read_text()),
    valid_report(folder),
  )
  assert result == returned
  assert set(result["attacks"]) == set(ATTACKS)
  for name in ("attacks", "verdict", "strongest", "generator", "not_run"):
    assert result[name] == report[name]
  facts = ("dataset", "defense", "num_models", "epsilon", "learner", "num_audited")
  assert [result[name] for name in facts] == [
    *("digits", "none", MODELS, None, "wgan_gp", 2 * MEMBERS)
  ]
  # 60 members in batches of 20: 9 steps, of which the fifth is the generator's.
  assert result["generator_steps"] == 1
  assert report["title"] == "digits, no defense"
  names = [row["name"] for row in result["generator"]["utility"]]
  assert names == [
    *("fd_classifier", "kid_classifier", "density_classifier", "coverage_classifier"),
    "downstream_accuracy",
  ]


def test_gan_writes_scores_pictures_and_one_page(undefended):
  folder, result = undefended
  with np.load(folder / "scores.npz") as scores:
    assert set(scores) == {"ids", "labels", "keep", "audited", *ATTACKS}
    members = scores["keep"]
    assert members.shape == (MODELS, 2 * MEMBERS)
    assert {scores[name].shape for name in ATTACKS} == {members.shape}
    asked = ~np.isnan(scores["lira_gan_reconstruction"]).all(0)
  assert 0 < asked.sum() <= TINY.attack_records
  for name in ("samples", "real", "interpolations"):
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  page = (folder / "report.html").read_text()
  assert result["verdict"]["headline"] in page
  assert page.count('src="data:image/png') >= 3
  assert "<script" not in page
  for section in ("samples", "attacks", "adaptive", "setting"):
    assert f'<section id="{section}">' in page


def test_gan_prints_the_verdict_first(undefended, capsys):
  _, result = undefended
  gan.show(result)
  lines = capsys.readouterr().out.splitlines()
  level = result["verdict"]["level"].replace("_", " ")
  assert lines[0] == f"{level}: {result['verdict']['headline']}"
  assert lines[1] == "4 GANs, none, 1 generator steps each"
  assert sum("references" in line for line in lines) == 2
  assert any(line.startswith("  downstream_accuracy ") for line in lines)
  assert result["report"] == "report.html"  # inside the run folder, wherever it goes


def test_undefended_gans_are_their_own_references(undefended):
  grid = cells(valid_report(undefended[0]))
  assert set(grid) == {("single", "natural"), ("mixed", "natural")}
  assert "theory" not in (undefended[0] / "report.html").read_text().split("<nav")[0]


def test_a_finished_run_answers_at_once(undefended):
  folder, result = undefended

  def never(*_):
    raise AssertionError

  assert job.execute(TINY, folder, never) == result


@pytest.mark.parametrize(
  ("field", "value"),
  [("defense", "mixup"), ("samples", 200), ("learner", "mixup_gan"), ("seed", 1)],
)
def test_pitfall_86_a_changed_setting_is_refused(undefended, field, value):
  changed = dataclasses.replace(TINY, **{field: value})
  with pytest.raises(ValueError, match=f"{field} was .*, now {value!r}") as raised:
    job.execute(changed, undefended[0], gan.run)
  assert "Choose another --out" in str(raised.value)


def test_a_defense_is_attacked_by_every_adaptive_attacker(defended):
  report = valid_report(defended[0])
  grid = cells(report)
  assert set(grid) == {
    (query, references)
    for query in ("single", "mixed")
    for references in ("natural", "mixup")
  }
  for row in grid.values():
    assert row["num_targets"] == MODELS
  single = MODELS * 2 * MEMBERS
  for references in ("natural", "mixup"):
    row = grid["single", references]
    assert row["num_members"] + row["num_nonmembers"] + row["excluded"] == single
  assert report["setting"]["defense"] == "par_gan(critics=2)|mixup"
  # One undefended GAN for each, and what the theory says about the pairs.
  assert len(list((defended[0] / "undefended").glob("models/*"))) == MODELS
  theory = report["generator"]["theory"]
  for side in ("natural", "mixup"):
    assert theory[side]["auc"] <= theory[side]["auc_bound"]["threshold"] + 1e-9
  page = (defended[0] / "report.html").read_text()
  assert '<section id="theory">' in page
  assert "trained with the target&#39;s defense" in page


@pytest.mark.slow
def test_undefended_references_of_an_undefended_run_are_those_it_would_train(
  undefended, defended, tmp_path
):
  # Its own GANs lie there, as after a kill: nothing at all is left to train.
  shutil.copytree(defended[0] / "models", tmp_path / "models")
  folders = (undefended[0], tmp_path)
  before = [trained(folder) for folder in folders]
  settings = dataclasses.replace(DEFENDED, undefended=str(undefended[0]))
  result = job.execute(settings, tmp_path, gan.run)
  assert [trained(folder) for folder in folders] == before
  assert not (tmp_path / "undefended").exists()
  assert result["generator_steps"] == defended[1]["generator_steps"]
  ours, theirs = valid_report(tmp_path), valid_report(defended[0])
  assert ours["generator"] == theirs["generator"]
  for name in ATTACKS:
    assert ours["attacks"][name]["auc"] == theirs["attacks"][name]["auc"]


def test_undefended_references_of_another_training_are_refused_at_once(
  undefended, tmp_path
):
  before = trained(undefended[0])
  settings = dataclasses.replace(DEFENDED, undefended=str(undefended[0]))
  other = dataclasses.replace(settings, seed=1)
  with pytest.raises(ValueError, match="seed was 0, now 1") as raised:
    job.execute(other, tmp_path / "seed", gan.run)
  assert "\n" not in str(raised.value)
  assert not list((tmp_path / "seed").iterdir())
  nowhere = dataclasses.replace(settings, undefended=str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match="pass the run folder of undefended GANs"):
    job.execute(nowhere, tmp_path / "run", gan.run)
  assert not (tmp_path / "run").exists()
  assert not (tmp_path / "nowhere").exists()
  assert trained(undefended[0]) == before


def test_a_private_gan_of_a_table_states_its_epsilon(tmp_path, capsys, small_table):
  settings = dataclasses.replace(
    TINY,
    dataset="location30",
    data_dir=small_table(150),
    train_size=40,
    model="auto",
    learner="mlp_wgan_gp(hidden=8, latent=3)",
    defense="dp_gan(noise_multiplier=1.0)",
    num_shadows=2,
    epochs=1,
    attacks="logan",
  )
  result = job.execute(settings, tmp_path / "run", gan.run)
  report = valid_report(tmp_path / "run")
  assert 0 < result["epsilon"] < 1000
  assert result["delta"] > 0
  assert set(report["generator"]["columns"]) == {"dwp", "dwpre"}
  assert len(report["generator"]["columns"]["dwp"]["real"]) == 446
  assert report["generator"]["utility"] == []
  # Two GANs leave each a single reference: too few for what the theory compares.
  assert report["generator"]["theory"] is None
  assert not list((tmp_path / "run").glob("*.png"))
  page = (tmp_path / "run" / "report.html").read_text()
  assert "root mean square error" in page
  # Columns that all have one share of ones have no correlation.
  result["generator"]["columns"]["dwp"]["correlation"] = None
  gan.show(result)
  assert "correlation none, RMSE 0." in capsys.readouterr().out


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (
      {"learner": "mlp_wgan_gp", "model": "auto"},
      "--learner=mlp_wgan_gp is for tables, but digits",
    ),
    (
      {"learner": "medgan", "model": "auto"},
      "--learner=medgan is for tables, but digits holds images",
    ),
    ({"train_size": 10_000}, "digits has 1438 records; --train_size=10000"),
  ],
)
def test_mistakes_in_what_is_trained_are_one_line(tmp_path, wrong, message):
  settings = dataclasses.replace(TINY, **wrong)
  with pytest.raises(ValueError, match=message) as raised:
    job.execute(settings, tmp_path, gan.run)
  assert "\n" not in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_a_mistake_on_the_command_line_is_status_2(capsys):
  with pytest.raises(SystemExit) as left:
    job.main(gan.JOB, ["--samples=10"])
  assert left.value.code == 2
  errors = capsys.readouterr().err.splitlines()
  assert errors == ["gan: --samples=10: use at least 100 to measure utility"]


def test_records_are_split_where_nobody_did(small_table):
  data = GanSettings(dataset="location30", data_dir=small_table(150)).records()
  assert (len(data), len(data.test)) == (120, 30)
  assert set(np.unique(to_float(data.x))) == {0, 1}


def test_runs_are_compared_by_what_their_samples_teach(undefended, defended, tmp_path):
  folders = (undefended[0], defended[0])
  settings = compare.CompareSettings(audits=", ".join(map(str, folders)))
  result = job.execute(settings, tmp_path, compare.run)
  assert [row["audit"] for row in result["rows"]] == ["none", "mixup"]
  for row, folder in zip(result["rows"], folders, strict=True):
    taught = valid_report(folder)["generator"]["utility"][-1]
    found = (row["accuracy"], row["accuracy_std"])
    assert found == (taught["value"], taught["spread"])
  assert len(result["differences"]) == 1  # both were asked about the same records
  page = (tmp_path / "compare.html").read_text()
  assert '<section id="trade-off">' in page
