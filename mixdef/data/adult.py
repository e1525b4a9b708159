"""Reader of UCI Adult: census records, labeled by income above 50,000 dollars."""

import math
import pathlib

import numpy as np

from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

NAMES = ("adult.data", "adult.test")
# (mean, spread) of a numeric attribute in adult.data, or the documented values of a
# categorical one. The columns do not depend on the loaded records.
COLUMNS: dict[str, tuple[float, float] | str] = {
  "age": (38.58, 13.64),
  "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov"
  " Without-pay Never-worked",
  "fnlwgt": (189_778.0, 105_550.0),
  "education": "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc"
  " 9th 7th-8th 12th Masters 1st-4th 10th Doctorate 5th-6th Preschool",
  "education-num": (10.08, 2.573),
  "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed"
  " Married-spouse-absent Married-AF-spouse",
  "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial"
  " Prof-specialty Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing"
  " Transport-moving Priv-house-serv Protective-serv Armed-Forces",
  "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
  "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
  "sex": "Female Male",
  "capital-gain": (1077.6, 7385.3),
  "capital-loss": (87.3, 402.96),
  "hours-per-week": (40.44, 12.35),
  "native-country": "United-States Cambodia England Puerto-Rico Canada Germany"
  " Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran Honduras"
  " Philippines Italy Poland Jamaica Vietnam Mexico Portugal Ireland France"
  " Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua"
  " Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong"
  " Holand-Netherlands",
}
_INCOMES = ("<=50K", ">50K")


def read(
  data_dir: pathlib.Path, *, num_records: tuple[int, int] = (32_561, 16_281)
) -> Dataset:
  """Return adult.data as records and adult.test as the test file.

  The 14 attributes become 105 features in the order of `COLUMNS`: a number x becomes
  (x - mean) / spread, and a category becomes one column per documented value, all 0 if
  the value is missing ("?"). Label 1 is an income above 50,000 dollars.

  Args:
    data_dir: the files are in data_dir/adult or in data_dir itself.
    num_records: number of records of the two files; reduced copies are rejected.

  Returns:
    A `Dataset` of float32 [N, 105], 2 classes.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: a file is damaged; the line names it.

  Guarantee: mean and spread are published, rounded statistics of the whole adult.data,
    the same for every subset, so no record changes the features of another; DP
    accounting treats them as public.
  Deviation: there is no common coding; this one is ours.
  Reference: Becker and Kohavi, "Adult", UCI Machine Learning Repository, 1996.
  """
  paths = files.find(data_dir, ("adult", ""), NAMES)
  if paths is None:
    raise files.missing(
      "adult",
      data_dir / "adult",
      " and ".join(NAMES),
      "download them from https://archive.ics.uci.edu/dataset/2/adult (CC BY 4.0)",
    )
  (x, y), test = map(_read_file, paths, num_records)
  return counts.dataset(
    paths[0].parent, x, y, name="adult", num_classes=len(_INCOMES), test=test
  )


def _read_file(path: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
  x, y = [], []
  for line, row in files.csv_rows(path):
    # The test file starts with a comment.
    if row[0].startswith("|"):
      continue
    try:
      x.append(_encode(row[:-1]))
      y.append(_label(row[-1]))
    except ValueError as error:
      raise files.damaged(path, f"line {line}: {error}") from error
  counts.check_count(path, len(x), count, "records")
  return np.array(x, np.float32), np.array(y)


def _encode(values: list[str]) -> list[float]:
  if len(values) != len(COLUMNS):
    raise ValueError(f"{len(values) + 1} fields, not {len(COLUMNS) + 1}")
  features = []
  for (name, coding), value in zip(COLUMNS.items(), values, strict=True):
    if isinstance(coding, tuple):
      mean, spread = coding
      if not math.isfinite(number := float(value)):
        raise ValueError(f"{value!r} is not a valid {name}")
      features.append((number - mean) / spread)
      continue
    known = coding.split()
    if value not in (*known, "?"):
      raise ValueError(f"{value!r} is not a valid {name}")
    features += [float(value == other) for other in known]
  return features


def _label(income: str) -> int:
  # In the test file, labels end with a period.
  if income.rstrip(".") not in _INCOMES:
    raise ValueError(f"{income!r} is not an income, {' or '.join(_INCOMES)}")
  return _INCOMES.index(income.rstrip("."))
