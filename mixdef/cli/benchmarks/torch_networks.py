"""The networks of the works in PyTorch, trained in its usual way."""

import math
from collections.abc import Callable
from typing import Any

import torch  # pyrefly: ignore[missing-import]
from torch import nn  # pyrefly: ignore[missing-import]
from torch.nn import functional  # pyrefly: ignore[missing-import]

CLASSES = 10


def mlp() -> nn.Module:
  """Dense layers of 512 and 256 units."""
  return nn.Sequential(
    nn.Linear(784, 512),
    nn.ReLU(),
    nn.Linear(512, 256),
    nn.ReLU(),
    nn.Linear(256, CLASSES),
  )


def cnn() -> nn.Module:
  """Two 3x3 convolutions of 32 and 64 channels, a dense layer of 128."""
  return nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(64 * 8 * 8, 128),
    nn.ReLU(),
    nn.Linear(128, CLASSES),
  )


class _Block(nn.Module):
  """A pre-activation residual block, 1x1 shortcut where the channels change."""

  def __init__(self, before: int, after: int, stride: int):
    super().__init__()
    self.first_norm, self.second_norm = _norm(before), _norm(after)
    self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
    self.shortcut = None
    if before != after:
      self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

  def forward(self, x):
    y = functional.relu(self.first_norm(x))
    skip = self.shortcut(y) if self.shortcut else x
    y = functional.relu(self.second_norm(self.first(y)))
    return skip + self.second(y)


def wide_resnet() -> nn.Module:
  """WRN-16-1 with GroupNorm of 16 groups."""
  layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
  before = 16
  for stage, after in enumerate((16, 32, 64)):
    for block in range(2):
      layers.append(_Block(before, after, 2 if stage and not block else 1))
      before = after
  end = (_norm(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
  return nn.Sequential(*layers, *end, nn.Linear(before, CLASSES))


def _norm(channels: int) -> nn.Module:
  return nn.GroupNorm(16, channels, eps=1e-6)


NETWORKS = {"mlp": mlp, "cnn": cnn, "wide_resnet": wide_resnet}


def trainer(work: str, recipe: str, x, y, batch: int) -> Callable[[], None]:
  """Return a function that trains one network for an epoch.

  Args:
    work: a name in `NETWORKS`.
    recipe: "default", as in a tutorial; "tuned", channels last and fused Adam; "bf16",
      tuned and autocast.
    x: records.
    y: labels.
    batch: number of records per step.
  """
  network: Any = NETWORKS[work]()
  tuned = recipe != "default"
  _initialise(network)
  if tuned and x.ndim == 4:
    network = network.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
  optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=tuned or None)

  def epoch():
    for rows in torch.randperm(len(x)).split(batch):
      with torch.autocast("cpu", torch.bfloat16, enabled=recipe == "bf16"):
        loss = functional.cross_entropy(network(x[rows]), y[rows])
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()

  return epoch


def _initialise(network: Any) -> None:
  """Draw weights on the scale of linen's initializers."""
  layers: Any = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
  *hidden, last = layers
  for layer in hidden:
    nn.init.kaiming_normal_(layer.weight)
  nn.init.normal_(last.weight, std=1 / math.sqrt(last.in_features))
  for layer in (*hidden, last):
    if layer.bias is not None:
      nn.init.zeros_(layer.bias)
