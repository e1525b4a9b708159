"""Convolutions by oneDNN equal XLA's own; what they need and lack is one line."""

import importlib.metadata
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixdef
from mixdef.kernels import convolution
from mixdef.kernels.onednn import build
from mixdef.training.workers import pool


@pytest.fixture
def installed():
  """Skip if oneDNN is not available."""
  try:
    build.library()
  except ValueError as reason:
    pytest.skip(str(reason))


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
  """Forget what this process and the cache folder have built."""
  monkeypatch.setattr(build.caches, "folder", lambda name: tmp_path)
  build.library.cache_clear()
  yield tmp_path
  build.library.cache_clear()


def draw(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def assert_close(actual, desired, tolerance=1e-5):
  """Compare to a fraction of the largest entry."""
  for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
    assert (a.shape, a.dtype) == (d.shape, d.dtype)
    atol = tolerance * float(jnp.abs(d).max())
    np.testing.assert_allclose(a, d, rtol=0, atol=atol)


def value_and_gradients(lowering, strides=1, padding="SAME"):
  """Return a compiled function of (x, kernel): ((loss, y), both gradients)."""

  def loss(x, kernel):
    y = convolution(x, kernel, strides, padding, lowering=lowering)
    # Uneven weights: a gradient of ones would hide a transposed or flipped axis.
    weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype)
    return (y * weights).sum(), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
  ("window", "strides", "padding", "channels"),
  [
    ((3, 3), 1, "SAME", (3, 16)),
    ((3, 3), 2, "SAME", (16, 20)),
    ((3, 3), 2, 1, (1, 5)),
    ((5, 5), 2, "VALID", (7, 8)),
    ((1, 1), 2, "VALID", (8, 3)),
    ((2, 3), (3, 1), ((0, 2), (1, 0)), (3, 4)),
    ((4, 3), (2, 3), ((2, 5), (0, 4)), (17, 2)),
    ((3, 3), 1, ((-1, 2), (0, -2)), (3, 4)),
  ],
)
def test_value_and_gradients_equal_native(window, strides, padding, channels):
  x, kernel = draw(3, 9, 8, channels[0]), draw(*window, *channels, seed=1)
  desired = value_and_gradients("native", strides, padding)(x, kernel)
  assert_close(value_and_gradients("onednn", strides, padding)(x, kernel), desired)


@pytest.mark.usefixtures("installed")
def test_second_derivatives_equal_native():
  x, kernel = draw(2, 6, 6, 2), draw(3, 3, 2, 3, seed=1)

  def penalty(x, kernel, lowering):
    def score(x, kernel):
      return jnp.tanh(convolution(x, kernel, 2, lowering=lowering)).sum()

    gradients = jax.grad(score, argnums=(0, 1))(x, kernel)
    return sum((gradient**2).sum() for gradient in gradients)

  run = jax.jit(jax.grad(penalty, argnums=(0, 1)), static_argnums=2)
  assert_close(run(x, kernel, "onednn"), run(x, kernel, "native"))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("axes", [(None, 0), (0, 0), (0, None)])
def test_vmap_equals_native(axes):
  x, kernel = draw(3, 2, 6, 6, 2), draw(3, 3, 3, 2, 5, seed=1)
  x, kernel = (
    a[0] if axis is None else a for a, axis in zip((x, kernel), axes, strict=True)
  )
  actual, desired = (
    jax.jit(jax.vmap(value_and_gradients(lowering), in_axes=axes))(x, kernel)
    for lowering in ("onednn", "native")
  )
  assert_close(actual, desired)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
  ("dtype", "groups"), [(jnp.bfloat16, 1), (jnp.float32, 2)], ids=str
)
def test_what_onednn_does_not_take_goes_by_xla(dtype, groups):
  x, kernel = draw(2, 5, 5, 4), draw(3, 3, 4 // groups, 6, seed=1)
  x, kernel = x.astype(dtype), kernel.astype(dtype)
  actual, desired = (
    convolution(x, kernel, lowering=lowering, feature_group_count=groups)
    for lowering in ("onednn", "canonical")
  )
  assert_close(actual, desired)


class Tiny(nn.Module):
  """One convolution and a classifier."""

  lowering: str

  @nn.compact
  def __call__(self, x):
    """Return logits [B,3] for x [B,5,5,2]."""
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 2, 4))
    y = nn.relu(convolution(x, kernel, 2, lowering=self.lowering))
    return nn.Dense(3)(y.mean((1, 2)))


@pytest.mark.usefixtures("installed")
def test_models_equal_those_of_native_by_every_strategy():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(24, 5, 5, 2)).astype(np.float32), rng.integers(0, 3, 24)
  data = mixdef.Dataset.from_arrays(x, y, num_classes=3)
  members = np.tile(data.audited, (2, 1))

  def params(lowering, strategy):
    learner = mixdef.classifier(Tiny(lowering), optax.sgd(0.1))
    sizes = {"epochs": 2, "batch_size": 8}
    fitted = mixdef.fit_many(learner, data, members, **sizes, strategy=strategy)
    return fitted.states.params

  desired = params("native", "loop")
  for strategy in ("loop", "scan", "processes"):
    assert_close(params("onednn", strategy), desired, tolerance=1e-4)
  pool.pool().stop()


def test_a_missing_wheel_is_one_line(monkeypatch, nothing_built):
  def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "files", absent)
  message = r"needs onednn-cpu-gomp.*pip install 'mixdef\[onednn\]'.*lowering='auto'"
  with pytest.raises(ValueError, match=message) as error:
    build.library()
  assert "\n" not in str(error.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
  ("compiler", "message"),
  [(None, "no c\\+\\+ on the path"), (shutil.which("false"), "exit code 1")],
)
def test_no_compiler_is_one_line(monkeypatch, nothing_built, compiler, message):
  monkeypatch.setattr(shutil, "which", lambda name: compiler)
  with pytest.raises(ValueError, match=f"{message}.*lowering='auto'") as error:
    build.library()
  assert "\n" not in str(error.value)
  assert not list(nothing_built.iterdir())


def test_other_backends_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(ValueError, match="is for CPUs, but the program is for 'gpu'"):
    build.register()
