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


def parse(text: str) -> Defense:
  """Build the chain that `text` describes; `str()` of the result gives it back.

  Args:
    text: `name(arguments)|name|...`, or `none`. Names are those of
      `mixdef.defenses.CATALOGUE` and their aliases, arguments are Python literals
      (`inf` too).

  Raises:
    ValueError: for an unknown name, an argument that is no literal or that the defense
      refuses, and parts that cannot be combined.

  >>> str(parse("l2(1e-4) | label_smoothing"))
  'weight_decay(coefficient=0.0001)|label_smoothing'
  """
  from mixdef.defenses import ALIASES, CATALOGUE  # they are built from this module's

  if text.strip() in ("", "none"):
    return chain()
  nodes = _split(_expression(text))
  return chain(*(_call(node, CATALOGUE, ALIASES, "defense") for node in nodes))


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
    aliases: other names of its entries.
    **extra: arguments the text may override.
  """
  return _call(_expression(text), catalogue, aliases or {}, what, **extra)


def split_calls(text: str) -> list[str]:
  """Return the calls of a text that joins them by commas.

  >>> split_calls("rmia(gamma=1.0, a=0.5), base")
  ['rmia(gamma=1.0, a=0.5)', 'base']
  """
  node = _expression(f"({text},)" if text.strip() else "()")
  return [ast.unparse(part) for part in node.elts]


def _expression(text):
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


def _call(node, catalogue, aliases, what, **extra):
  function = node.func if isinstance(node, ast.Call) else node
  if not isinstance(function, ast.Name):
    raise ValueError(f"{ast.unparse(node)!r} is no {what}: write name(argument=value)")
  name = aliases.get(function.id, function.id)
  if name not in catalogue:
    near = difflib.get_close_matches(name, [*catalogue, *aliases], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "known:"
    known = "" if near else " " + ", ".join(sorted(catalogue))
    raise ValueError(f"no {what} is called {function.id!r}; {hint}{known}")
  args, kwargs = [], dict(extra)
  if isinstance(node, ast.Call):
    args = [_literal(arg, name) for arg in node.args]
    for keyword in node.keywords:
      if keyword.arg is None:
        raise ValueError(f"{name}: write each argument out, ** is not read")
      if keyword.arg in kwargs and keyword.arg not in extra:
        raise ValueError(f"{name}: {keyword.arg} is given twice")
      kwargs[keyword.arg] = _literal(keyword.value, name)
  try:
    return catalogue[name](*args, **kwargs)
  except TypeError as error:
    raise ValueError(f"{ast.unparse(node)}: {error}") from None


def _literal(node, name):
  if isinstance(node, ast.Name) and node.id == "inf":
    return math.inf
  try:
    return ast.literal_eval(node)
  except ValueError:
    raise ValueError(
      f"{name}: {ast.unparse(node)!r} is no literal; numbers, strings in quotes, "
      f"True, False, None and tuples are"
    ) from None
