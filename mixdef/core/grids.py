"""Grids of defenses: `mixup([0.1, 1.0])` is a text that describes two defenses."""

import ast
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from mixdef.core.hooks import Defense
from mixdef.core.parsing import expression, literal, parse, written


class Grid(NamedTuple):
  """A family of defenses that differ in the values listed in their text.

  Attributes:
    text: the text as written, including the lists.
    template: the text with each list replaced by a name.
    values: the values of each name, one per cell.
  """

  text: str
  template: str
  values: dict[str, tuple]

  @property
  def cells(self) -> list[dict[str, Any]]:
    """The value of each name, per cell; one empty dict if the text has no lists."""
    rows = zip(*self.values.values(), strict=True)
    return [dict(zip(self.values, row, strict=True)) for row in rows] or [{}]

  @property
  def texts(self) -> list[str]:
    """The canonical text of each cell."""
    return [str(self.defense(**cell)) for cell in self.cells]

  def defense(self, **values: Any) -> Defense:
    """Return the chain for these values, which may be traced."""
    return parse(self.template, values=values)

  def select(self, cells: Sequence[int]) -> "Grid":
    """Return the grid restricted to some cells, given by index."""
    values = {
      name: tuple(column[i] for i in cells) for name, column in self.values.items()
    }
    return self._replace(values=values)

  def traceable(self) -> bool:
    """Whether one program can train all cells: nothing static depends on the values."""
    values = [value for column in self.values.values() for value in column]
    if not values or not all(type(v) is float and math.isfinite(v) for v in values):
      return False

    def build(values):
      self.defense(**values)

    try:
      jax.eval_shape(build, self.cells[0])
    except (TypeError, ValueError):
      return False
    return True


def read_grids(text: str) -> list[Grid]:
  """Read families of defenses, joined by `;`.

  Args:
    text: defenses as accepted by `mixdef.parse`. A list as an argument is a grid over
      its values; several lists give every combination.

  Raises:
    ValueError: for anything that `mixdef.parse` rejects in any cell, for an empty list,
      and for a text without a defense.

  >>> [grid.texts for grid in read_grids("none; label_smoothing([0.1, 0.5])")]
  [['none'], ['label_smoothing', 'label_smoothing(epsilon=0.5)']]
  """
  grids = [_read(part.strip()) for part in text.split(";") if part.strip()]
  if not grids:
    raise ValueError(
      f"{text!r} contains no defense: use 'none' for the undefended model"
    )
  for grid in grids:
    grid.texts  # noqa: B018  reject an invalid cell before any cell is trained
  return grids


def _read(text: str) -> Grid:
  lists: dict[str, list] = {}

  class Names(ast.NodeTransformer):
    """Replace each list by a name."""

    def visit_List(self, node):
      if not node.elts:
        raise ValueError(f"{text!r} contains an empty list: add the values to try")
      name = f"grid_{len(lists)}"
      lists[name] = [literal(one, text, {}) for one in node.elts]
      return ast.copy_location(ast.Name(name), node)

  template = written(Names().visit(expression(text)))
  columns = zip(*itertools.product(*lists.values()), strict=True)
  return Grid(text, template, dict(zip(lists, columns, strict=True)) if lists else {})
