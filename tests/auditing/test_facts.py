import dataclasses
import datetime
import enum
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mixdef
from mixdef import attacks
from mixdef.attacks import Signals
from mixdef.auditing import audit
from mixdef.auditing.facts import plain_facts, recipe_facts


class Kind(enum.Enum):
  HOSPITAL = 3


@dataclasses.dataclass
class Other:
  x: int = 0


NOW = datetime.datetime(2026, 1, 31, 12, 30, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
  ("value", "written"),
  [
    (pathlib.PurePosixPath("a/b"), "a/b"),
    (NOW, "2026-01-31T12:30:00+00:00"),
    (NOW.date(), "2026-01-31"),
    (np.datetime64("2026-01-31"), "2026-01-31"),
    (datetime.timedelta(hours=1), "1:00:00"),
    (jnp.float32(0.5), 0.5),
    (jnp.arange(3), [0, 1, 2]),
    (jnp.bfloat16(0.5), 0.5),
    (jax.random.key(3), [0, 3]),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.array(["a", "b"]), ["a", "b"]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset(), []),
    (Kind.HOSPITAL, "HOSPITAL"),
    (b"raw \xff", "raw \\udcff"),
    ("\udcff", "\\udcff"),
    (float("nan"), "nan"),
    (float("-inf"), "-inf"),
    (1j, "1j"),
    (mixdef.mixup(0.5), "mixup(alpha=0.5)"),
    ({"a": (NOW, [None, True])}, {"a": ["2026-01-31T12:30:00+00:00", [None, True]]}),
    ({1: 2}, {"1": 2}),
  ],
)
def test_facts_are_written_as_text_and_numbers(value, written):
  found = plain_facts({"fact": value})
  assert found == {"fact": written}
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  assert json.dumps(found).encode("utf-8")


def circle():
  ring = []
  ring.append(ring)
  return ring


@pytest.mark.parametrize(
  ("setting", "message"),
  [
    ({"a": object()}, r"setting\['a'\] is a object, which cannot be written"),
    ({"a": Other()}, r"setting\['a'\] is a Other, which"),
    ({"a": [1, {"b": len}]}, r"setting\['a'\]\[1\]\['b'\] is a builtin"),
    ({"a": np.zeros((20, 20))}, r"an array \(20, 20\); pass a summary"),
    ({"a": circle()}, "nested too deeply"),
    ({1: 2}, "has the key 1; use strings as keys"),
    ([("a", 1)], "setting is a list; pass a dict"),
    ("dataset", "setting is a str"),
    ({"num_models": 3}, "'num_models', which the audit determines itself"),
    ({"epsilon": "8"}, "the report computes with it"),
    ({"test_accuracy": 97.0}, "pass a number from 0 to 1"),
    ({"delta": float("nan")}, "the report computes with it"),
  ],
)
def test_what_cannot_be_written_is_refused_in_one_line(setting, message):
  with pytest.raises(ValueError, match=message) as raised:
    plain_facts(setting)
  assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def outputs():
  rng = np.random.default_rng(0)
  return Signals.from_phi(rng.normal(size=(4, 40)), rng.random((4, 40)) < 0.5)


def never(*_, **__):
  raise AssertionError("an attack was run")


def test_facts_are_checked_before_the_attacks(outputs, monkeypatch):
  monkeypatch.setattr("mixdef.auditing.report.run_attacks", never)
  with pytest.raises(ValueError, match="cannot be written"):
    audit(outputs, setting={"model": object()})
  with pytest.raises(ValueError, match="there is no attack 'b'"):
    audit(outputs, attacks="gap, b")


@pytest.mark.parametrize(
  "named",
  [
    "attack_r, lira_online(ddof=0)",
    ["attack_r", "lira_online(ddof=0)"],
    ("attack_r", attacks.ATTACKS.resolve("lira_online(ddof=0)")),
    [attacks.attack_r, "lira_online(ddof=0)"],
  ],
)
def test_attacks_are_named_by_text_or_by_themselves(outputs, named):
  report = audit(outputs, attacks=named, setting={"when": NOW}).report
  assert list(report["attacks"]) == ["attack_r", "lira_online(ddof=0)"]
  assert report["setting"]["when"] == NOW.isoformat()


def test_one_attack_needs_no_list(outputs):
  report = audit(outputs, attacks=attacks.attack_r).report
  assert list(report["attacks"]) == ["attack_r"]


@pytest.mark.parametrize(
  ("named", "message"),
  [
    ([never], "is not an attack of this catalogue: pass a name"),
    ([3], "3 is not an attack of this catalogue"),
    ([], "attacks are empty"),
    (["attack_r", "attack_r"], "attacks name attack_r twice"),
    ("attack_r, attack_r", "attacks name attack_r twice"),
    ("lira_online(target=3)", "no argument 'target' here"),
    ("lira_online(signals=3)", "no argument 'signals' here"),
    ("label_only_noise(records=3)", "no argument 'records' here"),
    ("quantile(features=3)", "no argument 'features' here"),
    ("rmia(gamma='x')", "rmia: gamma is 'x'; pass a number"),
    ("rmia(gama=1)", "did you mean gamma"),
    ("rmia(2.0)", "positional"),
    ("gan_leaks_white_box", "there is no attack"),
  ],
)
def test_what_names_no_attack_is_refused_in_one_line(outputs, named, message):
  with pytest.raises(ValueError, match=message) as raised:
    audit(outputs, attacks=named)
  assert "\n" not in str(raised.value)


def test_options_of_a_loss_are_its_own():
  from mixdef.attacks.gan import ATTACKS

  ATTACKS.resolve("gan_leaks_calibrated(num_samples=5)")
  ATTACKS.resolve("gan_leaks_calibrated(loss='reconstruction', steps=3)")
  with pytest.raises(ValueError, match="loss='nearest' has no argument steps"):
    ATTACKS.resolve("gan_leaks_calibrated(steps=3)")


class OfNNX(nnx.Module):
  def __init__(self, rngs):
    self.out = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    return self.out(x)


class OfEquinox(eqx.Module):
  out: eqx.nn.Linear

  def __init__(self, key):
    self.out = eqx.nn.Linear(5, 3, key=key)

  def __call__(self, x):
    return self.out(x)


@pytest.mark.parametrize(
  ("model", "name"),
  [
    (mixdef.models.mlp(4), "MLP"),
    (OfNNX, "OfNNX"),
    (lambda rngs: OfNNX(rngs), "OfNNX"),
    (lambda key: OfEquinox(key), "OfEquinox"),
  ],
)
def test_a_learner_names_its_defense_and_its_class(model, name):
  learner = mixdef.classifier(model, optax.sgd(0.1), "mixup|freeze('out/.*')")
  named = {"defense": "mixup|freeze(layers='out/.*')", "model": name}
  assert recipe_facts(learner) == named


def test_learners_of_several_networks_name_them_all():
  models = mixdef.models.mlp(4), mixdef.models.cnn()
  stacked = mixdef.model_stacking(models, optax.sgd(0.1))
  assert recipe_facts(stacked) == {"defense": "model_stacking", "model": "MLP, CNN"}
  gan = mixdef.mixup_gan(mixdef.models.image_networks((8, 8), 3))
  assert recipe_facts(gan)["defense"].startswith("mixup")
  assert recipe_facts(gan)["model"].count(", ") == 1
