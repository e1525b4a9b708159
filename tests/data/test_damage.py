"""Whatever is wrong with a file of any set is one line that names its path."""

import contextlib
import functools
import gzip
import os
import pathlib
import random
import shutil
import struct
import tarfile
import tempfile
import uuid

import numpy as np
import PIL.Image
import pytest

from mixdef.core.files import path_of, remove, whole_file
from mixdef.data import CATALOGUE, ham10000, image_folder, sheets
from mixdef.data.cifar import CIFAR10_NAMES
from mixdef.data.idx import NAMES

PIXELS = np.random.default_rng(0)


def picture(path, size, mode="RGB"):
  shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
  pixels = PIXELS.integers(0, 256, shape, dtype=np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(pixels).save(path, lossless=True)


def mnist(folder):
  for i, name in enumerate(NAMES):
    shape = (10, 3, 3) if i % 2 == 0 else (10,)
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}i", *shape)
    values = np.arange(np.prod(shape)) % 10
    (folder / name).write_bytes(gzip.compress(header + bytes(values.tolist())))


def cifar10(folder):
  (folder / "cifar10").mkdir()
  for i, name in enumerate(CIFAR10_NAMES):
    labels = range(2 * i, 2 * i + 2) if i < 5 else range(10)
    rows = b"".join(bytes([label]) + bytes(3072) for label in labels)
    (folder / "cifar10" / name).write_bytes(rows)


def sheet(folder, suffix):
  for name in ("train", "test"):
    picture(folder / "small" / f"{name}.{suffix}", (8, 4), "L")
  np.savez(folder / "small" / "labels.npz", y_train=[0, 1], y_test=[1, 0])


def read_sheet(folder):
  shape = {"side": 4, "columns": 2, "mode": "L", "num_classes": 2}
  return sheets.read(folder, "small", num_records=(2, 2), **shape)


def location30(folder):
  bits = np.zeros((30, 56), np.uint8)
  np.savez(folder / "location30.npz", x=bits, y=np.arange(30), n_features=446)


PURCHASE = np.column_stack([[1, 100, 7], np.ones((3, 600), int)])


def purchase_npz(folder):
  x, y = PURCHASE[:, 1:], PURCHASE[:, 0]
  np.savez_compressed(folder / "purchase100.npz", features=x, labels=y)


def purchase_text(folder):
  np.savetxt(folder / "dataset_purchase", PURCHASE, "%d", ",")


def purchase_archive(folder):
  purchase_text(folder)
  with tarfile.open(folder / "dataset_purchase.tgz", "w:gz") as tar:
    tar.add(folder / "dataset_purchase", "dataset_purchase")
  (folder / "dataset_purchase").unlink()


RECORD = (
  "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family,"
  " White, Male, 2174, 0, 40, United-States, "
)


def adult(folder):
  lines = [RECORD + "<=50K", RECORD + ">50K"]
  (folder / "adult.data").write_text("\n".join(lines))
  (folder / "adult.test").write_text("".join(f"{line}.\n" for line in lines))


def mimic(folder, suffix=""):
  (folder / "mimic3").mkdir()
  tables = {
    "ADMISSIONS.csv": "SUBJECT_ID,HADM_ID,ADMITTIME,HOSPITAL_EXPIRE_FLAG\n"
    "1,5,2150-03-01 10:00:00,0\n2,6,2150-03-02 10:00:00,1\n",
    "DIAGNOSES_ICD.csv": 'HADM_ID,ICD9_CODE\n5,"0389"\n6,"V103"\n',
  }
  for name, text in tables.items():
    raw = text.encode()
    raw = gzip.compress(raw) if suffix else raw
    (folder / "mimic3" / (name + suffix)).write_bytes(raw)


def celeba(folder):
  lines = ["3", "Young Male", "1.jpg 1 -1", "2.jpg 1 1", "3.jpg 1 1"]
  (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
  (folder / "list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 2\n3.jpg 0\n")
  for i in (1, 2, 3):
    picture(folder / "img_align_celeba" / f"{i}.jpg", (178, 218))


def ham(folder):
  for name in ("ISIC_1", "ISIC_2"):
    picture(folder / "images" / f"{name}.jpg", (20, 15))
  text = "image_id,dx\nISIC_1,vasc\nISIC_2,akiec\n"
  (folder / "HAM10000_metadata.csv").write_text(text)


def faces(folder):
  for person in "ab":
    picture(folder / "faces" / person / "1.jpg", (9, 9))


read_faces = functools.partial(
  image_folder.read_classes, name="faces", folders=["faces"], min_images=1, advice=""
)
purchase = functools.partial(CATALOGUE["purchase100"], num_records=3)
read_mimic = functools.partial(CATALOGUE["mimic3"], num_patients=2, num_rows=(2, 2))
READERS = {
  "mnist": (mnist, functools.partial(CATALOGUE["mnist"], digests={})),
  "cifar10": (cifar10, functools.partial(CATALOGUE["cifar10"], num_records=(10, 10))),
  "webp": (functools.partial(sheet, suffix="webp"), read_sheet),
  "png": (functools.partial(sheet, suffix="png"), read_sheet),
  "packed": (location30, functools.partial(CATALOGUE["location30"], num_records=30)),
  "npz": (purchase_npz, purchase),
  "text": (purchase_text, purchase),
  "archive": (purchase_archive, purchase),
  "adult": (adult, functools.partial(CATALOGUE["adult"], num_records=(2, 2))),
  "csv": (mimic, read_mimic),
  "csv.gz": (functools.partial(mimic, suffix=".gz"), read_mimic),
  "celeba": (celeba, functools.partial(CATALOGUE["celeba"], num_images=3)),
  "ham10000": (ham, functools.partial(ham10000.read, num_images=2)),
  "faces": (faces, read_faces),
}


@pytest.fixture(params=READERS)
def small(request, tmp_path):
  """Return a folder with the files of a small set, and its reader."""
  write, read = READERS[request.param]
  folder = tmp_path / "data"
  folder.mkdir()
  write(folder)
  return folder, read


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def outcome(folder, read):
  """Return the data and None, or None and the line of a refusal."""
  try:
    return read(folder), None
  except (ValueError, OSError) as error:
    line = str(error)
    assert str(folder) in line
    assert "\n" not in line
    return None, line


def refused(folder, read):
  """Return the line of a refusal, or None if the files were read."""
  return outcome(folder, read)[1]


def harms(raw, seed):
  """Yield contents that damage makes of one file."""
  dice = random.Random(seed)
  for _ in range(6):
    yield raw[: dice.randrange(len(raw))]
  for count in (1, 1, 1, 3, 30):
    changed = bytearray(raw)
    for _ in range(count):
      changed[dice.randrange(len(raw))] = dice.randrange(256)
    yield bytes(changed)
  # Headers lie at the start.
  for _ in range(8):
    changed = bytearray(raw)
    changed[dice.randrange(min(40, len(raw)))] ^= 1 << dice.randrange(8)
    yield bytes(changed)
  start = dice.randrange(len(raw))
  yield raw[:start] + bytes(len(raw) - start)
  yield raw + raw
  yield raw + dice.randbytes(20)
  yield dice.randbytes(len(raw))
  yield b"\xff\xfe" + raw


def test_every_small_set_reads(small):
  folder, read = small
  assert refused(folder, read) is None


CHECKED = (".gz", ".npz", ".tgz", ".png")  # formats with checksums


def test_damage_is_one_line(small):
  folder, read = small
  whole = read(folder)
  for path in files_of(folder):
    raw = path.read_bytes()
    for changed in harms(raw, path.name):
      path.write_bytes(changed)
      data, line = outcome(folder, read)
      if line is None and path.suffix in CHECKED:
        np.testing.assert_array_equal(data.x, whole.x)
        np.testing.assert_array_equal(data.y, whole.y)
    path.write_bytes(raw)


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"", "it is empty"),
    (b"\n<!DOCTYPE html>\n<title>404</title>", "a web page"),
    (b"<html>\r\n<p>Sign in</p>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n", "Git LFS"),
  ],
)
def test_what_is_in_the_place_of_a_file_is_said(small, content, reason):
  folder, read = small
  for path in files_of(folder):
    raw = path.read_bytes()
    path.write_bytes(content)
    line = refused(folder, read)
    assert reason in (line or "nothing"), (path.name, line)
    assert str(path) in line
    path.write_bytes(raw)


def test_a_folder_in_the_place_of_a_file_is_told(small):
  folder, read = small
  for path in files_of(folder):
    raw = path.read_bytes()
    path.unlink()
    path.mkdir()
    line = refused(folder, read)
    assert "folder" in (line or ""), (path.name, line)
    path.rmdir()
    path.write_bytes(raw)


def test_a_broken_link_is_told(small):
  folder, read = small
  for path in files_of(folder):
    kept = path.rename(folder.parent / "kept")
    path.symlink_to(folder.parent / "nothing")
    line = refused(folder, read)
    assert "link" in (line or "") or "lacks" in line, (path.name, line)
    path.unlink()
    path.symlink_to(kept)
    assert refused(folder, read) is None
    path.unlink()
    kept.rename(path)


def test_a_missing_file_is_told_with_what_is_there(small):
  folder, read = small
  for path in files_of(folder):
    kept = path.rename(folder.parent / "kept")
    if path.name != "list_eval_partition.txt":  # may be missing
      line = refused(folder, read)
      assert line, path.name
      assert "contains" in line or "is empty" in line, line
      assert "download it again" not in line
    kept.rename(path)


@pytest.fixture
def as_user():
  """Return a folder under a path that all may enter, read by a user without rights."""
  folder = pathlib.Path(tempfile.mkdtemp())
  folder.chmod(0o755)
  yield folder
  shutil.rmtree(folder)


@contextlib.contextmanager
def no_rights():
  """Give up the rights of the superuser, whom no permission stops."""
  if os.geteuid():
    yield
    return
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.mark.parametrize("name", READERS)
def test_what_may_not_be_read_is_not_called_damaged(as_user, name):
  write, read = READERS[name]
  write(as_user)
  assert refused(as_user, read) is None  # imports decoders while it may
  folders = {as_user, *(path.parent for path in files_of(as_user))}
  for path in [*files_of(as_user), *folders]:
    mode = path.stat().st_mode
    path.chmod(0)
    with no_rights():
      line = refused(as_user, read)
    path.chmod(mode)
    assert f"{path} cannot be read: Permission denied; give this user" in (line or "")
    assert "again" not in line


def test_clutter_of_desktops_is_skipped(small):
  folder, read = small
  junk = b"\0\5\x16\7\0\2\0\0Mac OS X"
  for path in files_of(folder):
    (path.parent / f"._{path.name}").write_bytes(junk)
  for place in {folder, *(path.parent for path in files_of(folder))}:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
      (place / name).write_bytes(junk)
    (place / "__MACOSX" / "a").mkdir(parents=True)
    (place / "__MACOSX" / "a" / "._1.jpg").write_bytes(junk)
  assert refused(folder, read) is None


def test_names_in_capitals_are_found(small):
  folder, read = small
  for path in files_of(folder):
    path.rename(path.with_name(path.name.upper()))
  for place in folder.iterdir():
    if place.is_dir() and place.name != "faces":
      place.rename(place.with_name(place.name.upper()))
  assert refused(folder, read) is None


def test_the_data_folder_may_be_the_folder_of_the_set(small):
  folder, read = small
  inside = list(folder.iterdir())
  if len(inside) == 1 and inside[0].is_dir() and inside[0].name != "faces":
    assert refused(inside[0], read) is None


def test_one_folder_deeper_is_found(small):
  folder, read = small
  inside = [path for path in folder.iterdir() if path.is_dir()]
  if len(inside) == 1 and len(list(folder.iterdir())) == 1:
    (place,) = inside
    kept = place.rename(folder.parent / "kept")
    place.mkdir()
    shutil.move(kept, place / "unpacked")
    assert refused(folder, read) is None


def test_every_small_set_is_read_from_a_bucket(small):
  local, read = small
  bucket = path_of(f"memory://{uuid.uuid4().hex}/data")
  for path in files_of(local):
    with whole_file(bucket / path.relative_to(local).as_posix()) as file:
      file.write(path.read_bytes())
  expected, found = read(local), read(bucket)
  for name in ("x", "y", "always_member"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  # A missing file has the same result as in a local folder.
  first = files_of(local)[0]
  remove(bucket / first.relative_to(local).as_posix())
  first.unlink()
  assert (refused(bucket, read) is None) == (refused(local, read) is None)
