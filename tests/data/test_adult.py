import numpy as np
import pytest

from mixdef.data import adult, load
from mixdef.data.adult import COLUMNS

FIRST = (
  "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family,"
  " White, Male, 2174, 0, 40, United-States, <=50K"
)
SECOND = (
  "52, ?, 209642, HS-grad, 9, Married-civ-spouse, ?, Husband, Black, Female, 0, 1902,"
  " 45, ?, >50K"
)


def write(folder, train=(FIRST, SECOND), test=(SECOND, FIRST)):
  folder.mkdir(exist_ok=True)
  (folder / "adult.data").write_text("\n".join(train) + "\n\n")
  lines = ["|1x3 Cross validator", *(f"{line}." for line in test)]
  (folder / "adult.test").write_text("\n".join(lines) + "\n\n")


def decode(features):
  """Return the attributes of a record, read off the documented columns."""
  values, start = {}, 0
  for name, coding in COLUMNS.items():
    if isinstance(coding, tuple):
      mean, spread = coding
      values[name] = features[start] * spread + mean
      start += 1
    else:
      names = coding.split()
      block = features[start : start + len(names)]
      values[name] = [names[i] for i in np.flatnonzero(block)]
      assert set(block) <= {0, 1}
      start += len(names)
  assert start == len(features)
  return values


@pytest.mark.parametrize("folder", ["adult", "."])
def test_every_attribute_can_be_read_back(tmp_path, folder):
  write(tmp_path / folder)
  data = adult.read(tmp_path, num_records=(2, 2))
  assert (data.x.shape, data.x.dtype) == ((2, 105), np.float32)
  assert (data.name, data.num_classes) == ("adult", 2)
  assert (data.y.tolist(), data.test.y.tolist()) == ([0, 1], [1, 0])
  np.testing.assert_array_equal(data.test.x, data.x[::-1])
  for line, features in zip((FIRST, SECOND), data.x, strict=True):
    written = line.split(", ")[:-1]
    for value, (name, read) in zip(written, decode(features).items(), strict=True):
      if isinstance(read, list):
        assert read == ([] if value == "?" else [value]), name
      else:
        assert read == pytest.approx(float(value), abs=0.02), name


def test_pitfall_83_the_coding_does_not_depend_on_the_records(tmp_path):
  write(tmp_path)
  alone = adult.read(tmp_path, num_records=(2, 2))
  write(tmp_path, (FIRST, SECOND, FIRST.replace("39,", "90,")), (FIRST, FIRST))
  beside = adult.read(tmp_path, num_records=(3, 2))
  np.testing.assert_array_equal(beside.x[:2], alone.x)
  np.testing.assert_array_equal(beside.test.x[0], alone.x[0])


def test_missing_files_are_named(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r"adult needs adult.data and adult.test; .*CC BY 4.0"
  ):
    load("adult", data_dir=tmp_path)
  write(tmp_path)
  (tmp_path / "adult.test").unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks adult.test; put all 2 files"):
    load("adult", data_dir=tmp_path)


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ((FIRST, "<html>"), "line 2: 1 fields, not 15;"),
    ((FIRST, FIRST.replace("White, ", "")), "line 2: 14 fields, not 15;"),
    ((FIRST, FIRST.replace("White", "white")), "line 2: 'white' is not a valid race"),
    ((FIRST.replace("39", "?"), FIRST), "line 1: could not convert string to float"),
    ((FIRST.replace("39", "nan"), FIRST), "line 1: 'nan' is not a valid age"),
    (
      (FIRST.replace("2174", "1e999"), FIRST),
      "line 1: '1e999' is not a valid capital-gain",
    ),
    (
      (FIRST, FIRST.replace("<=50K", "50K")),
      "line 2: '50K' is not an income, <=50K or",
    ),
    ((FIRST, "<" * 200_000), "field larger than field limit"),
  ],
)
def test_a_damaged_line_is_named(tmp_path, train, message):
  write(tmp_path, train)
  with pytest.raises(
    ValueError, match=rf"^{tmp_path}/adult.data is damaged: {message}"
  ) as caught:
    adult.read(tmp_path, num_records=(2, 2))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("train", [(), (FIRST,), (FIRST, SECOND, FIRST)])
def test_a_file_of_another_size_is_named(tmp_path, train):
  write(tmp_path, train)
  with pytest.raises(
    ValueError,
    match=rf"^{tmp_path}/adult.data .* has {len(train)} records, not 2;",
  ) as caught:
    adult.read(tmp_path, num_records=(2, 2))
  assert "download" not in str(caught.value)
