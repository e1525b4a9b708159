"""Models that an audit trains itself: on canaries, and with DP-SGD."""

import dataclasses
import functools

import numpy as np
import optax
import pytest

import mixdef
from mixdef.auditing import additions, attack_canaries, audit, plant
from mixdef.auditing.dp_baseline import recipes_for
from mixdef.data.synthetic import synthetic_clusters

SIZES = {"epochs": 20, "batch_size": 64, "strategy": "vmap"}
ATTACKS = ["loss_threshold", "lira_online_fixed"]


@pytest.fixture(scope="module")
def ensemble():
  data = synthetic_clusters(240, num_test=40)
  network = mixdef.models.mlp(16, num_classes=data.num_classes)
  learner = mixdef.classifier(network, optax.adam(1e-2))
  return mixdef.fit_many(learner, data, mixdef.subsets(data, 4), **SIZES)


@pytest.mark.slow
def test_canaries_are_those_of_models_trained_by_hand(ensemble, tmp_path):
  result = audit(
    ensemble, attacks=ATTACKS, canaries="mislabelled:40", seed=3, out=tmp_path
  )
  data = plant(ensemble.data, "mislabelled", 40, seed=3)
  models = mixdef.fit_many(
    ensemble[0].learner, data, mixdef.subsets(data, 4, seed=3), seed=3, **SIZES
  )
  expected = attack_canaries(models, kind="mislabelled", seed=3)
  found = result.report["canaries"]
  assert (found["count"], found["num_always"]) == (40, 200)
  for name, row in expected["attacks"].items():
    assert found["attacks"][name]["auc"] == pytest.approx(row["auc"], abs=1e-9)
  best = max(row["auc"] for row in found["attacks"].values())
  assert best > 0.8  # wrong labels are memorized
  written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("canaries/*/*")}
  assert len(written) >= 4
  again = audit(
    ensemble, attacks=ATTACKS, canaries="mislabelled:40", seed=3, out=tmp_path
  )
  assert again.save() == tmp_path / "report.html"
  for name, row in again.to_json()["canaries"]["attacks"].items():
    assert row["auc_ci"] == found["attacks"][name]["auc_ci"]
  assert all(path.stat().st_mtime_ns == at for path, at in written.items())


@pytest.mark.slow
def test_at_most_a_quarter_of_the_records_are_canaries(ensemble):
  kind, data = mixdef.auditing.planted(ensemble.data, "blank:5000")
  assert (kind, int(data.audited.sum())) == ("blank", 60)


@pytest.mark.slow
def test_the_baseline_is_trained_and_attacked_alike(ensemble):
  found = audit(
    ensemble, attacks=ATTACKS, canaries="mislabelled:40", dp_baseline=True
  ).report["dp_baseline"]
  tried = dict.fromkeys(recipes_for(ensemble.data), 0)
  for one in found["candidates"]:
    tried[one["recipe"]] += 1
  plain, *others = tried.values()
  assert plain == 28
  assert {4} <= set(others) <= {4, 8}
  assert found["recipe"] in tried
  assert list(found["attacks"]) == ATTACKS
  assert found["canaries"]["count"] == 40
  assert {row["records"] for row in found["paired"]} == {"audited", "mislabelled"}
  assert found["epsilon"] > 0


@pytest.mark.slow
def test_the_baseline_of_persons_protects_persons(monkeypatch):
  """Batches are counted in persons: 64 records are those of 16 persons."""
  data = synthetic_clusters(240, num_test=40)
  data = dataclasses.replace(data, groups=np.arange(240) // 4)
  network = mixdef.models.mlp(16, num_classes=data.num_classes)
  sizes = SIZES | {"epochs": 4}
  few = {"noise_multipliers": [0.5], "learning_rates": [1.0]}
  search = functools.partial(mixdef.auditing.matched_dp, **few)
  monkeypatch.setattr(additions, "matched_dp", search)
  for chain in ("", "dp_sgd(0.5, unit='person', delta=1e-3)"):
    learner = mixdef.classifier(network, optax.sgd(1.0), chain)
    members = mixdef.subsets(data, 2)
    own = sizes | ({"batch_size": 16} if chain else {})
    models = mixdef.fit_many(learner, data, members, **own)
    found = audit(models, attacks=ATTACKS[:1], dp_baseline=True)
    found = found.report["dp_baseline"]
    assert found["unit"] == "person"
    assert found["tuning"] == "not covered"
    accounting = found["accounting"]
    assert accounting["sampling_probability"] == pytest.approx(16 / 30)
    assert accounting["steps"] == 4 * 2


def test_outputs_alone_cannot_be_trained_further(ensemble):
  signals = ensemble.signals()
  for asked in ({"canaries": "clean:20"}, {"dp_baseline": True}):
    with pytest.raises(ValueError, match="train models: pass an ensemble"):
      audit(signals, attacks=ATTACKS, **asked)
  assert audit(signals, attacks=ATTACKS, dp_baseline=False).report["canaries"] is None


def test_other_learners_are_refused(ensemble):
  swept = dataclasses.replace(ensemble, values={"rate": np.ones(4)})
  with pytest.raises(ValueError, match="classifiers of one recipe"):
    audit(swept, attacks=ATTACKS, canaries="clean:20")
  with pytest.raises(ValueError, match="unknown kind of canaries 'red'"):
    audit(ensemble, attacks=ATTACKS, canaries="red:20")
  bare = ensemble[0].learner._replace(model=None)
  with pytest.raises(ValueError, match="trains the network of `classifier`"):
    audit(dataclasses.replace(ensemble, source=bare), attacks=ATTACKS, dp_baseline=True)


def test_a_report_names_the_defense_and_the_model(ensemble):
  result = audit(ensemble, attacks=ATTACKS)
  setting = result.report["setting"]
  assert (setting["defense"], setting["model"]) == ("none", "MLP")
  assert result.report["title"] == "synthetic_clusters, no defense"
  given = audit(ensemble, attacks="loss_threshold", setting={"model": "mine"}).report
  assert (given["setting"]["defense"], given["setting"]["model"]) == ("none", "mine")


def test_saving_needs_a_folder(ensemble):
  result = audit(ensemble, attacks=["loss_threshold"])
  with pytest.raises(ValueError, match="name a folder"):
    result.save()
