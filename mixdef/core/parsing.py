"""Parser for the text of a defense, `adamixup(end=0.1)|dp_sgd(noise_multiplier=1.0)`.

The grammar is Python's: calls or bare names joined by `|`, with literal arguments. The
text is parsed by `ast` and never evaluated. Models use the same syntax,
`mlp(256, 128)`.
"""

import ast
import difflib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mixdef.core.chaining import chain
from mixdef.core.hooks import Defense
from mixdef.core.registry import DEFENSES, PARTS, RECIPES, Registry

# A quoted string, which is left unchanged, or `my_module:` before a name.
_QUALIFIED = re.compile(r"""('[^']*'|"[^"]*")|([A-Za-z_][\w.]*):(?=[A-Za-z_])""")
_COLON = "_colon_"  # replaces the colon, so that the text is a Python expression


def _marked(found: re.Match) -> str:
  return found[1] or f"{found[2]}.{_COLON}."


def written(node: ast.AST) -> str:
  """Return the text of an expression, with `my_module:name` as the user wrote it."""
  return ast.unparse(node).replace(f".{_COLON}.", ":")


def _name(node: ast.AST) -> str:
  """Return the name called by an expression, or its text if it is not a call."""
  return written(node.func if isinstance(node, ast.Call) else node)


def parse(text: str, *, values: Mapping[str, Any] | None = None) -> Defense:
  """Build the chain described by `text`; `str()` of the result gives the text back.

  Args:
    text: `name(arguments)|name|...`, or `none`. A name is one of
      `mixdef.defenses.CATALOGUE` or its aliases, one of `mixdef.defenses.RECIPES`
      (which stand for several parts), or `my_module:name`. Arguments are numbers
      (including `inf`), quoted strings, True, False, None and tuples of these.
    values: values of further names among the arguments, for example the traced numbers
      of a sweep: `parse("mixup(a)", values={"a": 0.3})`.

  Raises:
    ValueError: for an unknown name, an argument that is not a literal or is invalid,
      and parts that cannot be combined.

  >>> str(parse("l2(1e-4) | label_smoothing"))
  'weight_decay(coefficient=0.0001)|label_smoothing'
  >>> str(parse("hamp|ema"))
  'hamp_label|hamp_entropy(official_scale=True)|hamp_output|ema'
  """
  if isinstance(text, str) and text.strip() in ("", "none"):
    return chain()
  nodes = _split(expression(text))
  names = dict(values or {})
  return chain(*(_part(node, names) for node in nodes))


def _part(node, names):
  """Build one defense, or the chain of a recipe."""
  name = _name(node)
  also = (RECIPES, PARTS)
  registry = next((one for one in also if name in one), DEFENSES)
  others = {**RECIPES, **PARTS}
  made = _call(node, registry, registry.aliases, "defense", names, {}, also=others)
  if not isinstance(made, Defense):
    raise ValueError(
      f"{name} returns a {type(made).__name__}, not a defense: use a factory of a "
      "defense"
    )
  module = name.rpartition(":")[0]
  if not module or made.parts is not None:
    return made
  if not made.text:
    raise ValueError(
      f"{name} has no text that identifies it: decorate it with @defense"
    )
  return made._replace(text=f"{module}:{made.text}")


def parse_call(
  text: str,
  catalogue: Mapping[str, Callable],
  what: str,
  *,
  wrap: Callable | None = None,
  fixed: Mapping[str, Any] | None = None,
  **extra,
) -> Any:
  """Build one object, for example a model, from `name(arguments)`.

  Args:
    text: the call.
    catalogue: factories by name. A `Registry` also has aliases, whose arguments the
      text may override by keyword, and resolves `my_module:name`.
    what: the kind of object in the catalogue, for error messages.
    wrap: `wrap(factory)` is called with the text's arguments instead of the factory.
    fixed: arguments that the text must not set.
    **extra: default arguments, which the alias and the text may override.
  """
  aliases = getattr(catalogue, "aliases", {})
  node = expression(text)
  return _call(node, catalogue, aliases, what, {}, fixed or {}, wrap=wrap, **extra)


def split_calls(text: str) -> list[str]:
  """Split a comma-separated list of calls; a blank text gives an empty list.

  >>> split_calls("rmia(gamma=1.0, a=0.5), base")
  ['rmia(gamma=1.0, a=0.5)', 'base']
  """
  if not text.strip():
    return []
  node = expression(text)
  return [written(part) for part in (getattr(node, "elts", None) or [node])]


def modules_named(text: str) -> list[str]:
  """Return the modules named in a text as `module:name`.

  >>> modules_named("my_module:flooding(0.3)|mixup")
  ['my_module']
  """
  return [module for _, module in _QUALIFIED.findall(text) if module]


def called(text: str) -> str:
  """Return the name called in a text, or the text itself if it is not a call.

  >>> called("wgan_gp(critics=2)")
  'wgan_gp'
  """
  return _name(expression(text))


def expression(text: str) -> Any:
  """Return the syntax tree of a text.

  Raises:
    ValueError: for text that is not an expression, with the column if known.
  """
  if not isinstance(text, str):
    raise ValueError(f"{text!r} is a {type(text).__name__}: pass text")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Python's warnings on odd code; rejected below
      node = ast.parse(_QUALIFIED.sub(_marked, text.strip()), mode="eval").body
      ast.unparse(node)  # also rejects text nested too deeply to unparse
    return node
  except SyntaxError as error:
    where = f" (column {error.offset})" if error.offset else ""
  except (ValueError, MemoryError, RecursionError):
    where = ""
  raise ValueError(
    f"cannot read {_shortened(repr(text))}{where}: use name(argument=value), joined by "
    "|, and quote it on the command line"
  )


def unknown(name: str, what: str, known: Iterable[str]) -> str:
  """Return the message for an unknown name, with close matches or all known names."""
  known = list(known)
  near = difflib.get_close_matches(name, known, n=3)
  hint = f"did you mean {' or '.join(near)}?" if near else "known: "
  return f"there is no {what} {name!r}; {hint}{'' if near else ', '.join(known)}"


def _split(node):
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return [*_split(node.left), *_split(node.right)]
  return [node]


def _call(node, catalogue, aliases, what, names, fixed, *, wrap=None, also=(), **extra):
  function = node.func if isinstance(node, ast.Call) else node
  text, name = _shortened(written(node)), _name(node)
  if not (isinstance(function, ast.Name) or ":" in name):
    raise ValueError(f"{text!r} is not a {what}: use name(argument=value)")
  alias = expression(aliases.get(name, name))
  name = _name(alias)
  if name not in catalogue and not (":" in name and isinstance(catalogue, Registry)):
    known = [*sorted([*catalogue, *also]), *aliases]
    raise ValueError(unknown(_name(node), what, known))
  factory = catalogue[name]
  _, preset = _arguments(alias, name, {})
  args, given = _arguments(node, name, names)
  for argument in fixed:
    if argument in given:
      raise ValueError(f"{text}: {argument} cannot be set here: remove it")
  given = {**fixed, **extra, **preset, **given}
  if wrap is not None:
    factory = wrap(factory)
  _bind(factory, args, given, text)
  try:
    return factory(*args, **given)
  except TypeError as error:
    raise ValueError(f"{text}: {error}") from None


def parameters(make: Callable) -> Mapping[str, inspect.Parameter]:
  """Return the parameters of a factory by name.

  Raises:
    ValueError: if they are unknown, as those of many classes written in C.
  """
  try:
    return inspect.signature(make).parameters
  except (ValueError, TypeError):
    raise ValueError(
      f"{make!r} does not list its arguments: wrap it in a function"
    ) from None


def _bind(make, args, given, written):
  """Raise if a factory does not accept the arguments."""
  known = parameters(make)
  try:
    inspect.Signature(list(known.values())).bind(*args, **given)
  except TypeError as error:
    kinds = known.values()
    named = [
      p.name for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    wrong = [name for name in given if name not in named]
    near = difflib.get_close_matches(wrong[0], named, n=1) if wrong else []
    hint = f"; did you mean {near[0]}?" if near else ""
    if "multiple values" in str(error):
      hint = "; pass arguments by name"
    raise ValueError(f"{written}: {error}{hint}") from None


def _arguments(node, name, names):
  """Return the positional and keyword arguments of a call; a bare name has none."""
  if not isinstance(node, ast.Call):
    return [], {}
  given = {}
  for keyword in node.keywords:
    if keyword.arg is None:
      raise ValueError(f"{name}: ** is not supported; write each argument explicitly")
    if keyword.arg in given:
      raise ValueError(f"{name}: {keyword.arg} is passed twice")
    given[keyword.arg] = literal(keyword.value, name, names)
  return [literal(arg, name, names) for arg in node.args], given


def literal(node: ast.AST, where: str, names: Mapping[str, Any]) -> Any:
  """Return the value of an argument's node, looking up names in `names`."""
  if isinstance(node, ast.Name) and node.id in names:
    return names[node.id]
  if isinstance(node, ast.Name) and node.id == "inf":
    return math.inf
  if ast.unparse(node) == "-inf":
    return -math.inf
  try:
    value = ast.literal_eval(node)
  except (ValueError, TypeError):  # TypeError: an unhashable element of a set or dict
    value = ...
  if not _plain(value):
    raise ValueError(
      f"{where}: {_shortened(ast.unparse(node))!r} is not a literal; use a number, a "
      "quoted string, True, False, None or a tuple"
    )
  return value


def _plain(value) -> bool:
  if isinstance(value, tuple):
    return all(map(_plain, value))
  return value is None or isinstance(value, (bool, int, float, str))


def _shortened(text: str) -> str:
  return text if len(text) <= 200 else f"{text[:200]}..."
