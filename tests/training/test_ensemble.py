"""What trained models answer, and what they refuse to be asked."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdef.data import Dataset
from mixdef.learners.classifier import classifier
from mixdef.training import fit, fit_many

N, SHAPE, K = 12, (2, 3), 3
RANDOM = np.random.default_rng(0)
FLOATS = RANDOM.random((N, *SHAPE)).astype(np.float32)
PICTURES = np.rint(255 * FLOATS).astype(np.uint8)
LABELS = np.arange(N) % K


class Linear(nn.Module):
  """Softmax regression on what may be names."""

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(9, 2)(x) if jnp.issubdtype(x.dtype, jnp.integer) else x
    return nn.Dense(K)(x.reshape(len(x), -1))


def trained(x):
  learner = classifier(Linear(), optax.sgd(0.5))
  data = Dataset.from_arrays(x, LABELS, num_classes=K)
  return fit(learner, data, epochs=1, batch_size=N)


@pytest.fixture(scope="module")
def runs():
  return {
    "uint8": trained(PICTURES),
    "float": trained(FLOATS),
    "names": trained(np.arange(N * 6).reshape(N, *SHAPE) % 9),
  }


def test_accuracy_compares_each_label_with_its_record(runs):
  run = runs["float"]
  hits = (run.log_probs(FLOATS).argmax(1) == LABELS).mean()
  assert run.accuracy(FLOATS, LABELS) == hits
  assert run.accuracy(FLOATS, LABELS.tolist()) == hits
  assert run.accuracy(Dataset.from_arrays(FLOATS, LABELS)) == hits
  assert run.accuracy(jnp.asarray(FLOATS), jnp.asarray(LABELS)) == hits


@pytest.mark.parametrize(
  ("y", "message"),
  [
    (LABELS[:, None], r"y has shape \(12, 1\).*y.ravel\(\)"),
    (np.eye(K)[LABELS], r"y.argmax\(1\)"),
    (LABELS.astype(float), r"y.astype\(int\)"),
    (LABELS + 0.5, "only classification"),
    (LABELS[:5], "x has 12 records but y has 5"),
    (LABELS[:1], "x has 12 records but y has 1"),
    (LABELS - 1, r"y\[0\] is -1"),
    (LABELS + 1, "num_classes is 3"),
    (list("abcabcabcabc"), "labels are integers"),
    (0, "shape"),
    (None, "y"),
  ],
)
def test_labels_that_are_none_are_refused(runs, y, message):
  with pytest.raises(ValueError, match=message):
    runs["float"].accuracy(FLOATS, y)


@pytest.mark.parametrize(
  ("kind", "x", "message"),
  [
    (
      "uint8",
      255 * FLOATS,
      r"values from .* on a different scale: pass x.astype\(np.uint8\)",
    ),
    ("uint8", 2 * FLOATS - 1, "on a different scale"),
    ("uint8", PICTURES.astype(int), "x is int64, .* trained on uint8"),
    ("uint8", jnp.asarray(255 * FLOATS), "on a different scale"),
    ("float", PICTURES, r"read as x / 255: pass x.astype\(np.float32\)"),
    ("names", FLOATS, r"categories such as token ids; pass x.astype\(np.int32\)"),
    ("names", FLOATS > 0.5, "token ids"),
    ("float", FLOATS[0], r"x is a single record of shape \(2, 3\); .* x\[None\]"),
    ("uint8", PICTURES[0], r"x\[None\]"),
    (
      "float",
      FLOATS.reshape(N, 6),
      r"x has shape \(12, 6\), .* reshape it to \[B, 2, 3\]",
    ),
    ("float", FLOATS.transpose(0, 2, 1), r"trained on records of shape \(2, 3\)"),
    ("float", FLOATS[..., None], "reshape it"),
    ("float", FLOATS[:, 0, 0], "reshape it"),
    ("float", 1.0, "reshape it"),
    ("float", None, "x is None"),
    ("float", FLOATS.astype(str), "holds text"),
    ("float", FLOATS * 1j, "real numbers"),
    ("float", FLOATS[:0], "0 records"),
    ("uint8", np.full((1, *SHAPE), np.nan, np.float32), "on a different scale"),
  ],
)
def test_what_was_not_trained_on_is_not_asked(runs, kind, x, message):
  for ask in (
    runs[kind].log_probs,
    lambda x: runs[kind].accuracy(x, LABELS[: np.size(x)]),
  ):
    with pytest.raises(ValueError, match=message) as caught:
      ask(x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("kind", "x", "same"),
  [
    ("uint8", PICTURES / 255, PICTURES),
    ("uint8", PICTURES.tolist(), None),
    ("float", FLOATS.astype(np.float64), FLOATS),
    ("float", FLOATS.tolist(), FLOATS),
    ("float", np.ones((1, *SHAPE), int), np.ones((1, *SHAPE), np.float32)),
    ("float", np.ones((1, *SHAPE), bool), np.ones((1, *SHAPE), np.float32)),
    ("names", np.ones((1, *SHAPE), np.uint8), np.ones((1, *SHAPE), np.int32)),
  ],
)
def test_equal_records_of_another_type_are_answered_alike(runs, kind, x, same):
  if same is None:
    with pytest.raises(ValueError, match="x is int64"):
      runs[kind].log_probs(x)
    return
  np.testing.assert_allclose(
    runs[kind].log_probs(x), runs[kind].log_probs(same), atol=1e-6
  )


def test_ensembles_refuse_alike(runs):
  data = Dataset.from_arrays(PICTURES, LABELS, num_classes=K)
  members = np.arange(N)[None] % 2 == np.arange(2)[:, None]
  ensemble = fit_many(runs["uint8"].learner, data, members, epochs=1, batch_size=N)
  with pytest.raises(ValueError, match="on a different scale"):
    ensemble.log_probs(255 * FLOATS)
  with pytest.raises(ValueError, match=r"x\[None\]"):
    ensemble.log_probs(PICTURES[0])


@pytest.mark.parametrize(
  ("learner", "data", "message"),
  [
    (
      Linear(),
      None,
      r"learner is a Linear, a model: .* classifier\(model, optimizer\)",
    ),
    (3, None, "learner is of type int"),
    (None, (FLOATS, LABELS), r"data is of type tuple: .*Dataset.from_arrays\(x, y\)"),
    (None, FLOATS, "data is of type ndarray"),
    (lambda: 3, None, "learner returned a int"),
  ],
)
def test_what_cannot_be_fitted_is_named(runs, learner, data, message):
  learner = runs["float"].learner if learner is None else learner
  data = runs["float"].data if data is None else data
  with pytest.raises(TypeError, match=message):
    fit(learner, data, epochs=1)


@pytest.mark.parametrize("value", [0, -1, 0.5, 2.0, True, "3", None, np.float32(2)])
@pytest.mark.parametrize("name", ["epochs", "batch_size", "num_members"])
def test_sizes_that_are_none_are_refused(runs, name, value):
  if (name, value) == ("num_members", None):
    return
  sizes = {"epochs": 1, "batch_size": N, name: value}
  with pytest.raises(ValueError, match=f"{name}=.*(must be|; take|; give|; pass)"):
    fit(runs["float"].learner, runs["float"].data, **sizes)
