"""Release audits with reference models in rounds."""

import functools

import numpy as np
import optax
import pytest

import mixdef
from mixdef.auditing.prices import Price

CASCADE = "cascade:2x6"


@functools.cache
def learner():
  return mixdef.classifier(mixdef.models.mlp(8, num_classes=2), optax.adam(0.05))


@pytest.fixture(scope="module")
def records():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(240, 5)).astype(np.float32)
  return mixdef.Dataset.from_arrays(x, (x[:, 0] + rng.normal(size=240) > 0).astype(int))


def audit(records, members=120, budget=CASCADE, **options):
  """Audit a fixed model, of which the first records are said to be the members."""
  places = np.arange(len(records))
  return mixdef.audit_release(
    lambda x: np.stack([x[:, 0], -x[:, 1]], 1),
    members=records.select(places[:members]),
    holdout=records.select(places[members:]),
    learner=learner(),
    training={"epochs": 8, "batch_size": 128},
    budget=budget,
    attacks="loss_threshold, lira_online",
    **options,
  )


def test_the_price_is_read_and_written():
  price = Price.parse("cascade:3x32")
  assert (price.rounds, price.models, str(price)) == (3, 32, "cascade:3x32")


@pytest.mark.parametrize(
  "text", ["cascade:3", "cascade", "cascade:1x32", "cascade:3x2"]
)
def test_prices_that_are_wrong_are_one_line(text):
  with pytest.raises(ValueError, match="'cascade:3x32' for 3 rounds of 32") as error:
    Price.parse(text)
  assert "\n" not in str(error.value)


@pytest.mark.slow
def test_rounds_are_trained_scored_and_counted(records):
  found = audit(records)
  price = found.report["price"]
  assert (price["name"], price["models"], price["rounds"]) == (CASCADE, 12, 2)
  assert price["anchors"][0] == {"positive": 0, "negative": 0}
  assert len(price["anchors"]) == 2
  assert np.isfinite(found.scores["cmia"]).all()
  assert found.report["primary"] == found.report["list"]["attack"] == "cmia"
  assert found.report["list"]["method"] == "by"
  assert "lira_online" in found.report["attacks"]


@pytest.mark.slow
def test_other_attacks_read_the_first_round(records):
  """Its subsets are random; those of later rounds follow from the release."""
  plain = audit(records, budget="shadows:6").scores["lira_online"]
  scores = audit(records).scores["lira_online"]
  np.testing.assert_array_equal(scores, plain)


@pytest.mark.slow
def test_scores_do_not_depend_on_who_is_called_a_member(records):
  """Both sizes take one step an epoch, so the reference models are the same."""
  few, many = (audit(records, members) for members in (100, 124))
  assert few.members.sum() != many.members.sum()
  np.testing.assert_array_equal(few.scores["cmia"], many.scores["cmia"])


@pytest.mark.slow
def test_a_cascade_resumes_within_and_between_rounds(records, tmp_path):
  whole = audit(records, budget="cascade:3x6").scores["cmia"]
  audit(records, budget="cascade:2x6", out=tmp_path)
  first = sorted((tmp_path / "round_1" / "models").iterdir())
  assert len(first) == 6
  written = [path.stat().st_mtime_ns for path in first]
  second = tmp_path / "round_2" / "models"
  (second / "00003.npz").unlink()
  for path in (tmp_path / "round_2").glob("signals-*/00003.npz"):
    path.unlink()
  resumed = audit(records, budget="cascade:3x6", out=tmp_path).scores["cmia"]
  np.testing.assert_allclose(resumed, whole, rtol=1e-5)
  assert [path.stat().st_mtime_ns for path in first] == written
  assert len(list(second.iterdir())) == 6
  assert (tmp_path / "round_3").exists()


@pytest.mark.slow
def test_persons_are_anchored_as_a_whole(records):
  groups = np.arange(240) // 2
  found = audit(records, groups=groups)
  assert found.scores["cmia"].shape == (120,)
  assert found.report["unit"] == "person"


@pytest.fixture(scope="module")
def digits():
  """Records in random order: one writer's follow each other in the file."""
  return mixdef.load("digits").select(np.random.default_rng(0).permutation(1797)[:1500])


def released(data, members, epochs):
  learner = mixdef.classifier(mixdef.models.mlp(64), optax.adam(5e-3))
  return mixdef.fit(learner, data, members, epochs=epochs, batch_size=64)


@pytest.mark.slow
def test_a_cascade_finds_members(digits):
  run = released(digits, np.arange(1500) % 2 == 0, epochs=60)
  report = mixdef.audit_release(
    run, attacks="lira_online", budget="cascade:3x16"
  ).report
  assert report["attacks"]["cmia"]["auc_ci"][0] > 0.55
  assert report["price"]["models"] == 48
  assert sum(report["price"]["anchors"][2].values()) > 0


@pytest.mark.slow
def test_a_cascade_finds_nobody_where_no_record_was_trained_on(digits):
  """The negative control: members and hold-out are both unseen."""
  places = np.arange(1500)
  run = released(digits, places >= 1000, epochs=20)
  sides = digits.select(places[:500]), digits.select(places[500:1000])
  report = mixdef.audit_release(
    run,
    members=sides[0],
    holdout=sides[1],
    attacks="loss_threshold",
    budget="cascade:3x8",
  ).report
  low, high = report["attacks"]["cmia"]["auc_ci"]
  assert low < 0.5 < high
  assert report["verdict"]["level"] in ("none_found", "low")
  assert report["list"]["named"] == 0
