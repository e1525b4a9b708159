"""FID's Inception network against two independent ones, and its weights' loader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.utility import features, fid, inception_features, inception_weights
from mixdef.utility.inception import Inception

# The entries of each branch; "/2" is stride 2 without padding, "/1" no padding.
A = (
  "branch1x1",
  "branch5x5_1 branch5x5_2",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
)
C = (
  "branch1x1",
  "branch7x7_1 branch7x7_2 branch7x7_3",
  "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
)
B = ("branch3x3/2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/2")
D = (
  "branch3x3_1 branch3x3_2/2",
  "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/2",
)
E = (
  "branch1x1",
  "branch3x3_1 branch3x3_2a",
  "branch3x3_1 branch3x3_2b",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3b",
)
BLOCKS = (
  *((f"Mixed_5{letter}", A, "avg") for letter in "bcd"),
  ("Mixed_6a", B, "half"),
  *((f"Mixed_6{letter}", C, "avg") for letter in "bcde"),
  ("Mixed_7a", D, "half"),
  ("Mixed_7b", E, "avg"),
  ("Mixed_7c", E, "max"),
)
STEM = "Conv2d_1a_3x3/2 Conv2d_2a_3x3/1 Conv2d_2b_3x3 pool Conv2d_3b_1x1 Conv2d_4a_3x3/1 pool"  # noqa: E501


@pytest.fixture(scope="module")
def state_dict():
  """Return random weights under PyTorch's names, that keep activations near 1."""
  rng = np.random.default_rng(0)
  entries = {}
  for place, leaf in jax.tree_util.tree_leaves_with_path(inception_weights._template()):
    *modules, kind = [key.key for key in place[1:]]
    name = ".".join(modules) + "."
    if kind == "kernel":
      height, width, inputs, outputs = leaf.shape
      spread = (2 / (height * width * inputs)) ** 0.5
      drawn = rng.standard_normal((outputs, inputs, height, width), np.float32)
      entries[name + "weight"] = spread * drawn
    else:
      torch_name = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
      low = 0.8 if kind in ("scale", "var") else -0.2
      drawn = low + 0.4 * rng.random(leaf.shape, np.float32)
      entries[name + torch_name.get(kind, kind)] = drawn
  return entries


@pytest.fixture(scope="module")
def unverified(state_dict, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "random.npz"
  np.savez(path, **state_dict)
  return inception_features(path)


def walk(x, conv, pool, join):
  """Run the network on maps [C,H,W]; `conv(x, name, stride or None for same)`."""

  def layers(x, names, block=""):
    for name in names.split():
      if name == "pool":
        x = pool(x, "half")
        continue
      name, _, stride = name.partition("/")
      x = conv(x, block + name, int(stride) if stride else None)
    return x

  x = layers(x, STEM)
  for block, branches, last in BLOCKS:
    parts = [layers(x, names, f"{block}.") for names in branches]
    pooled = pool(x, last)
    parts.append(
      pooled if last == "half" else conv(pooled, f"{block}.branch_pool", None)
    )
    x = join(parts)
  return x


def naive(entries, x):
  """Return features [2048] of one image [H,W,3], by windows in numpy."""
  windows = np.lib.stride_tricks.sliding_window_view

  def conv(x, name, stride):
    kernel = entries[f"{name}.conv.weight"]
    if stride is None:
      pads = [(side // 2, side // 2) for side in kernel.shape[2:]]
      x = np.pad(x, [(0, 0), *pads])
    cut = windows(x, kernel.shape[2:], (1, 2))[:, :: stride or 1, :: stride or 1]
    y = np.tensordot(kernel, cut, ((1, 2, 3), (0, 3, 4)))
    norm = {
      part: entries[f"{name}.bn.{part}"][:, None, None]
      for part in ("weight", "bias", "running_mean", "running_var")
    }
    y = (y - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3)
    return np.maximum(y * norm["weight"] + norm["bias"], 0)

  def pool(x, kind):
    if kind == "half":
      return windows(x, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))
    pads = ((0, 0), (1, 1), (1, 1))
    reduce = np.nanmean if kind == "avg" else np.nanmax
    cut = windows(np.pad(x, pads, constant_values=np.nan), (3, 3), (1, 2))
    return reduce(cut, axis=(3, 4))

  return walk(x.transpose(2, 0, 1), conv, pool, np.concatenate).mean((1, 2))


def in_torch(torch, entries, x):
  """Return features [B,2048] of images [B,H,W,3] in [0,1], resized and scaled."""
  F = torch.nn.functional
  tensors = {name: torch.from_numpy(array) for name, array in entries.items()}

  def conv(x, name, stride):
    kernel = tensors[f"{name}.conv.weight"]
    padding = "same" if stride is None else "valid"
    y = F.conv2d(x, kernel, stride=stride or 1, padding=padding)
    order = ("running_mean", "running_var", "weight", "bias")
    norm = [tensors[f"{name}.bn.{part}"] for part in order]
    return F.relu(F.batch_norm(y, *norm, eps=1e-3))

  def pool(x, kind):
    if kind == "half":
      return F.max_pool2d(x, 3, 2)
    if kind == "max":
      return F.max_pool2d(x, 3, 1, 1)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

  x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
  with torch.no_grad():
    y = walk(2 * x - 1, conv, pool, lambda parts: torch.cat(parts, 1))
  return y.mean((2, 3)).numpy()


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
def test_the_network_equals_a_naive_one(state_dict, tmp_path):
  variables = inception_weights._variables(dict(state_dict), tmp_path)
  x = np.random.default_rng(1).uniform(-1, 1, (1, 75, 78, 3)).astype(np.float32)
  ours = jax.jit(Inception().apply)(variables, x)
  assert ours.shape == (1, 2048)
  assert_close(ours[0], naive(state_dict, x[0]))


@pytest.mark.slow
def test_features_equal_those_of_torch_resizing_included(state_dict, unverified):
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(2).random((1, 9, 14, 1), np.float32)
  theirs = in_torch(torch, state_dict, np.repeat(x, 3, -1))
  assert_close(features(unverified, x), theirs)


@pytest.mark.parametrize("size", [(2, 3), (400, 20)])
def test_resizing_is_bilinear_between_pixel_centres(size):
  def weights(length):
    """Return [299, length], two weights a row."""
    place = np.clip((np.arange(299) + 0.5) * length / 299 - 0.5, 0, length - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(length)))

  x = np.random.default_rng(0).random((1, *size, 1), np.float32)
  expected = weights(size[0]) @ x[0, :, :, 0] @ weights(size[1]).T
  resized = inception_weights._resize(jnp.asarray(x))[0, :, :, 0]
  np.testing.assert_allclose(resized, expected, atol=1e-4)


@pytest.mark.slow
def test_only_the_true_weights_are_called_inception(state_dict, unverified, tmp_path):
  assert unverified.name == "inception_unverified"
  with pytest.raises(ValueError, match="is not the network of FID"):
    fid(unverified, np.zeros((2, 9, 9, 3)), np.zeros((2, 9, 9, 3)))
  entries = {**state_dict, "Mixed_7c.branch1x1.bn.bias": np.zeros(320, np.float32)}
  unused = {"fc.bias": np.zeros(1008), "Mixed_5b.bn.num_batches_tracked": np.array(0)}
  source = inception_weights.SOURCE
  np.savez(tmp_path / "weights.npz", source=source, **entries, **unused)
  extractor = inception_features(tmp_path / "weights.npz")
  assert extractor.name == "inception"
  assert extractor.weights != unverified.weights


@pytest.mark.slow
def test_every_entry_has_a_place_and_a_shape(state_dict, tmp_path):
  assert len(state_dict) == 94 * 5
  assert state_dict["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
  assert state_dict["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)
  assert state_dict["Mixed_7c.branch3x3dbl_1.conv.weight"].shape == (448, 2048, 1, 1)
  assert sum(array.size for array in state_dict.values()) == 21_820_000

  def refused(message, **changes):
    entries = {**state_dict, **changes}
    entries = {name: array for name, array in entries.items() if array is not None}
    with pytest.raises(ValueError, match=message):
      inception_weights._variables(entries, tmp_path)

  name = "Mixed_6b.branch7x7_2.conv.weight"
  turned = state_dict[name].transpose(0, 1, 3, 2)
  refused(r"'Mixed_6b.branch7x7_2.conv.weight' .* has shape", **{name: turned})
  refused("no entry 'Mixed_6b.branch7x7_2.conv.weight'", **{name: None})
  refused("has an entry 'AuxLogits.fc.bias'", **{"AuxLogits.fc.bias": np.zeros(3)})


def test_a_file_that_is_no_npz_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="describes how to create it"):
    inception_features(tmp_path / "none.npz")
  (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
  with pytest.raises(ValueError, match="not an npz of plain arrays"):
    inception_features(tmp_path / "weights.pth")
