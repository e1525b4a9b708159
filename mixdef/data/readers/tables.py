"""Readers of tables: .csv, .tsv and .parquet."""

import io
import pathlib

from mixdef.core.files import opened
from mixdef.data import files
from mixdef.data.columns import Columns, of_frame

_FIX = "export it again"


def read_csv(path: pathlib.Path) -> Columns:
  """Return the columns of a table with a header, as `columns.of_frame` does.

  Fields are separated by the most frequent of comma, semicolon and tab in the header.
  Empty fields and the usual markers, such as NA and NaN, are missing entries. Numbers,
  truth values and dates in the form 2020-01-31 are recognized.

  Args:
    path: path of the file, compressed by gzip or not.

  Raises:
    ValueError: naming the file and the fix.
  """
  from pyarrow import csv

  text = files.read_text(path, "export it again, as UTF-8")
  if not text.strip():
    raise ValueError(f"{path} is empty; it needs a header and at least two records")
  parse = csv.ParseOptions(delimiter=files.delimiter(text), newlines_in_values=True)
  with files.decoding(path, _FIX):
    table = csv.read_csv(
      io.BytesIO(text.lstrip().encode()),
      parse_options=parse,
      convert_options=csv.ConvertOptions(strings_can_be_null=True),
    )
  return of_frame(table, str(path))


def read_parquet(path: pathlib.Path) -> Columns:
  """Return the columns of a parquet file, as `columns.of_frame` does.

  Raises:
    ValueError: naming the file and the fix.
  """
  from pyarrow import parquet

  with files.decoding(path, _FIX), opened(path) as file:
    table = parquet.read_table(file)
  return of_frame(table, str(path))
