"""Parse networks, optimizers and learners from the texts of flags."""

import functools
from typing import Any

import optax

import mixdef
from mixdef.core import parsing
from mixdef.core.check import checked, flag, number, optional
from mixdef.core.parsing import called, parse_call, split_calls

__all__ = ["OPTIMIZERS", "called", "learner", "networks", "optimizer", "parse_call"]

_RATE = number(0, below=1)
_SMALL = number(0)


def _float_type(what: str, value: Any) -> None:
  known = ("float32", "bfloat16", "float16")
  if value is not None and not (isinstance(value, str) and value in known):
    raise ValueError(f"{what} is {value!r}; pass 'float32', 'bfloat16' or 'float16'")


def _only_none(what: str, value: Any) -> None:
  if value is not None:
    raise ValueError(f"{what} cannot be passed as text: remove it")


_ADAM = {
  **{"b1": _RATE, "b2": _RATE, "eps": _SMALL, "eps_root": _SMALL},
  **{"mu_dtype": _float_type, "nesterov": flag},
}
OPTIMIZERS = {
  "adam_corrected": mixdef.defenses.adam_corrected,
  "adam": checked(**_ADAM)(optax.adam),
  "adamw": checked(**_ADAM, weight_decay=_SMALL, mask=_only_none)(optax.adamw),
  "sgd": checked(
    momentum=optional(_RATE), nesterov=flag, accumulator_dtype=_float_type
  )(optax.sgd),
}


def networks(
  text: str, *, num_classes: int, num_tokens: int | None = None
) -> list[Any]:
  """Return the linen modules named in a text, separated by commas.

  Args:
    text: the calls.
    num_classes: K of the data.
    num_tokens: number of token ids of the data, for the networks that read them, unless
      the text says it.
  """

  def sized(make):
    if "num_tokens" in parsing.parameters(make):
      return functools.partial(make, num_tokens=num_tokens)
    return make

  catalogue, fixed = mixdef.models.CATALOGUE, {"num_classes": num_classes}
  calls = split_calls(text) or [text]
  return [parse_call(one, catalogue, "model", wrap=sized, fixed=fixed) for one in calls]


def optimizer(text: str, learning_rate: float) -> optax.GradientTransformation:
  """Return the optimizer named in a text, with this learning rate."""
  if "learning_rate" in text:
    raise ValueError("pass the rate with --learning_rate")
  fixed = {"learning_rate": learning_rate}
  return parse_call(text, OPTIMIZERS, "optimizer", fixed=fixed)


def learner(text: str, models: Any, optimizer: Any) -> mixdef.Learner:
  """Return the learner named in a text, for one or several networks."""
  if called(text) == "classifier":
    raise ValueError("write only classifier: its arguments have their own flags")
  return parse_call(
    text,
    mixdef.learners.CATALOGUE,
    "learner",
    wrap=lambda make: functools.partial(make, models),
    fixed={"optimizer": optimizer},
  )
