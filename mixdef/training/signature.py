"""Fingerprints of a run; reject folders that hold a different run."""

import json
import pathlib

from absl import logging

from mixdef.core.files import write_json
from mixdef.core.reading import Damaged, digest, read_json
from mixdef.data import Dataset


class AnotherRun(ValueError):
  """The folder holds a run that differs in a way that affects results."""


def digest_data(data: Dataset) -> str:
  """Hash the content of a data set, including its held-out records."""
  parts = data.x, data.y, data.auxiliary, data.always_member, data.ids
  if data.groups is not None:
    parts += (data.groups,)
  rest = "" if data.test is None else digest_data(data.test)
  return digest(*parts, data.num_classes, data.name, rest)


def same_or_refuse(
  path: pathlib.Path, found: dict, *, fix: str, noted: dict | None = None
) -> bool:
  """Write `found` to `path`, or compare it with the content written by an earlier run.

  A damaged file is rewritten, with a warning. Therefore everything stored next to it
  must itself record what it was made from.

  Args:
    path: a JSON file.
    found: the values that must be equal.
    fix: what to do about a difference, for the error message.
    noted: values written with it but never compared, such as versions and devices.

  Returns:
    Whether the file was written.

  Raises:
    AnotherRun: the message names each field that differs, with both values.
  """
  try:
    earlier = read_json(path, fix="it is written again")
  except FileNotFoundError:
    earlier = None
  except Damaged as error:
    logging.warning("%s", error)
    earlier = None
  if earlier is None:
    write_json(path, {**found, **(noted or {})})
    return True
  for name in noted or {}:
    earlier.pop(name, None)
  equal_or_refuse(path, earlier, found, fix=fix)
  return False


def equal_or_refuse(path: pathlib.Path, earlier: dict, found: dict, *, fix: str):
  """Raise if the values that an earlier run recorded at `path` differ from this run's.

  Raises:
    AnotherRun: the message names each field that differs, with both values.
  """
  found = json.loads(json.dumps(found))
  differing = [
    f"{name} was {earlier.get(name)!r}, now {found.get(name)!r}"
    for name in sorted({*earlier, *found})
    if earlier.get(name) != found.get(name)
  ]
  if differing:
    raise AnotherRun(f"{path} belongs to another run: {'; '.join(differing)}. {fix}")
