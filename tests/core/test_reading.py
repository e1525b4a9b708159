"""Whatever is wrong with a file is one line that names it and the fix."""

import io
import json
import zipfile

import numpy as np
import pytest

from mixdef.core.reading import Damaged, check_form, parse_json, read_json, read_npz

ARRAYS = {"a": np.arange(12.0).reshape(3, 4), "b/c": np.array([True, False])}


@pytest.fixture
def npz(tmp_path):
  path = tmp_path / "arrays.npz"
  np.savez(path, **ARRAYS)
  return path


def refused(path, match="", read=read_npz):
  with pytest.raises(Damaged, match=match) as raised:
    read(path, fix="write it again")
  line = str(raised.value)
  assert line.startswith(str(path))
  assert line.endswith("; write it again")
  assert "\n" not in line
  assert len(line) < 500


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, write):
  more = {**ARRAYS, "empty": np.zeros((0, 3)), "one": np.float32(1), "word": "text"}
  write(tmp_path / "a.npz", **more)
  found = read_npz(tmp_path / "a.npz", fix="")
  assert found.keys() == more.keys()
  for name, array in more.items():
    np.testing.assert_array_equal(found[name], array)


def header(shape, dtype="<f8"):
  """Return the bytes of an npy file that claims a shape and holds one number."""
  file = io.BytesIO()
  claimed = {"descr": dtype, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, claimed)
  return file.getvalue() + np.float64(1).tobytes()


@pytest.mark.parametrize("shape", [(2**50,), (2**20, 2**20), (-1,), (2**64, 2)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_memory_is_taken_for_what_a_header_claims(tmp_path, shape, compression):
  path = tmp_path / "a.npz"
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("a.npy", header(shape))
  refused(path, "'a.npy' is not as long as its header says")


def test_members_that_are_no_arrays_are_refused(tmp_path):
  path = tmp_path / "a.npz"
  for content, match in [
    (b"text", "magic"),
    (header((1,), "|O"), "holds Python objects"),
    (header((1,))[:40], "EOF"),
    (b"\x93NUMPY\x03\x00" + header((1,))[8:], "version"),
  ]:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("a.npy", content)
    refused(path, match)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("a.npy", header((1,)))
  refused(path, "uses a compression")


def test_a_changed_number_is_found_by_its_checksum(npz):
  content = bytearray(npz.read_bytes())
  content[content.index(np.float64(7).tobytes())] ^= 1
  npz.write_bytes(content)
  refused(npz, "CRC")


def test_what_is_no_file_is_told(tmp_path):
  refused(tmp_path, "not a regular file")
  refused(tmp_path, "not a regular file", read_json)
  (tmp_path / "file").touch()
  for read in (read_npz, read_json):
    for path in (tmp_path / "none", tmp_path / "file" / "inside"):
      with pytest.raises(FileNotFoundError, match=r"is missing; write it again"):
        read(path, fix="write it again")


@pytest.mark.parametrize(
  ("text", "match"),
  [
    (b"", "Expecting value"),
    (b"{", "Expecting property name"),
    (b"[]", r"it is \[\], not dict"),
    (b"null", "it is None, not dict"),
    (b'"\xff"', "utf-8"),
    (b'{"a": NaN}', "has NaN"),
    (b'{"a": -Infinity}', "has -Infinity"),
    (b'{"a": 1e999}', "has 1e999"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "integer string"),
  ],
)
def test_what_is_no_json_object_is_refused(tmp_path, text, match):
  path = tmp_path / "a.json"
  path.write_bytes(text)
  refused(path, match, read_json)


FORM = {"name": str, "sizes": [int], "more": {"rate": (float, type(None))}}
VALUE = {"name": "a", "sizes": [1, 2], "more": {"rate": 0.5}, "other": {}}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({}, None),
    ({"more": {"rate": 1}}, None),
    ({"more": {"rate": None}}, None),
    ({"sizes": []}, None),
    ({"name": None}, "name is None, not str"),
    ({"sizes": 3}, "sizes is 3, not list"),
    ({"sizes": [1, True]}, r"sizes\[1\] is True, not int"),
    ({"sizes": [1, 2.5]}, r"sizes\[1\] is 2.5, not int"),
    ({"more": []}, r"more is \[\], not dict"),
    ({"more": {}}, "more has no 'rate'"),
    ({"more": {"rate": "a" * 999}}, r"more.rate is 'aaaa.*\.\.\., not float or null"),
  ],
)
def test_a_value_of_another_form_is_named(change, message):
  value = parse_json(json.dumps({**VALUE, **change}).encode())
  if message is None:
    check_form(value, FORM)
  else:
    with pytest.raises(ValueError, match=message):
      check_form(value, FORM)
