import importlib.util
import io
import os
import pathlib
import sys

import numpy as np
import PIL.Image
import pytest

from mixdef.data import CATALOGUE, load

tfds = pytest.importorskip("tensorflow_datasets")


def read(name, data_dir):
  return CATALOGUE[name](data_dir, num_records=(12, 5))


def _png(pixels):
  stream = io.BytesIO()
  PIL.Image.fromarray(np.squeeze(pixels)).save(stream, "PNG")
  return stream.getvalue()


def _pixels(i, shape):
  return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def _builder(
  name,
  shape,
  num_classes,
  data_dir,
  *,
  version="3.0.2",
  celeba=False,
  attributes=("Male", "Young"),
):
  """Make a small builder with the name and the features of the catalogue's."""
  features = {"image": tfds.features.Image(shape=shape)}
  if celeba:
    features["attributes"] = dict.fromkeys(attributes, np.bool_)
  else:
    features["label"] = tfds.features.ClassLabel(num_classes=num_classes)

  def examples(start, count):
    for i in range(start, start + count):
      # features.Image takes encoded bytes where TensorFlow is absent.
      example = {"image": io.BytesIO(_png(_pixels(i, shape)))}
      if celeba:
        example["attributes"] = {
          name: bool(i % 3 == 0) if name == "Male" else True for name in attributes
        }
      else:
        example["label"] = i % num_classes
      yield i, example

  def info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  members = {
    "VERSION": tfds.core.Version(version),
    "name": name,
    "_info": info,
    "_split_generators": lambda self, _: {
      "train": examples(0, 12),
      "test": examples(100, 5),
    },
    "_generate_examples": lambda self: None,
  }
  with tfds.core.registered.skip_registration():
    small = type("Small", (tfds.core.GeneratorBasedBuilder,), members)
  return small(data_dir=data_dir, file_format="array_record")


def _prepare(*arguments, **options):
  builder = _builder(*arguments, **options)
  builder.download_and_prepare()
  return builder


@pytest.mark.parametrize(
  ("name", "shape", "num_classes"),
  [
    ("mnist", (28, 28, 1), 10),
    ("fashion_mnist", (28, 28, 1), 10),
    ("cifar10", (32, 32, 3), 10),
    ("cifar100", (32, 32, 3), 100),
    ("stl10", (96, 96, 3), 10),
  ],
)
def test_reads_a_prepared_set(tmp_path, name, shape, num_classes):
  _prepare(name, shape, num_classes, tmp_path)
  data = read(name, tmp_path)
  assert (data.x.shape, data.x.dtype) == ((12, *shape), np.uint8)
  assert (len(data.test), data.num_classes, data.name) == (5, num_classes, name)
  # The prepared order is shuffled: match the records by their pixels.
  for part, ids in ((data, range(12)), (data.test, range(100, 105))):
    known = {_pixels(i, shape).tobytes(): i % num_classes for i in ids}
    assert {x.tobytes(): y for x, y in zip(part.x, part.y, strict=True)} == known


def test_celeba_is_cropped_and_asks_for_male(tmp_path):
  _prepare("celeb_a", (218, 178, 3), 2, tmp_path, celeba=True)
  data = read("celeba", tmp_path)
  assert (data.x.shape, data.num_classes) == ((12, 64, 64, 3), 2)
  assert data.y.sum() == 4
  blocks = [_pixels(i, (218, 178, 3))[45:173, 25:153] for i in range(12)]
  means = sorted(block.mean() for block in blocks)
  np.testing.assert_allclose(sorted(x.mean() for x in data.x), means, atol=0.7)


@pytest.mark.parametrize(
  ("shape", "attributes", "message"),
  [
    ((218, 178, 3), ("Young", "Smiling"), r"cannot be read \('Male'\)"),
    ((64, 64, 3), ("Male",), r"image 0 is \(64, 64, 3\), not \(218, 178, 3\)"),
    ((218, 178, 1), ("Male",), r"image 0 is \(218, 178, 1\), not \(218, 178, 3\)"),
  ],
)
def test_pitfall_151_other_faces_under_the_name_of_celeba_are_named(
  tmp_path, shape, attributes, message
):
  _prepare("celeb_a", shape, 2, tmp_path, celeba=True, attributes=attributes)
  with pytest.raises(ValueError, match=rf"celeb_a/3\.0\.2 is damaged.*{message}"):
    load("celeba", data_dir=tmp_path)


def test_pitfall_151_other_labels_under_the_right_name_are_named(tmp_path):
  _prepare("cifar10", (32, 32, 3), 100, tmp_path)
  with pytest.raises(ValueError, match=r"cifar10/3\.0\.2: .* but num_classes is 10"):
    load("cifar10", data_dir=tmp_path)


def test_pitfall_151_a_reduced_copy_never_passes_for_celeba(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for folder in (tmp_path / "celeba64", tmp_path / "celeba"):
    folder.mkdir()
    PIL.Image.new("RGB", (64 * 64, 64)).save(folder / "train.png")
    PIL.Image.new("RGB", (64 * 64, 64)).save(folder / "test.png")
    np.savez(folder / "labels.npz", y_train=np.zeros(64), y_test=np.zeros(64))
  with pytest.raises(
    FileNotFoundError, match=r"celeba: neither img_align_celeba/.* nor a"
  ):
    load("celeba", data_dir=tmp_path)


def test_the_newest_version_is_read(tmp_path):
  for version in ("9.0.0", "10.0.0"):
    _prepare("mnist", (28, 28, 1), 10, tmp_path, version=version)
  for path in (tmp_path / "mnist" / "9.0.0").glob("*array_record*"):
    path.unlink()
  assert len(read("mnist", tmp_path)) == 12


def test_reading_needs_no_tensorflow(tmp_path, monkeypatch):
  _prepare("mnist", (28, 28, 1), 10, tmp_path)
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  assert len(read("mnist", tmp_path)) == 12


def test_a_damaged_set_is_named(tmp_path):
  _prepare("mnist", (28, 28, 1), 10, tmp_path)
  (path,) = (tmp_path / "mnist" / "3.0.2").glob("*train.array_record*")
  os.truncate(path, 100)
  with pytest.raises(ValueError, match=r"mnist/3\.0\.2 is damaged: split 'train'"):
    load("mnist", data_dir=tmp_path)


def test_another_file_format_is_explained(tmp_path):
  folder = _prepare("mnist", (28, 28, 1), 10, tmp_path).data_path
  info = folder / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match=r"holds tfrecord files.*tfds build mnist"):
    load("mnist", data_dir=tmp_path)


def test_a_missing_set_names_files_folder_and_command(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(FileNotFoundError) as caught:
    load("mnist", data_dir=tmp_path)
  line = str(caught.value)
  assert "\n" not in line
  assert f"train-images-idx3-ubyte.gz and its three siblings in {tmp_path}" in line
  assert "python -m pip install -e '.[prepare]'" in line
  assert f"tfds build mnist --data_dir={tmp_path} --file_format=array_record" in line
  for name in ("cifar10", "cifar100", "stl10", "celeba"):
    with pytest.raises(FileNotFoundError, match=f"{name}: .*tfds build"):
      load(name, data_dir=tmp_path)


def test_a_set_is_prepared_where_it_can_be(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(
    tfds,
    "builder",
    lambda name, data_dir, file_format: _builder(name, (96, 96, 3), 10, data_dir),
  )
  assert len(read("stl10", tmp_path)) == 12
  assert (tmp_path / "stl10" / "3.0.2" / "dataset_info.json").is_file()


def test_a_failed_download_keeps_the_advice(tmp_path, monkeypatch):
  def offline(name, data_dir, file_format):
    raise ConnectionError("no route to host\nand a page of hints")

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(tfds, "builder", offline)
  with pytest.raises(FileNotFoundError, match=r"build stl10 .*no route to host\)$"):
    load("stl10", data_dir=tmp_path)


def test_a_set_of_another_builder_is_named(tmp_path):
  _prepare("fashion_mnist", (28, 28, 1), 10, tmp_path)
  (tmp_path / "fashion_mnist").rename(tmp_path / "mnist")
  with pytest.raises(
    ValueError, match="holds fashion_mnist, not mnist; keep each data set"
  ):
    read("mnist", tmp_path)


def test_a_prepared_set_of_another_size_is_named(tmp_path):
  _prepare("cifar10", (32, 32, 3), 10, tmp_path)
  with pytest.raises(
    ValueError,
    match=r"3\.0\.2 is not the complete cifar10: it has 12 \+ 5 records, not",
  ):
    load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b'{"name": 3}', b"\xff"])
def test_a_damaged_description_is_one_line(tmp_path, name, content):
  folder = pathlib.Path(_prepare("mnist", (28, 28, 1), 10, tmp_path).data_path)
  (folder / name).write_bytes(content)
  with pytest.raises(ValueError, match=f"^{folder} ") as caught:
    read("mnist", tmp_path)
  assert "\n" not in str(caught.value)


def test_records_that_are_no_records_are_one_line(tmp_path):
  folder = pathlib.Path(_prepare("mnist", (28, 28, 1), 10, tmp_path).data_path)
  (path,) = folder.glob("*test.array_record*")
  raw = path.read_bytes()
  for content in (b"", b"<html>", raw[: len(raw) // 2], bytes(len(raw))):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{folder} is damaged: split 'test'"):
      read("mnist", tmp_path)


def test_without_tensorflow_datasets_the_advice_is_the_same(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(
    FileNotFoundError, match=r"^mnist: neither train-.*pip install .*tensorflow_data"
  ):
    load("mnist", data_dir=tmp_path)


def test_any_set_by_its_name(tmp_path):
  _prepare("street", (6, 5, 3), 4, tmp_path)
  data = load("tfds:street", data_dir=tmp_path)
  assert (data.x.shape, data.x.dtype, data.name) == ((12, 6, 5, 3), np.uint8, "street")
  for part, ids in ((data, range(12)), (data.test, range(100, 105))):
    known = {_pixels(i, (6, 5, 3)).tobytes(): i % 4 for i in ids}
    assert {x.tobytes(): y for x, y in zip(part.x, part.y, strict=True)} == known
  with pytest.raises(ValueError, match="tfds:street, split train has no column 'z'"):
    load("tfds:street", data_dir=tmp_path, label="z")
  with pytest.raises(FileNotFoundError, match=r"^lane: no prepared .*lane/<ver"):
    load("tfds:lane", data_dir=tmp_path)


def test_tables_and_text_by_name(tmp_path):
  features = {"age": np.float32, "sex": tfds.features.Text(), "ill": np.int64}
  rows = [{"age": 20.0 + i, "sex": "fm"[i % 2], "ill": i % 2} for i in range(8)]
  members = {
    "VERSION": tfds.core.Version("1.0.0"),
    "name": "people",
    "_info": lambda self: tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    ),
    "_split_generators": lambda self, _: {"train": enumerate(rows)},
    "_generate_examples": lambda self: None,
  }
  with tfds.core.registered.skip_registration():
    small = type("People", (tfds.core.GeneratorBasedBuilder,), members)
  small(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  data = load("tfds:people", data_dir=tmp_path, label="ill")
  assert data.schema.features == ("age", "sex=f", "sex=m")
  assert (len(data), data.test) == (8, None)
