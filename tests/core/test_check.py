"""Every factory's arguments: out of range they are refused in one line."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixdef
from mixdef import models
from mixdef.attacks.gan import ATTACKS as GAN_ATTACKS
from mixdef.cli import texts
from mixdef.core.check import checked, count, number, one_of, optional
from mixdef.learners import GANS as GAN_LEARNERS

VECTOR = np.array([1.0, 2.0])
ADAM = optax.adam(1e-3)
TABLE = models.table_networks(6, 2)
NETS = (mixdef.models.mlp(4), mixdef.models.mlp(3))
WRONG = (-1, math.nan, math.inf, 1e300, 2**200, "x", None, [], {}, (), True, b"x", 1j)
WRONG += (VECTOR, np.float32(-1), np.float64("nan"), object())


def bound(make, *args):
  return functools.partial(make, *args)


def factories():
  """Every factory by a name, with what it cannot do without."""
  found = {**mixdef.defenses.CATALOGUE, **mixdef.defenses.RECIPES}
  found |= mixdef.models.CATALOGUE
  found["ban_mpr"] = functools.partial(
    mixdef.learners.ban_mpr, NETS[0], ADAM, experimental=True
  )
  found["model_stacking"] = bound(mixdef.learners.model_stacking, NETS, ADAM)
  found["classifier"] = bound(mixdef.classifier, NETS[0], ADAM)
  for name, make in GAN_LEARNERS.items():
    own = "networks" in inspect.signature(make).parameters
    found[name] = bound(make, *((TABLE,) if own else (6, 2)))
  found["dense_networks"] = bound(models.dense_networks, (8, 8, 1), 2)
  found["image_networks"] = bound(models.image_networks, (8, 8, 1), 2)
  found["table_networks"] = bound(models.table_networks, 6, 2)
  for name, make in texts.OPTIMIZERS.items():
    found[name] = bound(make, 1e-3)
  for catalogue in (mixdef.attacks.ATTACKS, GAN_ATTACKS):
    for name, attack in catalogue.attacks.items():
      found[name] = functools.partial(attack, None, target=0)
  return found


FACTORIES = factories()
# Arguments that are no plain values: arrays, functions, networks, other learners.
OBJECTS = {"defense", "combiner", "records", "features", "source", "augment", "mask"}
OBJECTS |= {"learner", "perceptual", "auxiliary", "target", "name"}
LEGAL = {
  ("mixup", "alpha"): (math.inf,),  # lam = 1/2
  ("cutmix", "alpha"): (math.inf,),
  ("mixup_gan", "alpha"): (math.inf,),
  ("relaxloss_gan", "threshold"): (-1, np.float32(-1), VECTOR),  # of a critic's loss
  ("classifier", "microbatch"): (2**200,),  # the whole batch
}


def arguments():
  for name, make in FACTORIES.items():
    for argument in inspect.signature(make).parameters.values():
      plain = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
      optimizer = argument.name == "optimizer" and name != "gan_leaks_white_box"
      if plain and argument.name not in OBJECTS and not optimizer:
        yield name, argument.name, argument.default


def legal(name, argument, default, value):
  if isinstance(default, bool):
    return isinstance(value, bool)
  if value is None:
    return default is None
  # An argument whose default is negative accepts negative numbers.
  if isinstance(default, (int, float)) and default < 0:
    negative = isinstance(value, (int, float, np.floating)) and value < 0
    if negative and not isinstance(value, bool):
      return True
  return any(repr(value) == repr(one) for one in LEGAL.get((name, argument), ()))


@pytest.mark.parametrize(("name", "argument", "default"), [*arguments()])
def test_an_argument_out_of_range_is_one_line(name, argument, default):
  for value in WRONG:
    if legal(name, argument, default, value):
      continue
    with pytest.raises(ValueError, match=argument) as raised:
      FACTORIES[name](**{argument: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "argument"), LEGAL)
def test_what_is_legal_is_taken(name, argument):
  for value in LEGAL[name, argument]:
    FACTORIES[name](**{argument: value})


@pytest.mark.parametrize("widths", [("x",), (0,), (True,), (2.0,), ([8],), (2**40,)])
def test_widths_are_positive_integers(widths):
  with pytest.raises(ValueError, match=r"widths is .*; pass an integer"):
    mixdef.models.mlp(*widths)


def test_arrays_of_one_number_are_numbers():
  assert mixdef.mixup(np.float64(0.5)).text == "mixup(alpha=0.5)"
  mixdef.label_smoothing(jnp.float32(0.5))
  with pytest.raises(ValueError, match=r"epsilon is 2\.0; pass a number of at least 0"):
    mixdef.label_smoothing(jnp.float32(2))
  traced = jax.jit(lambda e: (mixdef.label_smoothing(e), e)[1])(jnp.float32(2))
  assert traced == 2  # what is traced is not known yet


def test_checks_of_a_call():
  def even(*, a=0, **_):
    if a % 2:
      raise ValueError(f"a={a} is odd")

  @checked(together=even, a=count(0), b=optional(number(above=0)), c=one_of("x", "y"))
  def call(first, a=0, *, b=None, c="x"):
    return first, a, b, c

  assert call(1, 2, b=0.5, c="y") == (1, 2, 0.5, "y")
  for wrong in ({"a": -1}, {"a": 3}, {"b": 0}, {"c": "z"}):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      call(1, **wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
      call.check(**wrong)
  with pytest.raises(TypeError, match="unexpected keyword"):
    call(1, d=3)
