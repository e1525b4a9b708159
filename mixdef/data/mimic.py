"""Reader of the diagnoses of MIMIC-III as in medGAN, one row per patient."""

import datetime
import pathlib
import re

import numpy as np

from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

NAMES = ("ADMISSIONS.csv.gz", "DIAGNOSES_ICD.csv.gz")
# Representations of a missing code.
_NO_CODE = ("", "null", "nan", "na", "n/a", "none", "<na>")
_CODE = re.compile(r"\d{3,5}|[EV]\d{2,4}", re.ASCII)
_AS_NUMBERS = (
  "the file was saved as numbers, which lost the leading zeros of codes such as 0389; "
  "use the official file, and read and write ICD9_CODE as text"
)


def read(
  data_dir: pathlib.Path,
  *,
  name: str,
  num_patients: int,
  num_rows: tuple[int, int],
  advice: str,
) -> Dataset:
  """Return one row per patient and one column per three-digit ICD-9 code.

  x[i, j] = 1 if code j was given to patient i in any admission. Codes are truncated to
  their first three characters, and those of external causes (E...) to four. Patients
  are in the order of ADMISSIONS.csv; codes are in the order of first appearance when
  iterating over patients, their admissions by time, and the lines of DIAGNOSES_ICD.csv.

  Args:
    data_dir: folder with name/{ADMISSIONS, DIAGNOSES_ICD}.csv, compressed or not.
    name: canonical name of the set, `mimic3` or `mimic3_demo`.
    num_patients: number of patients of the set, so that the open demo is never mistaken
      for MIMIC-III.
    num_rows: number of rows of ADMISSIONS and of DIAGNOSES_ICD, without headers.
    advice: how and under which terms to get the set, for the error message.

  Returns:
    A `Dataset` of float32 zeros and ones [N, codes] without a test file; the full
    MIMIC-III has 46,520 patients and about 1,071 codes. y = 1 if the patient died in
    hospital in any admission.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: a file is damaged or of another set; the line names it.

  Deviation: medGAN has no labels; death in hospital (HOSPITAL_EXPIRE_FLAG) is our
    choice. Diagnoses without a code are omitted, while medGAN gives them a column;
    an admission without diagnoses adds nothing, where medGAN stops.
  Reference: Choi et al., "Generating Multi-label Discrete Patient Records using
    Generative Adversarial Networks", 2017, arXiv 1703.06490; Johnson et al.,
    "MIMIC-III, a freely accessible critical care database", 2016.
  """
  paths = files.find(data_dir, (name, ""), NAMES)
  if paths is None:
    raise files.missing(
      name, data_dir / name, "ADMISSIONS.csv and DIAGNOSES_ICD.csv", advice
    )
  rows = files.read_csv(
    paths[0], ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "HOSPITAL_EXPIRE_FLAG")
  )
  if (found := len({subject for subject, *_ in rows})) != num_patients:
    raise ValueError(
      f"{paths[0]} is not {name}: it has {found} patients, not {num_patients}; load "
      "the open demo of 100 as mimic3_demo, MIMIC-III of 46,520 as mimic3"
    )
  counts.check_count(paths[0], len(rows), num_rows[0], "admissions")
  admissions, died = _admissions(paths[0], rows)
  codes = _read_codes(paths[1], admissions, num_rows[1])
  columns: dict[str, int] = {}
  cells = []
  for admission, patient in admissions.items():
    for code in codes[admission]:
      cells.append((patient, columns.setdefault(code, len(columns))))
  if not columns:
    raise files.damaged(paths[1], "it has no codes")
  if not any(code.startswith("0") for code in columns):
    raise ValueError(f"{paths[1]} is damaged: no code begins with 0: {_AS_NUMBERS}")
  x = np.zeros((len(died), len(columns)), np.float32)
  x[tuple(np.transpose(cells))] = 1
  return counts.dataset(paths[0].parent, x, died, name=name, num_classes=2)


def _admissions(
  path: pathlib.Path, rows: list[tuple[str, ...]]
) -> tuple[dict[str, int], np.ndarray]:
  """Return {admission: row of its patient}, by patient and time, and the deaths."""
  patients: dict[str, int] = {}
  for subject, *_ in rows:
    patients.setdefault(subject, len(patients))
  died = np.zeros(len(patients), np.int32)
  ordered = []
  for subject, admission, time, flag in rows:
    if flag not in ("0", "1"):
      raise files.damaged(
        path,
        f"admission {admission} has HOSPITAL_EXPIRE_FLAG {flag!r}, neither 0 nor 1",
      )
    died[patients[subject]] |= int(flag)
    try:
      when = datetime.datetime.fromisoformat(time)
    except ValueError:
      why = (
        f"admission {admission} has ADMITTIME {time!r}, which is not of the form "
        "2150-03-01 10:00:00"
      )
      raise files.damaged(path, why) from None
    ordered.append((patients[subject], when, admission))
  ordered.sort(key=lambda row: row[:2])
  admissions = {admission: patient for patient, _, admission in ordered}
  if len(admissions) < len(rows):
    raise files.damaged(path, "it lists an admission twice")
  return admissions, died


def _read_codes(
  path: pathlib.Path, admissions: dict[str, int], count: int
) -> dict[str, list[str]]:
  """Return {admission: its truncated codes}, in the order of the file."""
  codes: dict[str, list[str]] = {admission: [] for admission in admissions}
  rows = files.read_csv(path, ("HADM_ID", "ICD9_CODE"))
  counts.check_count(path, len(rows), count, "diagnoses")
  for admission, code in rows:
    if admission not in codes:
      raise ValueError(
        f"{path} names admission {admission}, which ADMISSIONS.csv does not; use both "
        "files of one version"
      )
    if code.lower() in _NO_CODE:
      continue
    code = code.upper()
    if not _CODE.fullmatch(code):
      why = (
        f"{code!r} is not an ICD-9 code as MIMIC-III writes them, such as 0389, V103 "
        "or E8490"
      )
      # Stored as a number, 0031 becomes 31 or 31.0.
      if re.fullmatch(r"\d{1,5}(\.0)?", code):
        raise ValueError(f"{path} is damaged: {why}: {_AS_NUMBERS}")
      raise files.damaged(path, why, "use the official file")
    codes[admission].append(code[: 4 if code.startswith("E") else 3])
  return codes
