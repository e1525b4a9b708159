"""Files of the user: tables, arrays and pictures, and every mistake in one line."""

import gzip
import logging

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from pyarrow import parquet

from mixdef.data import check_name, load

CSV = "age,sex,ill,who,visit\n30,f,no,1,a\n40,m,yes,1,b\n50,f,no,2,c\n60,m,yes,3,d\n"
SMALL = "age,sex,ill\n30,f,no\n40,m,yes\n50,f,no\n60,m,yes\n"
FEATURES = ("age", "sex=f", "sex=m")


@pytest.fixture
def write(tmp_path):
  def file(text, name="people.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path

  return file


def test_a_csv_with_its_roles(write):
  data = load(write(CSV), label="ill", group="who", id="visit")
  assert data.schema.features == FEATURES
  assert (data.name, data.classes) == ("people", ("no", "yes"))
  assert data.y.tolist() == [0, 1, 0, 1]
  assert data.groups.tolist() == [1, 1, 2, 3]
  assert data.ids.tolist() == ["a", "b", "c", "d"]
  np.testing.assert_allclose(data.x[:, 0], np.array([-1.5, -0.5, 0.5, 1.5]) / 1.25**0.5)


@pytest.mark.parametrize(
  ("text", "name"),
  [
    (CSV.replace(",", ";"), "a.csv"),
    (CSV.replace(",", "\t"), "a.tsv"),
    (b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(), "a.CSV"),
    (CSV.encode("utf-16"), "a.csv"),
    (gzip.compress(CSV.encode(), mtime=0), "a.csv.gz"),
  ],
  ids=["semicolons", "tabs", "byte order mark", "utf-16", "gzip"],
)
def test_dialects_of_csv_are_one_table(write, text, name):
  usual = load(write(CSV), label="ill", group="who", id="visit")
  data = load(str(write(text, name)), label="ill", group="who", id="visit")
  np.testing.assert_array_equal(data.x, usual.x)
  assert data.name == "a"


def test_a_parquet_file_is_the_same_table(write, tmp_path):
  columns = {
    "age": [30, 40, 50, 60],
    "sex": ["f", "m", "f", "m"],
    "ill": ["no", "yes", "no", "yes"],
  }
  path = tmp_path / "people.parquet"
  parquet.write_table(pa.table(columns), path)
  data = load(path, label="ill")
  usual = load(
    write("age,sex,ill\n30,f,no\n40,m,yes\n50,f,no\n60,m,yes\n"), label="ill"
  )
  np.testing.assert_array_equal(data.x, usual.x)


def test_held_out_records_from_a_path_and_by_a_fraction(write):
  test = write("ill,age,sex\nyes,70,f\n", "test.csv")
  train = write(SMALL)
  data = load(train, label="ill", test=test)
  assert (len(data), len(data.test), data.test.y.tolist()) == (4, 1, [1])
  np.testing.assert_allclose(data.test.x, [[2.5 / 1.25**0.5, 1, 0]], rtol=1e-6)
  assert len(load(train, label="ill", test=0.5).test) == 2


@pytest.mark.parametrize(
  ("text", "options", "message"),
  [
    ("", {}, "people.csv is empty; it needs a header"),
    ("age,y\n", {}, "people.csv is empty; it needs a header"),
    ("age,y\n1,0\n2\n", {}, r"people.csv is damaged: .*[Ee]xpected 2 col"),
    ("age,age,y\n1,2,0\n3,4,1\n", {}, "has two columns named 'age'; rename one"),
    (
      "age,z\n1,0\n2,1\n",
      {},
      "people.csv: name the column of the label, one",
    ),
    ("age,y\n1,0\n2,0\n", {}, "people.csv: column 'y' is 0 in every record"),
    ("age,y\n1,0\n2,\n", {}, "people.csv: column 'y' is missing in row 1"),
    ("age,y\n1,0\ninf,1\n", {}, "people.csv: column 'age' is inf in row 1"),
    ("y\n0\n1\n", {}, "people.csv has no column of features"),
    ("age,y\n1,0\n2,1\n", {"id": "no"}, "people.csv has no column 'no'; it has age, y"),
    ("age,y,i\n1,0,3\n2,1,3\n", {"id": "i"}, "column 'i': ids contain 3 2 times"),
    ("a,y\nx,0\n1,1\n2,1\n3,0\n", {}, "'a' holds numbers, and 'x' in row 0: leave"),
    (",a,y\n0,5,0\n1,6,1\n", {}, "a column without a name, as pandas writes row num"),
    (b"a,y\n\xff\xfe\xfa,1\n", {}, "is damaged: .*; export it again, as UTF-8"),
    ("age,y\n1,0\n2,1\n", {"test": "none.csv"}, "none.csv is missing; pass a file"),
  ],
)
def test_mistakes_in_a_table_are_one_line(write, text, options, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
    load(write(text), **options)
  assert "\n" not in str(caught.value)


def test_arrays_of_an_npz(tmp_path, caplog):
  x, y = (
    np.random.default_rng(0).random((6, 3), np.float32),
    np.array([1, 2, 2, 1, 1, 2]),
  )
  path = tmp_path / "mine.npz"
  np.savez(path, x=x, y=y, who=y, notes=np.arange(2))
  with caplog.at_level(logging.INFO, logger="absl"):
    data = load(path, group="who")
  assert "mine.npz: notes are not read" in caplog.text
  np.testing.assert_array_equal(data.x, x)
  assert (data.y.tolist(), data.classes) == ([0, 1, 1, 0, 0, 1], ("1", "2"))
  assert data.groups.tolist() == y.tolist()
  np.savez(
    path, x_train=x, y_train=np.eye(3)[y - 1], x_test=x[:2], y_test=np.eye(3)[:2]
  )
  caplog.clear()
  with caplog.at_level(logging.INFO, logger="absl"):
    data = load(path.rename(tmp_path / "mine.NPZ"))
  assert "not read" not in caplog.text
  assert (data.y.tolist(), data.test.y.tolist()) == ([0, 1, 1, 0, 0, 1], [0, 1])
  assert data.name == data.test.name == "mine"


def test_token_ids_and_series_are_records(tmp_path):
  path = tmp_path / "text.npz"
  tokens = np.arange(12).reshape(4, 3)
  np.savez(path, x=tokens, y=[0, 1, 0, 1])
  data = load(path)
  assert (data.x.dtype, data.x.shape, data.num_tokens) == (np.int32, (4, 3), 12)
  np.savez(path, x=np.zeros((4, 5, 2)), y=[0, 1, 0, 1])
  assert (load(path).x.dtype, load(path).num_tokens) == (np.float32, None)
  table = {"ids": [[1, 2], [3, 4]], "y": ["a", "b"]}
  parquet.write_table(pa.table(table), tmp_path / "t.parquet")
  assert load(tmp_path / "t.parquet").x.tolist() == table["ids"]


@pytest.mark.parametrize(
  ("arrays", "options", "message"),
  [
    ({"a": [[1.0]]}, {}, "no array 'x'; it holds a: write it with numpy.savez"),
    ({"x": [[1.0], [2]], "y": [0, 1]}, {"group": "w"}, "no array 'w'; it holds x, y"),
    ({"x": [1.0, 2], "y": [0, 1]}, {}, r"x has shape \(2,\); reshape"),
    ({"x": [[1.0], [np.nan]], "y": [0, 1]}, {}, r"x\[1, 0\] is nan"),
    ({"x": [[1.0], [2]], "y": [0, 1, 1]}, {}, "'x' has 2 entries and 'y' has 3"),
    ({"x": [[1.0], [2]], "y": [0, np.nan]}, {}, "'y' is missing in row 1"),
    ({"x": [[1.0], [2]], "y": [1, 1]}, {}, "'y' is 1 in every record"),
    ({"x": [["a"], ["b"]], "y": [0, 1]}, {}, "x has type <U1; convert"),
    ({"x": [[1.0], [2]], "y": [0, 1]}, {"schema": {}}, "an npz holds arrays: drop sch"),
  ],
)
def test_mistakes_in_an_npz_are_one_line(tmp_path, arrays, options, message):
  path = tmp_path / "mine.npz"
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=message) as caught:
    load(path, **options)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def draw(folder, name, shape=(4, 6), value=0, suffix="png"):
  (folder / name).mkdir(parents=True, exist_ok=True)
  pixels = np.full(shape, value, np.uint8)
  count = len(list((folder / name).iterdir()))
  path = folder / name / f"{count}.{suffix}"
  PIL.Image.fromarray(pixels).save(path)
  return path


def test_a_folder_of_pictures(tmp_path):
  for split in ("train", "test"):
    draw(tmp_path / split, "cat", value=10)
    draw(tmp_path / split, "ant", value=20, suffix="bmp")
  draw(tmp_path / "train", "cat", value=30)
  (tmp_path / "train" / ".DS_Store").write_text("")
  data = load(tmp_path / "train", test=tmp_path / "test")
  assert (data.name, data.classes, data.num_classes) == ("train", ("ant", "cat"), 2)
  assert data.x.shape == (3, 4, 6, 1)
  assert data.x[:, 0, 0, 0].tolist() == [20, 10, 30]
  assert data.y.tolist() == [0, 1, 1]
  assert data.ids.tolist() == ["ant/0.bmp", "cat/0.png", "cat/1.png"]
  assert data.test.y.tolist() == [0, 1]
  draw(tmp_path / "train", "cat", shape=(4, 6, 3), value=40)
  PIL.Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "train" / "ant" / "c.png")
  coloured = load(str(tmp_path / "train"))
  assert coloured.x.shape == (5, 4, 6, 3)
  assert coloured.x[1, 0, 0].tolist() == [1, 2, 3]


def _deep(folder):
  PIL.Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "cat" / "deep.png")


@pytest.mark.parametrize(
  ("spoil", "options", "message"),
  [
    (lambda f: draw(f, "cat", (5, 6)), {}, r"cat/1.png has 6 x 5 pixels and .* resize"),
    (lambda f: (f / "dog").mkdir(), {}, "dog holds no .png, .jpg, .jpeg files; pass"),
    (lambda f: (f / "cat/1.png").write_text("x"), {}, "cat/1.png is damaged"),
    (_deep, {}, "deep.png has more than 8 bits per channel"),
    (lambda f: None, {"label": "y"}, "a folder of pictures has no columns: drop label"),
  ],
)
def test_mistakes_in_a_folder_are_one_line(tmp_path, spoil, options, message):
  draw(tmp_path, "cat")
  draw(tmp_path, "ant")
  spoil(tmp_path)
  with pytest.raises(ValueError, match=message) as caught:
    load(tmp_path, **options)
  assert "\n" not in str(caught.value)


def test_classes_of_held_out_pictures_are_those_of_training(tmp_path):
  for name in ("train/cat", "train/ant", "test/cat", "test/dog"):
    draw(tmp_path, name)
  with pytest.raises(ValueError, match="subfolder 'dog', which is not a class of"):
    load(tmp_path / "train", test=tmp_path / "test")
  with pytest.raises(ValueError, match=r"train/cat has 0 subfolders; pass a folder"):
    load(tmp_path / "train" / "cat")


def test_errors_for_other_names(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match=r"no.csv is missing; .*it is empty"):
    load(tmp_path / "no.csv")
  (tmp_path / "a.xlsx").write_text("")
  with pytest.raises(ValueError, match=r"a.xlsx has an unknown format: .*from_data"):
    load(tmp_path / "a.xlsx")
  with pytest.raises(ValueError, match="digits is not a file: drop label='y'"):
    load("digits", label="y")
  assert len(load("digits", test=0.1).test) == 180
  monkeypatch.chdir(tmp_path)
  (tmp_path / "pets").mkdir()
  check_name("pets")
  with pytest.raises(ValueError, match="unknown data set 'dogs'"):
    check_name("dogs")
