"""Text of a defense, `adamixup(end=0.1)|dp_sgd(noise_multiplier=1.0)`, read back.

The grammar is Python's: calls or bare names joined by `|`, with literal arguments. It
is read by `ast`, never evaluated. Models are written the same way, `mlp(256, 128)`.
"""

import ast
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from mixdef.chain import chain
from mixdef.defense import Defense


def parse(text: str, *, values: Mapping[str, Any] | None = None) -> Defense:
  """Build the chain that `text` describes; `str()` of the result gives it back.

  Args:
    text: `name(arguments)|name|...`, or `none`. Names are those of
      `mixdef.defenses.CATALOGUE`, their aliases, and those of `RECIPES` there, which
      stand for several parts; arguments are Python literals (`inf` too).
    values: what further names among the arguments stand for, traced numbers of a sweep
      for example: `parse("mixup(a)", values={"a": 0.3})`.

  Raises:
    ValueError: for an unknown name, an argument that is no literal or that the defense
      refuses, and parts that cannot be combined.

  >>> str(parse("l2(1e-4) | label_smoothing"))
  'weight_decay(coefficient=0.0001)|label_smoothing'
  >>> str(parse("hamp|ema"))
  'hamp_label|hamp_entropy(official_scale=True)|hamp_output|ema'
  """
  # Imported here: what they hold is built from what this module imports.
  from mixdef.defenses import ALIASES, CATALOGUE, RECIPES

  if text.strip() in ("", "none"):
    return chain()
  nodes = _split(expression(text))
  known, names = {**CATALOGUE, **RECIPES}, dict(values or {})
  return chain(*(_call(node, known, ALIASES, "defense", names) for node in nodes))


def parse_call(
  text: str,
  catalogue: Mapping[str, Callable],
  what: str,
  *,
  aliases: Mapping[str, str] | None = None,
  **extra,
) -> Any:
  """Build one thing from `name(arguments)`, for example a model.

  Args:
    text: the call.
    catalogue: name to factory.
    what: what the catalogue holds, for messages.
    aliases: other names, of an entry or of a call of one, `"ccl(form='ccql')"`; the
      text may override the arguments of that call, by keyword.
    **extra: arguments the alias and the text may override.
  """
  return _call(expression(text), catalogue, aliases or {}, what, {}, **extra)


def split_calls(text: str) -> list[str]:
  """Return the calls of a text that joins them by commas.

  >>> split_calls("rmia(gamma=1.0, a=0.5), base")
  ['rmia(gamma=1.0, a=0.5)', 'base']
  """
  node = expression(text if text.strip() else "()")
  return [ast.unparse(part) for part in getattr(node, "elts", [node])]


def expression(text: str) -> Any:
  """Return the syntax tree of a text.

  Raises:
    ValueError: for what is no expression, with the column.
  """
  try:
    return ast.parse(text.strip(), mode="eval").body
  except SyntaxError as error:
    raise ValueError(
      f"cannot read {text!r} (column {error.offset}): write name(argument=value), "
      f"parts joined by |, in quotes on the command line"
    ) from None


def _split(node):
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return [*_split(node.left), *_split(node.right)]
  return [node]


def _call(node, catalogue, aliases, what, names, **extra):
  function = node.func if isinstance(node, ast.Call) else node
  if not isinstance(function, ast.Name):
    raise ValueError(f"{ast.unparse(node)!r} is no {what}: write name(argument=value)")
  alias = expression(aliases.get(function.id, function.id))
  name = ast.unparse(alias.func if isinstance(alias, ast.Call) else alias)
  if name not in catalogue:
    near = difflib.get_close_matches(name, [*catalogue, *aliases], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "known:"
    known = "" if near else " " + ", ".join(sorted(catalogue))
    raise ValueError(f"no {what} is called {function.id!r}; {hint}{known}")
  _, preset = _arguments(alias, name, {})
  args, given = _arguments(node, name, names)
  try:
    return catalogue[name](*args, **{**extra, **preset, **given})
  except TypeError as error:
    raise ValueError(f"{ast.unparse(node)}: {error}") from None


def _arguments(node, name, names):
  """Return the positional and the keyword arguments of a call; none of a bare name."""
  if not isinstance(node, ast.Call):
    return [], {}
  given = {}
  for keyword in node.keywords:
    if keyword.arg is None:
      raise ValueError(f"{name}: write each argument out, ** is not read")
    if keyword.arg in given:
      raise ValueError(f"{name}: {keyword.arg} is given twice")
    given[keyword.arg] = literal(keyword.value, name, names)
  return [literal(arg, name, names) for arg in node.args], given


def literal(node: ast.AST, where: str, names: Mapping[str, Any]) -> Any:
  """Return the value of an argument's node, or what its name stands for."""
  if isinstance(node, ast.Name) and node.id in names:
    return names[node.id]
  if isinstance(node, ast.Name) and node.id == "inf":
    return math.inf
  try:
    return ast.literal_eval(node)
  except ValueError:
    raise ValueError(
      f"{where}: {ast.unparse(node)!r} is no literal; numbers, strings in quotes, "
      f"True, False, None and tuples are"
    ) from None
