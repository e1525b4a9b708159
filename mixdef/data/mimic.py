"""Read the diagnoses of MIMIC-III as medGAN does, one row a patient."""

import pathlib

import numpy as np
from absl import logging

from mixdef.data import files
from mixdef.data.dataset import Dataset

NAMES = ("ADMISSIONS.csv.gz", "DIAGNOSES_ICD.csv.gz")


def read(
  data_dir: pathlib.Path, name: str, *, num_patients: int, advice: str
) -> Dataset:
  """Return one row a patient and one column for each three-digit ICD-9 code.

  x[i, j] = 1 if code j was given to patient i in any admission. Codes are cut to their
  first three characters, those of external causes (E...) to four. Patients come in the
  order of ADMISSIONS.csv; codes in the order in which they first appear in a walk
  through patients, their admissions by time, and the lines of DIAGNOSES_ICD.csv.

  Args:
    data_dir: folder that holds name/{ADMISSIONS, DIAGNOSES_ICD}.csv, compressed or not.
    name: canonical name of the set, `mimic3` or `mimic3_demo`.
    num_patients: of the set, so that the open demo never passes for MIMIC-III.
    advice: how to get the set and on what terms, for the message.

  Returns:
    A `Dataset` of float32 zeros and ones [N, codes] without a test file; the whole of
    MIMIC-III has 46,520 patients and about 1,071 codes. y = 1 if the patient died in
    hospital in any admission.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: a file is damaged or of another set; the line names it.

  Deviation: medGAN has no labels; death in hospital (HOSPITAL_EXPIRE_FLAG) is our
    choice. Diagnoses without a code are left out, where medGAN gives them a column;
    an admission without diagnoses adds nothing, where medGAN stops.
  Reference: Choi et al., "Generating Multi-label Discrete Patient Records using
    Generative Adversarial Networks", 2017, arXiv 1703.06490; Johnson et al.,
    "MIMIC-III, a freely accessible critical care database", 2016.
  """
  paths = files.find((data_dir / name,), NAMES)
  if paths is None:
    raise files.missing(
      name, data_dir / name, "ADMISSIONS.csv and DIAGNOSES_ICD.csv", advice
    )
  admissions, died = _read_admissions(paths[0])
  if len(died) != num_patients:
    raise ValueError(
      f"{paths[0]} is not {name}: it has {len(died)} patients, not {num_patients}; the"
      " open demo of 100 loads as mimic3_demo"
    )
  codes = _read_codes(paths[1], admissions)
  columns: dict[str, int] = {}
  cells = []
  for admission, patient in admissions.items():
    for code in codes[admission]:
      cells.append((patient, columns.setdefault(code, len(columns))))
  if not columns:
    raise ValueError(f"{paths[1]} is damaged: it holds no code; get it again")
  x = np.zeros((len(died), len(columns)), np.float32)
  x[tuple(np.transpose(cells))] = 1
  logging.info("%s: %d patients, %d codes in %s", name, *x.shape, data_dir / name)
  return Dataset.from_arrays(x, died, name=name, num_classes=2)


def _read_admissions(path: pathlib.Path) -> tuple[dict[str, int], np.ndarray]:
  """Return {admission: row of its patient}, by patient and time, and who died."""
  rows = files.read_csv(
    path, ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "HOSPITAL_EXPIRE_FLAG")
  )
  patients: dict[str, int] = {}
  for subject, *_ in rows:
    patients.setdefault(subject, len(patients))
  died = np.zeros(len(patients), np.int32)
  for subject, admission, _, flag in rows:
    if flag not in ("0", "1"):
      raise ValueError(
        f"{path} is damaged: admission {admission} has HOSPITAL_EXPIRE_FLAG {flag!r},"
        " neither 0 nor 1; get it again"
      )
    died[patients[subject]] |= int(flag)
  rows.sort(key=lambda row: (patients[row[0]], row[2]))
  return {admission: patients[subject] for subject, admission, *_ in rows}, died


def _read_codes(path: pathlib.Path, admissions: dict[str, int]) -> dict[str, list[str]]:
  """Return {admission: its codes, cut}, in the order of the file."""
  codes: dict[str, list[str]] = {admission: [] for admission in admissions}
  for admission, code in files.read_csv(path, ("HADM_ID", "ICD9_CODE")):
    if admission not in codes:
      raise ValueError(
        f"{path} names admission {admission}, which ADMISSIONS.csv does not; take both"
        " files from one version"
      )
    if code:
      codes[admission].append(code[: 4 if code.startswith("E") else 3])
  return codes
