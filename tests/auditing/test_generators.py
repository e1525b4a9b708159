import dataclasses
import json
import pathlib

import jsonschema
import numpy as np
import optax
import pytest

import mixdef
from mixdef.attacks import leave_one_out
from mixdef.attacks.gan import GanSignals, logan, samples
from mixdef.auditing import Budget, describe_generators, read_report
from mixdef.data import Dataset, subsets
from mixdef.learners import wgan_gp
from mixdef.models import dense_networks
from mixdef.utility import Extractor, downstream_accuracy, sample_quality

pytestmark = pytest.mark.slow  # generators are trained

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "report.schema.json"
RECORDS, HELD_OUT, CLASSES, MODELS, SAMPLES = 40, 24, 3, 4, 30
PIXELS = Extractor("pixels", lambda x: x.reshape(len(x), -1)[:, :4])
JUDGE = mixdef.classifier(mixdef.models.mlp(4, num_classes=CLASSES), optax.adam(1e-2))
SIZE = {"classifier": JUDGE, "num_samples": SAMPLES}
ON_SIGNALS = ["logan", "lira_gan_discriminator_fixed"]
EVERY_KIND = [*ON_SIGNALS, "lira_gan_reconstruction", "gan_leaks_full_black_box"]
BUDGET = Budget(targets=2, records=6)


def records(count, shape, seed):
  """Draw binary records with labels of all classes."""
  rng = np.random.default_rng(seed)
  x = (rng.random((count, *shape)) < 0.5).astype(np.float32)
  return Dataset.from_arrays(x, np.arange(count) % CLASSES, num_classes=CLASSES)


def trained(shape):
  """Return a few GANs of records of this shape, hardly trained."""
  networks = dense_networks(shape, CLASSES, hidden=8, latent=3)
  data = records(RECORDS, shape, seed=0)
  data = dataclasses.replace(data, test=records(HELD_OUT, shape, seed=1))
  members = subsets(RECORDS, MODELS, seed=0)
  sizes = {"epochs": 2, "batch_size": 10, "num_members": RECORDS // 2}
  return mixdef.fit_many(wgan_gp(networks), data, members, **sizes, strategy="loop")


@pytest.fixture(scope="module")
def pictures():
  return trained((3, 4, 1))


@pytest.fixture(scope="module")
def tables():
  return trained((6,))


@pytest.fixture(scope="module")
def described(pictures):
  return describe_generators(pictures, PIXELS, **SIZE)


def without_test(ensemble):
  data = dataclasses.replace(ensemble.data, test=None)
  return dataclasses.replace(ensemble, data=data)


def follows_the_schema(report):
  text = json.dumps(report, allow_nan=False)
  schema = json.loads(SCHEMA.read_text())
  jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


def test_utility_is_measured_on_records_that_no_generator_saw(described, pictures):
  rows = {row["name"]: row for row in described.metrics["utility"]}
  assert list(rows) == [
    *("fd_pixels", "kid_pixels", "density_pixels", "coverage_pixels"),
    "downstream_accuracy",
  ]
  held_out = pictures.data.test.x
  made, real, taught = [], [], []
  for model in range(2):
    run = pictures[model]
    drawn = samples(run, SAMPLES)
    own = pictures.data.select(np.flatnonzero(run.members))
    made.append(sample_quality(PIXELS, held_out, drawn[0]))
    real.append(sample_quality(PIXELS, held_out, own.x))
    taught.append(downstream_accuracy(drawn, own, learner=JUDGE))
  for name in list(rows)[:4]:
    values = [one[name] for one in made]
    assert rows[name]["value"] == pytest.approx(np.mean(values))
    assert rows[name]["spread"] == pytest.approx(np.std(values, ddof=1))
    assert rows[name]["real"] == pytest.approx(np.mean([one[name] for one in real]))
  # The twin of the classifier learns from what the generator was given, no more.
  assert taught[0]["num_real"] == pictures.members[0].sum()
  worth = rows["downstream_accuracy"]
  assert worth["value"] == pytest.approx(np.mean([one["accuracy"] for one in taught]))
  expected = np.mean([one["real_accuracy"] for one in taught])
  assert worth["real"] == pytest.approx(expected)


def test_one_generator_has_no_spread(pictures):
  found = describe_generators(pictures, PIXELS, models=1, **SIZE)
  assert {row["spread"] for row in found.metrics["utility"]} == {None}


def tiles(mosaic, rows, columns):
  """Cut a mosaic into its pictures, without the white line on two sides of each."""
  height, width = mosaic.x.shape[0] // rows, mosaic.x.shape[1] // columns
  cut = mosaic.x.reshape(rows, height, columns, width).swapaxes(1, 2)
  assert (cut[:, :, -1] == 1).all()
  assert (cut[..., -1] == 1).all()
  return cut[:, :, :-1, :-1]


def test_pictures_have_a_row_for_each_class(described, pictures):
  drawn = {one.name: one for one in described.pictures}
  assert list(drawn) == ["samples", "real", "interpolations"]
  flat = {
    name: dataclasses.replace(one, x=one.x[..., 0]) for name, one in drawn.items()
  }
  cut = {name: tiles(one, CLASSES, 12) for name, one in flat.items()}
  assert {tile.shape for tile in cut.values()} == {(CLASSES, 12, 3, 4)}
  data, members = pictures.data, np.flatnonzero(pictures.members[0])
  for label in range(CLASSES):
    own = members[data.y[members] == label]
    np.testing.assert_array_equal(cut["real"][label, : len(own)], data.x[own, ..., 0])
    assert (cut["real"][label, len(own) :] == 1).all()  # no more members: paper
  generated = mixdef.attacks.gan.grid(pictures[0], 12)
  np.testing.assert_array_equal(cut["samples"], generated[..., 0])
  assert drawn["samples"].scale * 3 >= 20  # three pixels are large enough to see


def test_binary_tables_get_the_two_comparisons_of_columns(tables):
  found = describe_generators(tables, columns=3)
  assert found.pictures == ()
  assert found.metrics["utility"] == []
  columns = found.metrics["columns"]
  run = tables[0]
  real = run.data.x[run.members]
  np.testing.assert_allclose(columns["dwp"]["real"], real.mean(0))
  shares = samples(run, len(real))[0]
  synthetic = shares > np.random.default_rng(0).random(shares.shape)
  np.testing.assert_allclose(columns["dwp"]["synthetic"], synthetic.mean(0))
  most = set(np.argsort(-real.mean(0), kind="stable")[:3].tolist())
  assert columns["dwpre"]["columns"].tolist() == sorted(most)


def test_a_table_of_other_numbers_is_drawn_by_none(tables):
  halved = dataclasses.replace(tables.data, x=tables.data.x / 2)
  found = describe_generators(dataclasses.replace(tables, data=halved))
  assert found.metrics == {"utility": [], "adaptive": [], "theory": None}
  report = mixdef.audit(tables, attacks=["logan"], generated=found)
  follows_the_schema(report.report)
  assert 'id="samples"' not in report.html()


def test_what_cannot_be_measured_is_one_line(pictures):
  with pytest.raises(ValueError, match=r"no held-out records.*data.hold_out\(0.2\)"):
    describe_generators(without_test(pictures), PIXELS)
  with pytest.raises(ValueError, match="features: pass an extractor"):
    describe_generators(pictures)


def test_classifiers_make_nothing_to_describe(memorised):
  with pytest.raises(ValueError, match="does not generate records; pass trained GANs"):
    describe_generators(memorised)


@pytest.fixture(scope="module")
def audited(pictures, described):
  setting = {"defense": "none", "dataset": "noise"}
  return mixdef.audit(
    pictures, attacks=EVERY_KIND, budget=BUDGET, generated=described, setting=setting
  )


def test_gans_are_audited_by_attacks_made_for_them(audited, pictures):
  report = audited.report
  follows_the_schema(report)
  assert report["title"] == "noise, no defense"
  assert list(report["attacks"]) == EVERY_KIND
  assert "test_accuracy" not in report["setting"]  # a critic classifies nothing
  assert report["setting"]["num_population"] == HELD_OUT
  expected = leave_one_out(logan, pictures.signals())
  np.testing.assert_array_equal(audited.scores["logan"], expected)


def test_costly_questions_are_about_few_records(audited, pictures):
  remade = ~np.isnan(audited.signals.reconstruction[..., 0])
  assert remade.sum(1).tolist() == [BUDGET.records] * MODELS
  assert (remade == remade[0]).all()
  scored = ~np.isnan(audited.scores["lira_gan_reconstruction"])
  assert scored.any()
  assert not scored[~remade].any()
  leaks = ~np.isnan(audited.scores["gan_leaks_full_black_box"])
  assert leaks.any(1).tolist() == [True, True, False, False]


def test_the_report_holds_what_generators_make(audited, described, tmp_path):
  page = audited.save(tmp_path)
  assert read_report(tmp_path) == audited.report
  part = audited.report["generator"]
  assert part["utility"][0]["name"] == "fd_pixels"
  for picture in described.pictures:
    assert (tmp_path / f"{picture.name}.png").read_bytes().startswith(b"\x89PNG")
  text = page.read_text()
  assert text.count('<img src="data:image/png;base64,') >= len(described.pictures)
  assert 'id="samples"' in text


def test_outputs_of_gans_are_audited_as_the_gans_are(audited, pictures):
  signals = pictures.signals()
  assert isinstance(signals, GanSignals)
  found = mixdef.audit(signals, attacks=EVERY_KIND)
  follows_the_schema(found.report)
  assert list(found.report["attacks"]) == ON_SIGNALS
  for name in ON_SIGNALS:
    np.testing.assert_array_equal(found.scores[name], audited.scores[name])
    assert (
      found.report["attacks"][name]["auc"] == audited.report["attacks"][name]["auc"]
    )
  reasons = found.report["not_run"]
  assert "with_reconstructions" in reasons["lira_gan_reconstruction"]
  assert "pass the ensemble" in reasons["gan_leaks_full_black_box"]
  assert found.report["generator"] is None
  assert 'id="samples"' not in found.html()


def test_each_kind_of_model_has_attacks_of_its_own(pictures, memorised):
  with pytest.raises(ValueError, match="there is no attack 'rmia'"):
    mixdef.audit(pictures, attacks=["rmia"])
  with pytest.raises(ValueError, match="there is no attack 'logan'"):
    mixdef.audit(memorised, attacks=["logan"])


def test_a_report_on_classifiers_has_no_part_on_generators(memorised):
  found = mixdef.audit(memorised, attacks=["gap"])
  assert found.report["generator"] is None
  page = found.html()
  for name in ("samples", "adaptive", "theory"):
    assert f'id="{name}"' not in page
