import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.attacks import leave_one_out, lira_online
from mixdef.auditing.canaries import CANARIES, parse_canaries, plant
from mixdef.data import Dataset, subsets
from mixdef.data.duplicates import duplicate_records
from mixdef.data.synthetic import synthetic_clusters
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit, fit_many

COUNT = 60


def images(count=300, seed=0, channels=3, dtype=np.uint8):
  random = np.random.default_rng(seed)
  x = random.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)
  if dtype == np.float32:
    x = x.astype(np.float32) / 255
  return Dataset.from_arrays(x, random.integers(5, size=count), num_classes=5)


def table(count=300):
  return synthetic_clusters(count, num_test=50)


@pytest.mark.parametrize("kind", CANARIES)
@pytest.mark.parametrize("make", [images, table])
def test_only_canaries_change_and_only_they_are_audited(kind, make):
  data = make().with_auxiliary(30)
  before = data.x.copy(), data.y.copy()
  planted = plant(data, kind, COUNT, seed=4)
  assert planted.audited.sum() == COUNT
  assert planted.always_member.sum() == len(data) - COUNT - 30
  np.testing.assert_array_equal(planted.auxiliary, data.auxiliary)
  np.testing.assert_array_equal(planted.ids, data.ids)
  others = ~planted.audited
  np.testing.assert_array_equal(planted.x[others], data.x[others])
  np.testing.assert_array_equal(planted.y[others], data.y[others])
  assert (planted.x.dtype, planted.y.dtype) == (data.x.dtype, data.y.dtype)
  assert planted.test is data.test
  np.testing.assert_array_equal(data.x, before[0])
  np.testing.assert_array_equal(data.y, before[1])


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_only_canaries_vary_between_models(design):
  data = plant(table().with_auxiliary(30), "mislabelled", COUNT)
  members = subsets(data, 8, design=design)
  assert members[:, data.always_member].all()
  assert not members[:, data.auxiliary].any()
  share = members[:, data.audited].mean()
  assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(8 * COUNT)
  if design == "balanced":
    np.testing.assert_array_equal(members[:, data.audited].sum(0), 4)


def test_one_seed_gives_one_choice_for_every_kind_and_count():
  data = images()
  chosen = plant(data, "clean", COUNT, seed=1).audited
  for kind in CANARIES:
    np.testing.assert_array_equal(plant(data, kind, COUNT, seed=1).audited, chosen)
  few = plant(data, "mislabelled", 20, seed=1)
  many = plant(data, "mislabelled", COUNT, seed=1)
  assert (few.audited <= chosen).all()
  np.testing.assert_array_equal(few.y[few.audited], many.y[few.audited])
  assert (plant(data, "clean", COUNT, seed=2).audited != chosen).any()


def test_clean_canaries_are_ordinary_records():
  data = images()
  planted = plant(data, "clean", COUNT)
  np.testing.assert_array_equal(planted.x, data.x)
  np.testing.assert_array_equal(planted.y, data.y)


def test_wrong_labels_are_uniform_over_the_wrong_classes():
  data = images(3000)
  planted = plant(data, "mislabelled", 2000)
  np.testing.assert_array_equal(planted.x, data.x)
  shift = (planted.y - data.y)[planted.audited] % 5
  counts = np.bincount(shift, minlength=5)
  assert counts[0] == 0
  assert (np.abs(counts[1:] - 500) < 5 * np.sqrt(2000 * 3 / 16)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_blank_images_have_one_random_colour(channels, dtype):
  data = images(2000, channels=channels, dtype=dtype)
  planted = plant(data, "blank", 1000)
  x = planted.x[planted.audited]
  assert (x == x[:, :1, :1]).all()
  colour = x[:, 0, 0].astype(float) / (255 if dtype == np.uint8 else 1)
  # Uniform on [0, 1]: standard deviation 1 / sqrt(12), independent channels.
  np.testing.assert_allclose(colour.mean(0), 0.5, atol=5 / np.sqrt(12_000))
  if channels == 3:
    assert abs(np.corrcoef(colour.T)[0, 1]) < 5 / np.sqrt(1000)
  counts = np.bincount(planted.y[planted.audited], minlength=5)
  assert (np.abs(counts - 200) < 5 * np.sqrt(160)).all()


def test_blank_grey_images_without_a_channel_axis():
  data = Dataset.from_arrays(images().x[..., 0], images().y)
  x = plant(data, "blank", COUNT)
  x = x.x[x.audited]
  assert (x == x[:, :1, :1]).all()
  assert len(np.unique(x[:, 0, 0])) > COUNT // 2


def test_blank_table_records_have_one_height_in_every_range():
  data = table()
  planted = plant(data, "blank", COUNT)
  low, high = data.x.min(0), data.x.max(0)
  height = ((planted.x - low) / (high - low))[planted.audited]
  np.testing.assert_allclose(height, height[:, :1].repeat(20, 1), atol=1e-5)
  assert height.min() >= -1e-6
  assert height.max() <= 1 + 1e-6
  assert height[:, 0].std() > 0.2


def test_blank_records_of_a_binary_table_are_all_zero_or_all_one():
  x = np.random.default_rng(0).integers(0, 2, (200, 12)).astype(np.float32)
  planted = plant(Dataset.from_arrays(x, x[:, 0].astype(int)), "blank", COUNT)
  rows = planted.x[planted.audited]
  assert {tuple(row) for row in rows} == {(0.0,) * 12, (1.0,) * 12}


def test_ood_records_come_from_the_source_once_each():
  data, source = images(), images(seed=9, count=80)
  planted = plant(data, "ood", COUNT, source=source)
  canaries = planted.select(planted.audited)
  assert len(duplicate_records(source, canaries)) == COUNT
  assert duplicate_records(canaries) == []


def test_ood_records_without_a_source_keep_the_marginals_alone():
  random = np.random.default_rng(0)
  first = random.integers(0, 4, 2000)
  x = np.stack([first, first + 10], 1).astype(np.float32)
  planted = plant(Dataset.from_arrays(x, first % 2), "ood", 1000)
  canaries = planted.x[planted.audited]
  assert set(canaries[:, 0]) == {0, 1, 2, 3}
  assert set(canaries[:, 1]) == {10, 11, 12, 13}
  assert abs(np.corrcoef(canaries.T)[0, 1]) < 5 / np.sqrt(1000)


def test_duplicates_are_mislabelled_copies_of_members_of_every_model():
  data = images().with_auxiliary(30)
  planted = plant(data, "duplicates", COUNT)
  seen = set()
  for canary in np.flatnonzero(planted.audited):
    equal = (planted.x == planted.x[canary]).all((1, 2, 3))
    (twin,) = set(np.flatnonzero(equal)) - {canary}
    assert planted.always_member[twin]
    assert planted.y[canary] != planted.y[twin] == data.y[twin]
    seen.add(twin)
  assert len(seen) == COUNT


@pytest.mark.parametrize(
  ("kind", "count", "more", "message"),
  [
    ("mislabeled", 5, {}, "unknown kind of canaries 'mislabeled'; choose from clean,"),
    ("clean", 0, {}, "0 canaries of 300 records .* pass 1 to 300"),
    ("clean", 301, {}, "301 canaries of 300 records"),
    ("duplicates", 151, {}, "151 duplicates need as many other records .* are 149"),
    ("blank", 5, {"source": images()}, "only ood canaries need a source"),
    (
      "ood",
      5,
      {"source": table()},
      r"source has records float32 \(20,\), but the data have",
    ),
    ("ood", 5, {"source": images(4)}, "source has 4 records for 5 canaries"),
  ],
)
def test_impossible_canaries_are_refused(kind, count, more, message):
  with pytest.raises(ValueError, match=message):
    plant(images(), kind, count, **more)


def test_one_class_has_no_wrong_label():
  data = Dataset.from_arrays(np.eye(4), np.zeros(4, int))
  with pytest.raises(ValueError, match="num_classes=1; canaries need at least 2"):
    plant(data, "clean", 2)


def test_the_text_of_a_flag():
  assert parse_canaries("duplicates:20") == ("duplicates", 20)
  for text in ("clean", "clean:", "clean:0", "clean:-3", "clean:2.5", "clean:x"):
    with pytest.raises(ValueError, match="write kind:count, as in mislabelled:500"):
      parse_canaries(text)
  with pytest.raises(ValueError, match="unknown kind of canaries 'poison'"):
    parse_canaries("poison:5")


def learner():
  return classifier(models.mlp(64, num_classes=4), optax.adam(1e-2))


@pytest.mark.slow
def test_training_keeps_always_members_in():
  data = plant(table(), "clean", COUNT)
  run = fit(learner(), data, epochs=1, batch_size=100)
  assert run.members.all()
  forgotten = subsets(len(data), 2, eligible=data.audited)
  with pytest.raises(ValueError, match=r"omits records marked always_member: draw it"):
    fit_many(learner(), data, forgotten, epochs=1)


@pytest.fixture(scope="module")
def found():
  """AUC of lira_online on clean and on mislabelled canaries of an easy task."""
  aucs = {}
  for kind in ("clean", "mislabelled"):
    data = plant(table(), kind, 40)
    members = subsets(data, 16)
    training = {"epochs": 40, "batch_size": 64, "strategy": "vmap"}
    ensemble = fit_many(learner(), data, members, **training)
    scores = leave_one_out(lira_online, ensemble.signals())
    assert np.isnan(scores[:, data.always_member]).all()
    aucs[kind] = auc(scores[:, data.audited], members[:, data.audited])
    assert (ensemble.log_probs(data.test.x).argmax(-1) == data.test.y).mean() > 0.9
  return aucs


@pytest.mark.slow
def test_pitfall_144_canaries_show_what_the_average_hides(found):
  assert abs(found["clean"] - 0.5) < 0.12
  assert found["mislabelled"] > 0.8
