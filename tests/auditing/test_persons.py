"""Persons in audits: intervals, designs, files of outputs, and canaries."""

import dataclasses

import numpy as np
import optax
import pytest

import mixdef
from mixdef.attacks import Signals
from mixdef.attacks._designs import detect_design
from mixdef.attacks._kept import joined
from mixdef.auditing import attack_canaries, plant
from mixdef.auditing.facts import epsilon_remark
from mixdef.data import Dataset
from mixdef.metrics import summarize
from mixdef.metrics.intervals import bootstrap_records, paired_bootstrap

PERSONS, SHADOWS = 60, 6


def signals_of(sizes, seed=0, effect=1.5, models=SHADOWS):
  """Persons whose records share an offset in each model."""
  rng = np.random.default_rng(seed)
  groups = np.repeat(np.arange(len(sizes)), sizes)
  drawn = rng.random((models, len(sizes))) < 0.5
  offset = rng.normal(size=drawn.shape) + effect * drawn
  phi = offset[:, groups] + 0.1 * rng.normal(size=(models, len(groups)))
  return Signals(phi=phi[..., None], members=drawn[:, groups], groups=groups)


def test_intervals_of_copies_are_those_of_the_persons():
  rng = np.random.default_rng(0)
  members = rng.random((4, PERSONS)) < 0.5
  scores = rng.normal(size=members.shape) + members
  order = rng.permutation(5 * PERSONS)
  copies = np.repeat(np.arange(PERSONS), 5)[order]
  options = {"fprs": (0.1,), "threshold": np.zeros(4), "resamples": 200}
  plain = bootstrap_records(scores, members, **options)
  many = scores[:, copies], members[:, copies]
  assert bootstrap_records(*many, groups=copies, **options) == plain
  naive = bootstrap_records(*many, **options)
  widths = [high - low for low, high in (plain["auc"], naive["auc"])]
  assert widths[1] < 0.6 * widths[0], "negative control: copies taken for records"
  other = scores + rng.normal(size=scores.shape), members
  paired = paired_bootstrap((scores, members), other, resamples=200)
  both = many, (other[0][:, copies], many[1])
  assert paired_bootstrap(*both, groups=copies, resamples=200) == paired


def test_a_summary_resamples_the_audited_persons():
  signals = signals_of(np.full(PERSONS, 4))
  scores, members = signals.phi[..., 0], signals.members
  audited = signals.groups < 40
  part = summarize(
    scores[:, audited], members[:, audited], groups=np.repeat(range(40), 4)
  )
  assert summarize(scores, members, audited, groups=signals.groups) == part
  assert part.pairs == 20
  assert part.auc_ci[0] < summarize(scores, members, audited).auc_ci[0]
  with pytest.raises(ValueError, match="groups has 3 entries but x has 240 records"):
    summarize(scores, members, groups=[1, 2, 3])


def test_persons_that_were_drawn_independently_do_not_look_dependent():
  sizes = np.random.default_rng(0).integers(1, 40, PERSONS)
  every = [signals_of(sizes, seed) for seed in range(12)]
  assert {one.design for one in every} == {"bernoulli"}
  assert "dependent" in {detect_design(one.members) for one in every}


def test_a_file_of_outputs_may_name_persons(tmp_path):
  signals = signals_of(np.full(PERSONS, 4))
  logits = np.concatenate([signals.phi, 0 * signals.phi], -1)
  arrays = {"keep": signals.members, "labels": np.zeros(240, int)}
  np.savez(tmp_path / "o.npz", logits=logits, groups=signals.groups, **arrays)
  read = Signals.from_npz(tmp_path / "o.npz")
  np.testing.assert_array_equal(read.groups, signals.groups)
  np.savez(tmp_path / "o.npz", logits=logits, groups=[1, 2], **arrays)
  with pytest.raises(ValueError, match=r"groups have shape \(2,\); pass \[240\]"):
    Signals.from_npz(tmp_path / "o.npz")


def test_outputs_kept_in_a_run_folder_have_their_persons():
  rng = np.random.default_rng(0)
  data, others = (
    Dataset.from_arrays(rng.normal(size=(8, 2)), np.arange(8) % 2, groups=names)
    for names in (np.arange(8) // 2, np.arange(8) // 4)
  )
  phi = rng.normal(size=(2, 8, 1))
  models = [{"phi": one, "population/phi": one + 1} for one in phi]
  members = np.arange(16).reshape(2, 8) % 4 < 2
  found = joined(Signals, models, members, data, others)
  np.testing.assert_array_equal(found.groups, data.groups)
  np.testing.assert_array_equal(found.population.groups, others.groups)


def test_one_side_without_persons_is_refused():
  rng = np.random.default_rng(0)
  inside = Dataset.from_arrays(
    rng.normal(size=(8, 2)), np.arange(8) % 2, groups=np.arange(8) // 2
  )
  outside = Dataset.from_arrays(rng.normal(size=(8, 2)), np.arange(8) % 2)
  with pytest.raises(ValueError, match="only one of members and hold-out has groups"):
    mixdef.audit_release(lambda x: x, members=inside, holdout=outside)


def test_an_epsilon_of_persons_is_said_to_be_one():
  stated = {"epsilon": 1.0, "unit": "person"}
  assert epsilon_remark(stated) == " (of a person with all records)"


@pytest.mark.slow
def test_canaries_of_persons_are_attacked_as_persons():
  data = mixdef.load("synthetic_clusters")
  data = data.select(range(240))
  data = dataclasses.replace(data, groups=np.arange(240) // 3)
  planted = plant(data, "mislabelled", 24)
  learner = mixdef.classifier(mixdef.models.mlp(32, num_classes=4), optax.adam(1e-2))
  members = mixdef.subsets(planted, 8)
  models = mixdef.fit_many(learner, planted, members, epochs=60, strategy="vmap")
  found = attack_canaries(models, kind="mislabelled")
  assert (found["unit"], found["count"], found["num_always"]) == (
    "person",
    24,
    240 - 72,
  )
  assert found["members"].shape == (8, 24)
  assert found["strongest"]["auc"] > 0.8
  assert "label_only_logreg" not in found["attacks"]
  report = mixdef.audit(models, attacks="loss_threshold", canaries=found)
  assert "mislabelled persons as canaries" in str(report.report["verdict"])
  assert "24 canaries (mislabelled, each a person with all records)" in report.html()
