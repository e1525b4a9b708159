import csv
import gzip
import io

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
    (ADMISSIONS, [("5", "")], r"ICD.csv is damaged: it has no codes"),
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


def _rewrite(folder, change):
  for path in (folder / "mimic3").iterdir():
    path.write_bytes(change(path.read_text()))


def _semicolons(text):
  rows = csv.reader(text.splitlines())
  stream = io.StringIO()
  csv.writer(stream, delimiter=";").writerows(rows)
  return stream.getvalue().encode()


FORMS = {
  "byte order mark": lambda text: text.encode("utf-8-sig"),
  "utf-16": lambda text: text.encode("utf-16"),
  "utf-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
  "windows": lambda text: text.replace("\n", "\r\n").encode(),
  "old mac": lambda text: text.replace("\n", "\r").encode(),
  "semicolons": _semicolons,
  "tabs": lambda text: _semicolons(text).replace(b";", b"\t"),
  "blank lines": lambda text: text.replace("\n", "\n\n,,,\n  \n").encode(),
  "spaces": lambda text: text.replace(",", " , ").encode(),
  "no last line end": lambda text: text.rstrip("\n").encode(),
  "gzip without its suffix": lambda text: gzip.compress(text.encode()),
  "lower case": lambda text: text.replace("E84", "e84").replace("V1", "v1").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_table_reads_alike(tmp_path, form):
  write(tmp_path / "mimic3")
  wanted = read(tmp_path)
  _rewrite(tmp_path, FORMS[form])
  data = read(tmp_path)
  np.testing.assert_array_equal(data.x, wanted.x)
  np.testing.assert_array_equal(data.y, wanted.y)


@pytest.mark.parametrize("code", ["", "NULL", "nan", "NaN", "None", " ", "NA", "<NA>"])
def test_a_diagnosis_without_a_code_adds_no_column(tmp_path, code):
  write(tmp_path / "mimic3", diagnoses=[*DIAGNOSES[:4], ("6", code), *DIAGNOSES[5:]])
  assert read(tmp_path).x.shape == (3, 5)


def number(code):
  return code.lstrip("0")


def real_number(code):
  return f"{float(code):.1f}" if code.isdigit() else code


@pytest.mark.parametrize("save", [number, real_number])
@pytest.mark.parametrize("code", ["0389", "0031", "0010"])
def test_codes_that_lost_their_leading_zeros_are_told(tmp_path, save, code):
  diagnoses = [(h, save(c)) for h, c in [*DIAGNOSES[:-1], ("5", code)]]
  write(tmp_path / "mimic3", diagnoses=diagnoses)
  with pytest.raises(ValueError, match=r"DIAGNOSES_ICD.csv is damaged: ") as caught:
    read(tmp_path)
  assert "the file was saved as numbers, which lost the leading zeros" in str(
    caught.value
  )


def test_a_demo_without_any_leading_zero_says_so(tmp_path):
  write(tmp_path / "mimic3", diagnoses=[*DIAGNOSES[:-1], ("5", "3890")])
  with pytest.raises(
    ValueError, match="no code begins with 0: the file was saved as numbers"
  ):
    read(tmp_path)


@pytest.mark.parametrize(
  "code", ["428.0", "SEPSIS", "V", "E", "1234567", "A0389", "-1"]
)
def test_what_is_no_icd_9_code_is_named(tmp_path, code):
  write(tmp_path / "mimic3", diagnoses=[*DIAGNOSES[:-1], ("5", code)])
  with pytest.raises(ValueError, match=f"'{code}' is not an ICD-9 code as MIMIC-III"):
    read(tmp_path)


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ((5, 8), r"ADMISSIONS.csv .* has 4 admissions, not 5; put the official file"),
    ((4, 9), r"DIAGNOSES_ICD.csv .* has 8 diagnoses, not 9; put the official file"),
  ],
)
def test_a_table_cut_short_is_named(tmp_path, rows, message):
  write(tmp_path / "mimic3")
  with pytest.raises(ValueError, match=message):
    read(tmp_path, rows)


def test_times_that_do_not_sort_are_named(tmp_path):
  admissions = [*ADMISSIONS[:3], ("30", "8", "01/02/2141 08:00", "0")]
  write(tmp_path / "mimic3", admissions)
  with pytest.raises(ValueError, match="admission 8 has ADMITTIME '01/02/2141 08:00'"):
    read(tmp_path)
