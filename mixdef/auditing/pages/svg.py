"""Matplotlib figures as inline SVG with the colours and font of the page."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from mixdef.core import extras
from mixdef.metrics import drawing

INK, MUTED, GRID, SHADE, PAPER = (f"#0203{n:02x}" for n in range(5))
"""Placeholder colours: each becomes the CSS variable of the same name."""
SERIES = tuple(f"#0204{n:02x}" for n in range(1, 7))
"""Placeholder colours of the series, `var(--series-1)` and so on."""
DASHES = (None, (7, 2), (3, 2), (8, 2, 2, 2), (1, 1.5), (5, 1, 1, 1, 1, 1))
"""Dash pattern of each series, so that curves can be identified without colour."""

_VARIABLES = dict(
  zip(
    (INK, MUTED, GRID, SHADE, PAPER),
    ("ink", "muted", "grid", "shade", "paper"),
    strict=True,
  )
) | {color: f"series-{number}" for number, color in enumerate(SERIES, 1)}

_STYLE = {
  "svg.fonttype": "none",
  "text.parse_math": False,
  "font.size": 10,
  "text.color": INK,
  "axes.labelcolor": INK,
  "axes.edgecolor": MUTED,
  "axes.linewidth": 0.7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.labelcolor": INK,
  "ytick.labelcolor": INK,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
}


def draw(
  paint: Callable[[Any], None], *, size: tuple[float, float], name: str, alt: str
) -> str:
  """Draw a figure and return it as an SVG element for inclusion in a page.

  Text remains text in the font of the page, and colours are CSS variables, so one image
  serves a dark and a light page. Every id starts with `name`, so images of one page do
  not share clip paths.

  Args:
    paint: function that draws on a matplotlib Figure, in this module's placeholder
    colours.
    size: width and height in inches; the page scales the image.
    name: prefix of the ids, unique in the page: letters, digits and hyphens.
    alt: one sentence that describes the image to readers who cannot see it.

  Returns:
    One `<svg>` element, in which text from the data is escaped.
  """
  from markupsafe import escape

  text = io.StringIO()
  with (
    warnings.catch_warnings(),
    drawing.plainly(_STYLE | {"svg.hashsalt": name}),
  ):
    # The browser draws the text, so a glyph missing from matplotlib's font is harmless.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    extras.require("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    paint(figure)
    unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=unnamed)
  svg = text.getvalue()
  body = svg[svg.index(">", svg.index("<svg")) + 1 :]
  # Matplotlib's own style element would apply to the whole page.
  body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.S)
  body = re.sub(r'\bid="', f'id="{name}-', body)
  body = body.replace("url(#", f"url(#{name}-")
  body = body.replace('xlink:href="#', f'href="#{name}-')
  body = re.sub(r"(?<=[\"\s])font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
  for color, variable in _VARIABLES.items():
    body = body.replace(color, f"var(--{variable})")
  width, height = (72 * side for side in size)
  return (
    f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img"'
    f' viewBox="0 0 {width:g} {height:g}" aria-label="{escape(alt)}">{body}'
  )


def dash(number: int) -> Any:
  """Return matplotlib's line style of a series."""
  pattern = DASHES[number]
  return (0, pattern) if pattern else "-"


def dash_array(number: int) -> str:
  """Return the `stroke-dasharray` of a series, empty for a solid line.

  >>> dash_array(0), dash_array(1)
  ('', '7 2')
  """
  return " ".join(str(length) for length in DASHES[number] or ())
