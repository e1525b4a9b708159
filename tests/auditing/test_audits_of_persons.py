"""Where records belong to persons, persons are attacked, graded and compared."""

import dataclasses
import functools
import json

import numpy as np
import optax
import pytest

import mixdef
from mixdef.attacks import (
  Signals,
  by_group,
  label_only_noise,
  leave_one_out,
  mean_by_group,
)
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.gan import GanSignals
from mixdef.attacks.gan.adaptive import _disjoint_pairs
from mixdef.auditing import Budget, compare_audits
from mixdef.auditing.pages import formatting
from mixdef.auditing.running import drawn_records
from mixdef.auditing.verdict import verdict
from mixdef.data import Dataset
from mixdef.metrics import auc, paired_bootstrap, summarize

PERSONS, RECORDS, SHADOWS = 120, 12, 8
ATTACKS = "loss_threshold, lira_online_fixed, lira_offline_fixed"


def signals_of(*, gain, seed=0, named=True):
  """Every record of a member gains a little, so only all of them together tell."""
  rng = np.random.default_rng(seed)
  place = rng.permutation(np.repeat(np.arange(PERSONS), RECORDS))
  drawn = rng.random((SHADOWS, PERSONS)) < 0.5
  phi = rng.normal(size=(SHADOWS, len(place))) + gain * drawn[:, place]
  names = np.array([f"p{i:03}" for i in range(PERSONS)])[place]
  return Signals(
    phi=phi[..., None], members=drawn[:, place], groups=names if named else None
  )


@functools.cache
def audited(gain=0.4, named=True):
  return mixdef.audit(signals_of(gain=gain, named=named), attacks=ATTACKS)


def test_the_level_is_that_of_persons():
  found, alone = audited(), audited(named=False)
  assert (alone.report["unit"], alone.report["verdict"]["level"]) == (
    "record",
    "moderate",
  )
  assert alone.report["strongest"]["auc"] < 0.65, "negative control: records are weak"
  report = found.report
  assert (report["unit"], report["verdict"]["level"]) == ("person", "high")
  assert report["strongest"]["auc"] > 0.8
  setting = report["setting"]
  assert (setting["num_audited"], setting["num_groups"]) == (PERSONS, PERSONS)
  assert setting["num_records"] == PERSONS * RECORDS
  assert found.scores["loss_threshold"].shape == (SHADOWS, PERSONS)
  names = [row["id"] for row in report["records"]["exposed"]]
  assert names
  assert all(name.startswith("p") for name in names)


def test_shuffled_persons_are_at_chance():
  signals = signals_of(gain=0.4)
  rng = np.random.default_rng(1)
  names, place = np.unique(signals.groups, return_inverse=True)
  members = np.stack([(rng.random(len(names)) < 0.5)[place] for _ in range(SHADOWS)])
  null = dataclasses.replace(signals, members=members, design=None)
  report = mixdef.audit(null, attacks=ATTACKS).report
  assert report["verdict"]["level"] == "none_found"
  for row in report["attacks"].values():
    assert row["auc_ci"][0] < 0.5 < row["auc_ci"][1]


def test_intervals_are_those_of_a_naive_bootstrap_over_persons():
  signals = signals_of(gain=0.4)
  names = np.unique(signals.groups)
  rows = [np.flatnonzero(signals.groups == name) for name in names]
  scores = np.array([[one[own].mean() for own in rows] for one in signals.phi[..., 0]])
  members = np.array([[one[own[0]] for own in rows] for one in signals.members])
  rng, draws = np.random.default_rng(0), []
  for _ in range(300):
    drawn = rng.integers(0, PERSONS, PERSONS)
    draws.append(auc(scores[:, drawn], members[:, drawn]))
  low, high = np.quantile(draws, [0.025, 0.975])
  row = audited().report["attacks"]["loss_threshold"]
  assert row["auc"] == auc(scores, members)
  np.testing.assert_allclose(row["auc_ci"], (low, high), atol=0.015)


def test_persons_of_one_record_are_records():
  plain = signals_of(gain=0.8, named=False)
  single = dataclasses.replace(plain, groups=np.arange(PERSONS * RECORDS))
  both = [mixdef.audit(one, attacks=ATTACKS) for one in (plain, single)]
  for name, scores in both[0].scores.items():
    np.testing.assert_array_equal(scores, both[1].scores[name])
    ours, theirs = (one.report["attacks"][name] for one in both)
    assert ours | {"seconds": None} == theirs | {"seconds": None}
  exposed = [one.report["records"]["exposed"] for one in both]
  assert [row["index"] for row in exposed[0]] == [row["index"] for row in exposed[1]]


def test_the_page_and_the_verdict_say_persons(tmp_path):
  found = audited()
  verdict = found.report["verdict"]
  text = " ".join(verdict["who"] + verdict["how_sure"])
  assert "120 persons are graded, not their records" in text
  assert "The risk differs between persons" in text
  page = found.html()
  for words in ("<dt>Persons</dt><dd>120</dd>", "The most exposed persons"):
    assert words in page
  assert "most exposed records" not in page
  (section,) = found.report["sections"]
  assert "120 persons with 12 records each" in section["text"][0]
  assert any(
    "a person of whom a single record leaks" in x for x in found.report["limits"]
  )
  found.save(tmp_path)
  with np.load(tmp_path / "scores.npz") as kept:
    assert kept["keep"].shape == (SHADOWS, PERSONS)
    assert kept["ids"][0] == "p000"


def test_the_report_follows_its_schema():
  jsonschema = pytest.importorskip("jsonschema")
  with open("docs/report.schema.json") as file:
    jsonschema.validate(audited().report, json.load(file))


def test_similar_sizes_are_compared():
  """Members have more records, and the statistic is their number."""
  rng = np.random.default_rng(0)
  members = np.arange(60) % 2 == 0
  sizes = np.where(members, 9, 3)
  signals = Signals(
    phi=(rng.normal(size=60) + sizes)[None, :, None],
    members=members[None],
    sizes=sizes,
  )
  report = mixdef.audit(signals, attacks="loss_threshold").report
  assert report["unit"] == "person"
  (row,) = report["sections"][0]["rows"]
  assert row[1].startswith("1.000")
  assert row[2] == formatting.MISSING  # no stratum has both


def test_a_person_that_was_split_is_refused():
  signals = signals_of(gain=0.4)
  members = signals.members.copy()
  members[0, 0] ^= True
  split = dataclasses.replace(signals, members=members, design=None)
  with pytest.raises(ValueError, match=r"draw whole persons: .* or drop the groups"):
    mixdef.audit(split, attacks="loss_threshold")


def test_an_attack_that_persons_cannot_serve_is_told():
  signals = by_group(signals_of(gain=0.4))
  with pytest.raises(Unavailable, match="these signals of persons have no correct"):
    signals.statistic("correct")


def test_whole_persons_are_drawn_for_costly_attacks():
  signals = by_group(signals_of(gain=0.4))
  drawn = drawn_records(signals, 50, seed=0)
  assert signals.sizes[drawn].sum() == 48
  assert drawn_records(signals, 5, seed=0).sum() == 1


@pytest.mark.slow
def test_attacks_that_query_the_models_score_a_person_by_the_mean():
  data = _people(20)
  learner = mixdef.classifier(mixdef.models.mlp(8, num_classes=2), optax.adam(1e-2))
  members = mixdef.subsets(data, 4)
  models = mixdef.fit_many(learner, data, members, epochs=2, strategy="vmap")
  name = "label_only_noise(draws=4)"
  found = mixdef.audit(
    models, attacks=f"loss_threshold, {name}", budget=Budget(targets=2, records=30)
  )
  scores = found.scores[name]
  assert scores.shape == (4, 20)
  chosen = ~np.isnan(scores[0])
  assert chosen.sum() == 10
  rows = np.flatnonzero(chosen[data.units])
  single = leave_one_out(
    label_only_noise, models, targets=[0, 1], records=rows, draws=4
  )
  np.testing.assert_array_equal(scores, mean_by_group(single, data.groups))
  naive = [single[0, data.units == unit].mean() for unit in range(20)]
  np.testing.assert_allclose(scores[0], naive)
  assert any(
    f"by the mean of these scores: {name}." in x for x in found.report["limits"]
  )
  assert found.report["setting"]["train_accuracy"] > 0.3, "of records"
  assert 'data-label="Content"' not in found.html(), "a person is no single record"


def _people(persons):
  """Three records of each."""
  x = np.random.default_rng(0).normal(size=(3 * persons, 4)).astype(np.float32)
  names = [f"p{i // 3:02}" for i in range(len(x))]
  return Dataset.from_arrays(x, np.arange(len(x)) % 2, groups=names)


@pytest.mark.slow
def test_a_comparison_resamples_persons_and_refuses_records(tmp_path):
  kept = {
    "strong": audited(),
    "weak": mixdef.audit(signals_of(gain=0.2), attacks=ATTACKS),
    "alone": audited(named=False),
  }
  for name, one in kept.items():
    one.save(tmp_path / name)
  folders = {name: tmp_path / name for name in kept}
  pair = {name: folders[name] for name in ("strong", "weak")}
  found = compare_audits(pair)
  assert [row["unit"] for row in found.rows] == ["person", "person"]
  (row,) = found.differences
  sides = [(kept[n].scores[row["attack"]], kept[n].signals.members) for n in pair]
  assert sides[0][0].shape[1] == PERSONS
  assert tuple(row["ci"]) == paired_bootstrap(*sides)["auc"]["ci"]
  assert row["ci"][0] > 0
  page = mixdef.auditing.render_comparison(found.reports, found.differences)
  assert "on persons instead of records." in page
  with pytest.raises(ValueError, match="strong is an audit of persons, alone one of"):
    compare_audits({name: folders[name] for name in ("strong", "alone")})


@pytest.mark.slow
def test_a_sweep_attacks_persons(tmp_path):
  data = _people(20)
  found = mixdef.auditing.sweep_defenses(
    lambda defense: mixdef.classifier(
      mixdef.models.mlp(4, num_classes=2), optax.adam(1e-2), defense
    ),
    data,
    "none",
    mixdef.subsets(data, 2),
    attacks="loss_threshold",
    out=tmp_path,
    strategy="vmap",
    epochs=1,
  )
  metrics = found[0]["attacks"]["loss_threshold"]
  assert metrics["num_members"] + metrics["num_nonmembers"] == 40
  assert (found[0]["num_persons"], found[0]["num_records"]) == (20, 60)
  assert "persons are attacked" in (tmp_path / "sweep.md").read_text()


def test_an_epsilon_of_records_bounds_no_attack_on_persons():
  private = {"epsilon": 1.0, "delta": 1e-5, "unit": "record"}
  found = mixdef.audit(
    signals_of(gain=0.4), attacks="loss_threshold", setting=private
  ).report
  said = " ".join(found["verdict"]["how_sure"])
  assert "bounds attacks on a single record, but not these attacks on persons" in said
  found["canaries"] = {
    **{"kind": "mislabelled", "unit": "person", "strongest": found["strongest"]},
    "epsilon": {"lower_bound": 2.0, "confidence": 0.95, "delta": 1e-5},
  }
  assert "does not hold as stated" not in " ".join(verdict(found)["how_sure"])
  found["setting"]["unit"] = "person"
  said = " ".join(verdict(found)["how_sure"])
  assert "bounds every attack" in said
  assert "does not hold as stated" in said


def test_critics_are_combined_and_pairs_are_of_different_persons():
  signals = signals_of(gain=0.4)
  critic = np.stack([signals.phi, signals.phi - 1], -1)
  gans = GanSignals(
    phi=signals.phi, critic=critic, members=signals.members, groups=signals.groups
  )
  together = by_group(gans)
  first = signals.groups == "p000"
  np.testing.assert_allclose(together.critic[:, 0], critic[:, first].mean(1))
  found = mixdef.audit(gans, attacks="lira_gan_discriminator_fixed")
  assert found.report["verdict"]["level"] == "high"
  data = _people(4)
  pairs = _disjoint_pairs(data, None, 0)
  assert sorted(data.units[pairs].ravel()) == [0, 1, 2, 3]


def test_summaries_of_persons_equal_those_of_their_means():
  found = audited()
  members = found.signals.members
  row = found.report["attacks"]["loss_threshold"]
  direct = summarize(found.scores["loss_threshold"], members)
  assert (row["auc_ci"], row["pairs"]) == (direct.auc_ci, direct.pairs)
  assert row["num_members"] + row["num_nonmembers"] == SHADOWS * PERSONS
