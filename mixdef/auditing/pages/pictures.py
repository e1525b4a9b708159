"""Display a record: a small image, or the features of a table row."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.auditing.pages import formatting
from mixdef.core import extras
from mixdef.data.schema import Schema

_SMALL = 64
_LARGEST = 256
_FEATURES = 12


def record_pictures(
  x: Any, exposed: Sequence[Mapping[str, Any]], schema: Schema | None = None
) -> list[dict[str, Any]]:
  """Return a displayable form of each exposed record.

  Args:
    x: [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels for images, uint8 or floats of
      any range; anything else is shown as numbers. May be mapped; only exposed records
      are read.
    exposed: rank, index, label and rate of each record, as in the report.
    schema: how the columns of a table became x; records are then shown as the content
      of these columns.

  Returns:
    For each record `uri` (a PNG as data, None for a table), `alt`, `pixelated` (True
    where a browser should keep the pixels visible) and `text` (the first columns of a
    table, the non-zero features of a sparse row, otherwise its first values; None for
    an image).

  Raises:
    ValueError: if a record is not one of x.
  """
  for row in exposed:
    if not 0 <= row["index"] < len(x):
      raise ValueError(
        f"record {row['index']} is not in x, which has {len(x)} records; pass the x"
        " that was audited"
      )
  records = [np.asarray(x[row["index"]]) for row in exposed]
  if schema and not schema.rescaled and x.shape[1:] == (len(schema.features),):
    texts = [_columns(schema.decode(record)) for record in records]
    return [{"uri": None, "alt": "", "pixelated": False, "text": t} for t in texts]
  pictures = x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3, 4))
  if not pictures:
    return [
      {"uri": None, "alt": "", "pixelated": False, "text": _features(record.ravel())}
      for record in records
    ]
  low, high = _range(x.dtype, records)
  return [
    {
      "uri": data_uri(_png(record, low, high)),
      "alt": (
        f"Record {row['index']}, class {formatting.plain(row['label'])}: rank "
        f"{row['rank']}, identified in {formatting.percent(row['rate'])} of the models "
        "trained on it"
      ),
      "pixelated": max(record.shape[:2]) < _SMALL,
      "text": None,
    }
    for row, record in zip(exposed, records, strict=True)
  ]


def mosaic_png(x: ArrayLike, scale: int = 1) -> bytes:
  """Encode an image as a PNG, with enlarged pixels.

  Args:
    x: [H,W], [H,W,1] or [H,W,3] in [0,1].
    scale: number of rows and columns per pixel.
  """
  pixels = np.asarray(x, np.float64)
  large = pixels.repeat(scale, 0).repeat(scale, 1)
  return _png(large, 0.0, 1.0, largest=max(large.shape))


def _range(dtype: np.dtype, records: Sequence[np.ndarray]) -> tuple[float, float]:
  """Return the values of black and of white, the same for all displayed records."""
  if dtype == np.uint8:
    return 0.0, 255.0
  low = min((float(record.min()) for record in records), default=0.0)
  high = max((float(record.max()) for record in records), default=1.0)
  if low >= 0 and high <= 1:
    return 0.0, 1.0
  return low, high if high > low else low + 1


def data_uri(png: bytes) -> str:
  """Encode a PNG as a data URI for an img element."""
  return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(record: np.ndarray, low: float, high: float, largest: int = _LARGEST) -> bytes:
  extras.require("PIL")
  from PIL import Image

  pixels = np.clip((record.astype(np.float64) - low) / (high - low), 0, 1)
  pixels = np.rint(255 * pixels).astype(np.uint8)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  picture = Image.fromarray(pixels)
  picture.thumbnail((largest, largest))
  data = io.BytesIO()
  picture.save(data, format="PNG", optimize=True)
  return data.getvalue()


def _columns(content: Mapping[str, Any]) -> str:
  shown = dict(list(content.items())[:_FEATURES])
  return formatting.plain(shown) + (", …" if len(content) > _FEATURES else "")


def _features(record: np.ndarray) -> str:
  nonzero = np.flatnonzero(record)
  binary = np.isin(record, (0, 1)).all()
  if binary and len(record) > _FEATURES:
    named = ", ".join(str(place) for place in nonzero[:_FEATURES])
    more = ", …" if len(nonzero) > _FEATURES else ""
    where = f": {named}{more}" if len(nonzero) else ""
    return f"{len(nonzero)} of {len(record)} features are 1{where}"
  more = ", …" if len(record) > _FEATURES else ""
  return ", ".join(f"{value:.4g}" for value in record[:_FEATURES]) + more
