"""Extractors: no record is dropped, ranges are checked, a classifier becomes one."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.data import Dataset
from mixdef.learners import classifier
from mixdef.training import fit
from mixdef.utility import Extractor, classifier_features, features, sample_quality

ROWS = Extractor("rows", lambda x: x.reshape(len(x), -1))


def images(n, side=6, channels=1, seed=0):
  return np.random.default_rng(seed).random((n, side, side, channels), np.float32)


def trained(module, x):
  y = np.arange(len(x)) % 3
  data = Dataset.from_arrays(x, y, num_classes=3)
  learner = classifier(module, optax.adam(1e-2))
  return fit(learner, data, epochs=1, batch_size=16)


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_pitfall_122_no_partial_block_is_dropped(block):
  x = images(7)
  np.testing.assert_array_equal(features(ROWS, x, block=block), x.reshape(7, -1))


def test_blocks_have_one_size_for_one_program():
  sizes = []

  def apply(x):
    sizes.append(len(x))
    return x.reshape(len(x), -1)

  features(Extractor("seen", apply), images(10), block=4)
  assert sizes == [4, 4, 4]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: (255 * x).astype(np.uint8), "uint8"),
    (lambda x: 2 * x - 1, r"x \+ 1\) / 2"),
    (lambda x: 255 * x, r"images are in \[0, 1\]"),
    (lambda x: x * np.nan, "not finite"),
    (lambda x: x[0], "shape"),
    (lambda x: x[:0], "shape"),
  ],
)
def test_pitfall_123_images_in_another_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    features(ROWS, change(images(3)))


def test_rows_of_tables_may_have_any_range():
  x = np.float32([[-3, 4], [5, 6]])
  np.testing.assert_array_equal(features(ROWS, x), x)


def test_an_extractor_of_another_shape_is_refused():
  with pytest.raises(ValueError, match=r"maps returned shape \(3, 6, 6, 1\)"):
    features(Extractor("maps", lambda x: x), images(3))


@pytest.fixture(scope="module")
def table_run():
  """Return a classifier of rows in [-0.5, 0.5]."""
  return trained(models.mlp(8, num_classes=3), images(20).reshape(20, -1) - 0.5)


@pytest.mark.slow
def test_classifier_features_enter_the_last_layer():
  x = images(20)
  run = trained(models.cnn(3, dropout=0.5), (255 * x).astype(np.uint8))
  penultimate = features(classifier_features(run), x)
  assert penultimate.shape == (20, 128)
  last = run.state.params["Dense_1"]
  logits = penultimate @ last["kernel"] + last["bias"]
  np.testing.assert_allclose(jax.nn.log_softmax(logits), run.log_probs(x), atol=1e-5)


@pytest.mark.slow
def test_classifier_features_of_tables(table_run):
  extractor = classifier_features(table_run)
  assert features(extractor, table_run.data.x).shape == (20, 8)


def test_weights_are_told_apart(table_run):
  params = jax.tree.map(lambda leaf: leaf + 1, table_run.state.params)
  state = table_run.state._replace(params=params)
  other = dataclasses.replace(table_run, state=state)
  one = classifier_features(table_run).weights
  assert classifier_features(table_run).weights == one
  assert classifier_features(other).weights != one


class Convolutional(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Conv(3, x.shape[1:2])(x)[:, 0]


def test_what_has_no_penultimate_layer_is_refused(table_run):
  network, x = Convolutional(), table_run.data.x
  variables = network.init(jax.random.key(0), x[:1, :, None])

  def answer(state, x, *, raw=False):
    return network.apply(variables, x[:, :, None])

  with pytest.raises(ValueError, match=r"Convolutional does not end in nn\.Dense"):
    classifier_features(answering(table_run, answer))


def test_several_networks_are_refused(table_run):
  one = table_run.learner.predict

  def answer(state, x, *, raw=False):
    return (one(state, x) + one(state, -x)) / 2

  with pytest.raises(ValueError, match="an ensemble of 2 networks"):
    classifier_features(answering(table_run, answer))


def answering(run, predict):
  return dataclasses.replace(run, source=run.learner._replace(predict=predict))


@pytest.mark.slow
def test_a_classifier_of_standardised_images_is_refused(table_run):
  data = Dataset.from_arrays(images(20) - 0.5, np.arange(20) % 3)
  with pytest.raises(ValueError, match="the classifier's data spans"):
    classifier_features(dataclasses.replace(table_run, data=data))


def test_no_classifier_is_called_inception(table_run):
  with pytest.raises(ValueError, match="belongs to the Inception network"):
    classifier_features(table_run, name="inception")


def test_sample_quality_names_every_figure_by_its_extractor():
  real, fake = images(40), images(30, seed=1)
  result = sample_quality(ROWS, real, fake)
  assert set(result) == {
    "fd_rows",
    "kid_rows",
    "kid_rows_std",
    "density_rows",
    "coverage_rows",
    "num_real",
    "num_fake",
    "weights",
  }
  worse = sample_quality(ROWS, real, 0.5 * fake)
  assert worse["fd_rows"] > result["fd_rows"]
  assert worse["kid_rows"] > result["kid_rows"]
  assert worse["coverage_rows"] < result["coverage_rows"]
  copy = sample_quality(ROWS, real, real)
  assert copy["fd_rows"] == pytest.approx(0, abs=1e-6)
  assert copy["density_rows"] == copy["coverage_rows"] == 1
