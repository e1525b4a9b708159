"""Text to chains and back."""

import functools
import math

import numpy as np
import pytest

from mixdef.core.parsing import parse, parse_call
from mixdef.core.registry import Registry
from mixdef.defenses import CATALOGUE


@pytest.mark.parametrize(
  ("text", "canonical"),
  [
    ("none", "none"),
    ("", "none"),
    ("  mixup  ", "mixup"),
    ("mixup()", "mixup"),
    ("mixup(1.0)", "mixup"),
    ("mixup(inf)", "mixup(alpha=inf)"),
    ("l2", "weight_decay"),
    ("kd(4.0)", "distillation(temperature=4.0)"),
    ("ccel", "ccl"),
    ("ccql", "ccl(form='ccql')"),
    ("ccql(0.3, beta=0.1)", "ccl(alpha=0.3, beta=0.1, form='ccql')"),
    ("ccql(form='ccel')", "ccl"),
    ("l1|hamp|ema", "l1|hamp_label|hamp_entropy(official_scale=True)|hamp_output|ema"),
    ("adamixup(end=0.1)|dp_sgd(guarantee=False)", "adamixup|dp_sgd(guarantee=False)"),
    ("label_smoothing | l1(1e-4)|ema", "label_smoothing|l1(coefficient=0.0001)|ema"),
    ("l1(name='a')|l1(name='b')", "l1(name='a')|l1(name='b')"),
  ],
)
def test_text_is_read_and_written_canonically(text, canonical):
  assert str(parse(text)) == canonical
  assert str(parse(canonical)) == canonical


def test_every_pair_of_the_catalogue_that_combines_is_read_back():
  read = 0
  for a in CATALOGUE:
    for b in CATALOGUE:
      try:
        text = str(parse(f"{a}|{b}"))
      except ValueError:
        continue
      assert str(parse(text)) == text == f"{a}|{b}"
      read += 1
  assert read > len(CATALOGUE)


def test_infinity_reaches_the_factory():
  assert parse("mixup(alpha=inf)").parts[0].text == "mixup(alpha=inf)"
  call = parse_call("f(inf)", {"f": lambda a: a}, "thing")
  assert math.isinf(call)


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("mixpu", "there is no defense 'mixpu'; did you mean mixup"),
    ("zzz", "known: adamixup, .*weighted_smoothing"),
    ("mixup(beta=2)", "unexpected keyword argument 'beta'"),
    ("mixup(1, 2)", "too many positional arguments"),
    ("mixup(alpha=abs(-1))", r"mixup: 'abs\(-1\)' is not a literal"),
    ("mixup(alpha=x)", "mixup: 'x' is not a literal"),
    ("mixup(**{'alpha': 1})", r"mixup: .* write each argument explicitly"),
    ("l1(name='a', name='b')", "name is passed twice"),
    ("hamp(gama=0.5)", "hamp.*unexpected keyword argument 'gama'"),
    ("hamp|hamp_output", "two parts of the chain are called 'hamp_output'"),
    ("hampp", "did you mean hamp"),
    ("mixup(", r"cannot read 'mixup\('"),
    ("mixup + ema", r"'mixup \+ ema' is not a defense"),
    ("mixup(1)(2)", r"is not a defense"),
    ("mixdef.mixup", r"'mixdef.mixup' is not a defense"),
    ("'mixup'", r"is not a defense"),
    ("label_smoothing(2)", "epsilon is 2"),
    ("mixup|adamixup", "one of the mixers"),
  ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text, reason):
  with pytest.raises(ValueError, match=reason):
    parse(text)


def test_nothing_is_evaluated():
  with pytest.raises(ValueError, match="is not a literal"):
    parse("mixup(alpha=__import__('os').getpid())")


def test_models_are_read_by_the_same_grammar():
  def mlp(*widths, num_classes=10):
    return widths, num_classes

  catalogue = {"mlp": mlp}
  assert parse_call("mlp(8, 4)", catalogue, "model") == ((8, 4), 10)
  assert parse_call("mlp", catalogue, "model", num_classes=3) == ((), 3)
  given = parse_call("mlp(num_classes=5)", catalogue, "model", num_classes=3)
  assert given == ((), 5)
  with pytest.raises(ValueError, match="there is no model 'cnn'"):
    parse_call("cnn", catalogue, "model")


def test_an_alias_may_be_a_call_whose_arguments_the_text_overrides():
  def net(*widths, depth=1, num_classes=10):
    return widths, depth, num_classes

  nets = Registry("model")
  nets.register(net)
  nets.aliases["deep"] = "net(depth=9, num_classes=4)"
  read = functools.partial(parse_call, catalogue=nets, what="model", num_classes=3)
  assert read("net") == ((), 1, 3)
  assert read("deep") == ((), 9, 4)
  assert read("deep(8, depth=2)") == ((8,), 2, 4)
  with pytest.raises(ValueError, match="did you mean deep"):
    read("depp")


def test_numbers_survive_the_round_trip_exactly():
  for value in np.random.default_rng(0).random(20):
    text = str(parse(f"label_smoothing({float(value)!r})"))
    assert text == f"label_smoothing(epsilon={float(value)!r})"


def test_infinity_may_be_negative():
  def net(low=0.0, num_classes=10):
    return low

  nets = Registry("model")
  nets.register(net)
  assert parse_call("net(-inf)", nets, what="model", num_classes=3) == -math.inf
