import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixdef
from mixdef.core.text import text_of
from mixdef.data import Dataset
from mixdef.learners.classifier import classifier
from mixdef.training import fit


class Thing:
  """An object without a text of its own."""


class Net(nn.Module):
  field: Any = None

  @nn.compact
  def __call__(self, x):
    x = self.field(x) if callable(self.field) else x
    return nn.Dense(2)(x)


def scaled(x, by):
  return by * x


MAKERS = {
  "partial": lambda: functools.partial(scaled, by=2.0),
  "lambda": lambda: lambda x: 3 * x,
  "initializer": lambda: nn.initializers.normal(0.1),
  "object": Thing,
  "objects": lambda: [Thing(), {"a": Thing()}],
  "bound method": lambda: Thing().__init__,
  "array": lambda: np.arange(3.0),
  "jax array": lambda: jnp.arange(3.0),
  "dict": lambda: {"a": [1, (2,)], "b": {"c": None}},
  "set": lambda: {"gelu", "relu", "tanh"},
  "jitted": lambda: jax.jit(lambda x: x),
  "module": lambda: nn.Sequential([nn.Dense(2), nn.relu]),
  "type": lambda: jnp.float32,
  "key": lambda: jax.random.key(3),
}


@pytest.mark.parametrize("name", MAKERS)
def test_fresh_instances_have_one_text(name):
  one, other = (classifier(Net(MAKERS[name]()), optax.sgd(0.1)).text for _ in range(2))
  assert one == other
  assert " at 0x" not in one
  assert "\n" not in one


def test_what_differs_has_another_text():
  fields = [1, 1.5, "a", [1], (1,), (1, 2), {"a": 1}, {"a": 2}, np.zeros(2), np.ones(2)]
  fields += [np.zeros(3), np.zeros(2, np.float32), nn.relu, nn.gelu, Net(), Net(2)]
  fields += [functools.partial(scaled, by=1), functools.partial(scaled, by=2)]
  assert len(set(map(text_of, fields))) == len(fields)


def test_an_opaque_defense_has_one_text():
  def of():
    return str(mixdef.label_smoothing(jnp.float32(0.1)))

  assert of() == of()
  assert " at 0x" not in of()


def fitted(out, by):
  data = Dataset.from_arrays(np.eye(4, dtype=np.float32), [0, 1, 0, 1])
  learner = classifier(Net(lambda x: by * x), optax.sgd(0.1))
  return fit(learner, data, epochs=1, batch_size=4, out=out)


@pytest.mark.slow
def test_a_run_of_what_has_no_name_is_resumed_and_told_apart(tmp_path):
  first = fitted(tmp_path, 2.0)
  again = fitted(tmp_path, 2.0)
  np.testing.assert_array_equal(first.log_probs(np.eye(4)), again.log_probs(np.eye(4)))
  with pytest.raises(ValueError, match="belongs to another run: program was"):
    fitted(tmp_path, 3.0)
