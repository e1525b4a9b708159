"""Flags of the user's own data: what they read, where they are refused, one job."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from mixdef.cli import flags, job, train
from mixdef.cli.audit import AuditSettings
from mixdef.cli.settings import Settings
from mixdef.core import files


@pytest.fixture
def table(tmp_path):
  random = np.random.default_rng(0)
  age, sex = random.integers(20, 80, 60), random.choice(["f", "m"], 60)
  rows = ["visit,who,age,sex,ill:now"]
  for i in range(60):
    rows.append(f"v{i},p{i // 3},{age[i]},{sex[i]},{'yes' if age[i] > 50 else 'no'}")
  path = tmp_path / "people.csv"
  path.write_text("\n".join(rows))
  return str(path)


def settings(table, kind=Settings, **more):
  roles = {"label": "ill:now", "group": "who", "id": "visit"}
  return kind(dataset=table, **{**roles, "model": "mlp(8)", **more})


def test_flags_are_roles_of_columns(table):
  data = settings(table).load()
  assert data.schema.features == ("age", "sex=f", "sex=m")
  assert (data.name, data.ids[1], data.groups[3]) == ("people", "v1", "p1")
  assert settings(table).subject == "people.csv-none"
  assert settings(table).inputs().keys() == Settings().inputs().keys()


def test_held_out_records_are_a_fraction_by_the_seed_or_a_file(table):
  first, second = (settings(table, test="0.25", seed=s).load() for s in (0, 1))
  assert len(set(first.test.groups)) == len(set(second.test.groups)) == 5
  assert set(first.test.ids) != set(second.test.ids)
  text = pathlib.Path(table).read_text().replace("\nv", "\nw").replace(",p", ",q")
  other = pathlib.Path(table).with_name("test.csv")
  other.write_text(text)
  assert settings(table, test=str(other)).load().test.ids[0] == "w0"
  for text in ("1.5", "0", "nan"):
    with pytest.raises(ValueError, match=rf"--test={text}: pass a fraction in"):
      settings(table, test=text)


def test_a_schema_file_is_read(table, tmp_path):
  path = tmp_path / "schema.json"
  age = {"kind": "numeric", "mean": 50, "spread": 20}
  path.write_text(json.dumps({"age": age, "sex": {"kind": "drop"}}))
  data = settings(table, schema=str(path)).load()
  assert (data.schema.features, data.schema.fitted) == (("age",), ())


def test_other_data_sets_do_not_take_the_columns_over(table):
  audit = settings(table, AuditSettings, canary_source="digits", canaries="ood:5")
  assert audit.for_data("digits").load().name == "digits"
  assert "content of --canary_source" in audit.inputs()
  with pytest.raises(ValueError, match="digits is not a file: drop label="):
    dataclasses.replace(audit, dataset="digits").load()


def test_a_name_of_a_hub_is_no_module():
  found = Settings(dataset="hf:owner/name")
  assert found.subject == "name-none"
  with pytest.raises(ValueError, match=r"--dataset=x\.txt: unknown data set"):
    Settings(dataset="x.txt")


def test_mistakes_are_one_line_and_status_2(table, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for label, given, message in (
    ("no", "", "people.csv has no column 'no'; it has visit, who, age"),
    ("age", "", "people.csv: column 'age' has "),
    ("sex", "none.json", "none.json is missing; write {column: {kind: ...}}"),
  ):
    argv = [f"--dataset={table}", f"--label={label}", f"--schema={given}"]
    with pytest.raises(SystemExit) as ended:
      job.main(train.JOB, argv)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["hub", "folder", "bucket"])
def test_a_missing_package_is_one_line_and_status_2(
  capsys, monkeypatch, tmp_path, place
):
  dataset, package, extra = "hf:owner/name", "datasets", "huggingface"
  if place != "hub":
    package, extra = "PIL", "images"
    folder = files.path_of(
      f"memory://{tmp_path.name}" if place == "bucket" else tmp_path
    )
    dataset = str(folder / "pictures")
    for name in ("cat/1.png", "dog/2.png"):
      files.write_text(folder / "pictures" / name, "")
  find = importlib.util.find_spec
  monkeypatch.setattr(
    "importlib.util.find_spec", lambda name: None if name == package else find(name)
  )
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as ended:
    job.main(train.JOB, [f"--dataset={dataset}"])
  assert ended.value.code == 2
  line = f"train: {package} is not installed: pip install 'mixdef[{extra}]'\n"
  assert capsys.readouterr().err == line
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("installed", [True, False])
def test_weights_that_cannot_be_read_are_one_line(
  capsys, monkeypatch, tmp_path, installed
):
  find, path = importlib.util.find_spec, tmp_path / "weights.safetensors"
  says = f"train: {path} is missing: "
  if not installed:
    says = "train: safetensors is not installed: pip install 'mixdef[weights]'\n"
    path.touch()
  monkeypatch.setattr(
    "importlib.util.find_spec",
    lambda name: find(name) if installed or name != "safetensors" else None,
  )
  with pytest.raises(SystemExit) as ended:
    job.main(train.JOB, [f"--defense=start_from({str(path)!r})"])
  assert ended.value.code == 2
  told = capsys.readouterr().err
  assert told.startswith(says)
  assert told.count("\n") == 1


@pytest.mark.slow
def test_a_folder_with_the_name_of_a_data_set_needs_no_package(tmp_path, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    "importlib.util.find_spec", lambda name: None if name == "PIL" else find(name)
  )
  monkeypatch.chdir(tmp_path)
  (tmp_path / "digits").mkdir()
  job.main(train.JOB, ["--model=mlp(8)", "--epochs=1", "--train_size=40"])
  assert list((tmp_path / "runs").glob("*/result.json"))


@pytest.mark.slow
def test_a_table_trains(table, tmp_path):
  given = settings(table, epochs=2, batch_size=16, test="0.25", learning_rate=0.01)
  result = job.execute(given, tmp_path / "run", train.run)
  assert (result["dataset"], result["num_train"]) == ("people", 45)
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (config["dataset"], config["label"]) == ("people.csv", "ill:now")


def test_every_flag_of_columns_is_told():
  text = flags.help_text(Settings, "")
  for name in ("label", "group", "id", "test", "schema"):
    assert f"--{name}\n" in text
