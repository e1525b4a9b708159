import csv
import gzip

import numpy as np
import pytest

from mixdef.data import CATALOGUE, load, mimic

# subject, admission, time, died; patient 20 was admitted twice, the later line first.
ADMISSIONS = [
  ("20", "7", "2150-03-01 10:00:00", "1"),
  ("10", "5", "2140-01-01 08:00:00", "0"),
  ("20", "6", "2149-03-01 10:00:00", "0"),
  ("30", "8", "2141-01-01 08:00:00", "0"),
]
DIAGNOSES = [
  ("5", "4280"),
  ("7", "E8497"),
  ("7", "V103"),
  ("6", "25000"),
  ("6", ""),
  ("5", "25002"),
  ("5", "E8490"),
  ("5", "0389"),
]


def write(folder, admissions=ADMISSIONS, diagnoses=DIAGNOSES, *, lower=False, gz=False):
  folder.mkdir(exist_ok=True)
  tables = {
    "ADMISSIONS.csv": (
      '"ROW_ID","SUBJECT_ID","HADM_ID","ADMITTIME","DIAGNOSIS","HOSPITAL_EXPIRE_FLAG"',
      [f'1,{s},{h},{t},"SEPSIS, SHOCK",{d}' for s, h, t, d in admissions],
    ),
    "DIAGNOSES_ICD.csv": (
      '"ROW_ID","SUBJECT_ID","HADM_ID","SEQ_NUM","ICD9_CODE"',
      [f'1,0,{h},1,"{code}"' for h, code in diagnoses],
    ),
  }
  for name, (header, lines) in tables.items():
    header = header.lower() if lower else header
    text = "\n".join([header, *lines]) + "\n"
    if gz:
      (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
      (folder / name).write_text(text)


def read(data_dir, num_rows=(4, 8)):
  return mimic.read(
    data_dir, name="mimic3", num_patients=3, num_rows=num_rows, advice="ask"
  )


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("gz", [True, False])
def test_a_patient_is_the_union_of_their_admissions(tmp_path, lower, gz):
  write(tmp_path / "mimic3", lower=lower, gz=gz)
  data = read(tmp_path)
  assert (data.x.dtype, data.name, data.test) == (np.float32, "mimic3", None)
  # Patients 20, 10, 30; codes 250 (first admission of 20), E849, V10, 428, 038.
  np.testing.assert_array_equal(
    data.x, [[1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [0, 0, 0, 0, 0]]
  )
  assert (data.y.tolist(), data.num_classes) == ([1, 0, 0], 2)


def test_pitfall_151_the_demo_never_passes_for_mimic3(tmp_path):
  admissions = [(str(i), str(i), "2150-01-01 00:00:00", "0") for i in range(100)]
  for name in ("mimic3", "mimic3_demo"):
    write(tmp_path / name, admissions, [("3", "0389")])
  with pytest.raises(ValueError, match="is not mimic3: it has 100 patients, not 46520"):
    load("mimic3", data_dir=tmp_path)
  data = CATALOGUE["mimic3_demo"](tmp_path, num_rows=(100, 1))
  assert (data.name, data.x.sum(), data.x[3, 0]) == ("mimic3_demo", 1, 1)


@pytest.mark.parametrize(
  ("name", "advice"),
  [("mimic3", "credentialed access"), ("mimic3_demo", "mimiciii-demo/1.4/ .ODbL")],
)
def test_missing_files_are_named(tmp_path, name, advice):
  with pytest.raises(
    FileNotFoundError, match=rf"^{name}: {tmp_path / name} needs ADMISS.*{advice}"
  ):
    load(name, data_dir=tmp_path)
  write(tmp_path / name)
  (tmp_path / name / "DIAGNOSES_ICD.csv").unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks DIAGNOSES_ICD.csv"):
    load(name, data_dir=tmp_path)


@pytest.mark.parametrize(
  ("admissions", "diagnoses", "message"),
  [
    (ADMISSIONS, [("99", "4280")], r"ICD.csv names admission 99, which ADMISSIONS.csv"),
    (ADMISSIONS, [("5", "")], r"ICD.csv is damaged: it holds no code"),
    (
      [*ADMISSIONS[:3], (*ADMISSIONS[3][:3], "")],
      DIAGNOSES,
      r"ADMISSIONS.csv is damaged: admission 8 has HOSPITAL_EXPIRE_FLAG ''",
    ),
  ],
)
def test_a_wrong_table_is_named(tmp_path, admissions, diagnoses, message):
  write(tmp_path / "mimic3", admissions, diagnoses)
  with pytest.raises(ValueError, match=message) as caught:
    read(tmp_path, (len(admissions), len(diagnoses)))
  assert str(caught.value).startswith(str(tmp_path))


def test_a_damaged_file_is_named(tmp_path):
  write(tmp_path / "mimic3", gz=True)
  path = tmp_path / "mimic3" / "ADMISSIONS.csv.gz"
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match=rf"^{path} is damaged: Compressed file ended"):
    read(tmp_path)
  path.write_bytes(gzip.compress(b"SUBJECT_ID,HADM_ID\n1,2\n"))
  with pytest.raises(ValueError, match=rf"^{path} .* no column ADMITTIME"):
    read(tmp_path)
  path.write_bytes(gzip.compress(b"\xff"))
  with pytest.raises(ValueError, match=rf"^{path} is damaged: 'utf-8' codec"):
    read(tmp_path)


def test_real_demo(real_data):
  folder = real_data("mimic3_demo")
  data = load("mimic3_demo", data_dir=folder)
  assert (len(data), set(np.unique(data.x))) == (100, {0, 1})
  assert data.x.any(axis=0).all()
  # A naive count of distinct pairs (patient, code), by other means than the reader's.
  tables = []
  for name in ("ADMISSIONS", "DIAGNOSES_ICD"):
    with (folder / "mimic3_demo" / f"{name}.csv").open() as file:
      rows = csv.DictReader(
        line.lower() if i == 0 else line for i, line in enumerate(file)
      )
      tables.append(list(rows))
  patient = {row["hadm_id"]: row["subject_id"] for row in tables[0]}
  pairs = {
    (
      patient[row["hadm_id"]],
      row["icd9_code"][: 4 if row["icd9_code"][0] == "E" else 3],
    )
    for row in tables[1]
  }
  assert (data.x.sum(), data.x.shape[1]) == (len(pairs), len({c for _, c in pairs}))
  dead = {row["subject_id"] for row in tables[0] if row["hospital_expire_flag"] == "1"}
  assert data.y.sum() == len(dead)
