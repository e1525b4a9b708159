"""The timed trainings: networks, data, and the operations of one step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixdef
from mixdef.core.hooks import Data, Rows
from mixdef.models.layers import conv_layer
from mixdef.training.prepare import Training, prepare
from mixdef.training.programs import programs
from mixdef.training.sampling import make_plan
from mixdef.training.streaming import train_steps

CLASSES = 10

# Half of CIFAR-10, as for a shadow of LiRA; "shadows per minute" refers to these.
RECORDS, EPOCHS = 25_000, 20


class SmallCNN(nn.Module):
  """Two 3x3 convolutions of 32 and 64 channels, a dense layer of 128."""

  num_classes: int = CLASSES
  lowering: str = "auto"

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    """Return logits [B,K] for x [B,H,W,C]."""
    del train, weight  # these have no effect here
    conv = conv_layer(self.lowering, bias=True, standardize=False)
    for channels in (32, 64):
      x = mixdef.kernels.max_pool(nn.relu(conv(channels, 3)(x)))
    x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes)(x)


class Work(NamedTuple):
  """One training; `name` identifies it in PyTorch, `steps` is the number per epoch.

  `microbatch` is the number of records differentiated at once on a CPU, so that their
  activations stay in cache; None means the whole batch.
  """

  name: str
  title: str
  model: nn.Module
  shape: tuple[int, ...]
  steps: int
  microbatch: int | None = None


MLP = Work("mlp", "W1 mlp 784-512-256-10", mixdef.models.mlp(512, 256), (784,), 20)
CNN = Work("cnn", "W2 cnn 3x3, 32x32x3", SmallCNN(), (32, 32, 3), 8, microbatch=32)
WIDE_RESNET = Work(
  "wide_resnet",
  "W3 WRN-16-1, GroupNorm",
  mixdef.models.wide_resnet(16, 1, norm="group"),
  (32, 32, 3),
  4,
  microbatch=16,
)


def random_data(size: int, shape: tuple[int, ...], classes: int) -> mixdef.Dataset:
  """Return records of standard normal features and random labels."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(size, *shape)).astype(np.float32)
  y = rng.integers(0, classes, size)
  return mixdef.Dataset.from_arrays(x, y, num_classes=classes)


def train_everyone(learner, data, *, models: int, batch: int, epochs: int) -> Training:
  """Return the training of `models` models on all audited records."""
  return prepare(
    learner,
    {},
    data,
    np.tile(data.audited, (models, 1)),
    jax.vmap(jax.random.key)(jnp.arange(models)),
    epochs=epochs,
    batch_size=batch,
    num_members=None,
  ).resident()


def steps_of(
  training: Training, strategy: str, steps: int | None = None
) -> Callable[[], object]:
  """Return a function that continues the training of all models for some steps.

  Args:
    training: the training.
    strategy: execution strategy.
    steps: number of steps, at most one epoch; None means one epoch.
  """
  program = programs(training.source, training.plan, strategy)
  states = program.init(training.keys, None, {}, training.data)
  last = steps or training.plan.steps_per_epoch

  def run():
    nonlocal states
    states, metrics = train_steps(program, training, states, 0, 0, last)
    return states, metrics

  return run


@functools.cache
def step_flops(model: nn.Module, shape: tuple[int, ...], batch: int) -> float:
  """Count the floating-point operations of one step of one model, with Adam.

  This is XLA's count for plain convolutions, because other lowerings hide operations in
  loops, or use more operations for speed.
  """
  if hasattr(model, "lowering"):
    model = model.clone(lowering="native")
  learner = mixdef.classifier(model, optax.adam(1e-3))
  data = random_data(batch, shape, CLASSES)
  device = Data(*map(jnp.asarray, (data.x, data.y, data.auxiliary)))
  everyone = np.ones((1, batch), bool)
  plan = make_plan(learner.traits, data, everyone, epochs=1, batch_size=batch)
  state = learner.init(jax.random.key(0), plan.spec(device, None))
  rows = Rows(jnp.arange(batch), jnp.ones(batch), jnp.zeros(batch))
  ctx = plan.position(jax.random.key(1), jnp.int32(0), jnp.int32(0))
  lowered = jax.jit(learner.step).lower(state, device, rows, ctx)
  analysis: Any = lowered.cost_analysis()
  return float(analysis["flops"])
