"""Audits of the recipe without its most exposed members."""

import json
import pathlib

import jsonschema
import numpy as np
import optax
import pytest

import mixdef
from mixdef.attacks import Signals
from mixdef.auditing import dropping, released
from mixdef.cli.release import ReleaseSettings

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "release.schema.json"


def test_the_most_exposed_members_are_left_out():
  scores = np.array([5.0, np.nan, 3.0, 9.0, 99.0, 1.0])
  member = np.array([True, True, True, True, False, True])
  for share, expected in ((0.01, [3]), (0.4, [0, 3]), (0.8, [0, 2, 3, 5])):
    found = dropping.most_exposed(scores, member, share)
    assert np.flatnonzero(found).tolist() == expected
  with pytest.raises(ValueError, match="leaves out all 5 members"):
    dropping.most_exposed(scores, member, 0.95)


def test_another_model_takes_the_place_of_the_release():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(3, size=30)
  weights = rng.normal(size=(2, 4, 3))
  sides = {"members": (x[:20], y[:20]), "holdout": (x[20:], y[20:])}
  first = released.read(lambda q: q @ weights[0], **sides).signals
  members = np.concatenate([first.members, rng.random((5, 30)) < 0.5])
  logits = np.concatenate([(x @ weights[0])[None], rng.normal(size=(5, 30, 3))])
  before = Signals.from_logits(logits, y, members, design="bernoulli", target=0)
  kept = ~np.isin(np.arange(30), [3, 7])
  sides["members"] = x[:20][kept[:20]], y[:20][kept[:20]]
  again = released.read(lambda q: q @ weights[1], **sides)
  after = dropping.with_target(before, kept, again)
  np.testing.assert_array_equal(after.phi[1:], before.phi[1:, kept])
  np.testing.assert_array_equal(after.members[1:], before.members[1:, kept])
  np.testing.assert_allclose(after.phi[0], again.signals.phi[0])
  assert after.members[0].sum() == 18
  np.testing.assert_array_equal(after.labels, y[kept])
  assert before.phi.shape[1] == 30  # unchanged


def test_a_recipe_is_needed_and_a_share():
  x = np.zeros((4, 2)), np.zeros(4, int)
  sides = {"members": x, "holdout": x}
  with pytest.raises(ValueError, match="drop_exposed trains the model again"):
    mixdef.audit_release(lambda q: q, **sides, drop_exposed=0.1)
  with pytest.raises(ValueError, match="drop_exposed=1; pass a fraction"):
    mixdef.audit_release(lambda q: q, **sides, drop_exposed=1)


def test_the_flag_takes_a_percentage_or_a_fraction(tmp_path):
  np.savez(tmp_path / "outputs.npz", a=1)
  with pytest.raises(ValueError, match="trains the model again: use --run"):
    ReleaseSettings(arrays=str(tmp_path / "outputs.npz"), drop_exposed="1%")
  settings = object.__new__(ReleaseSettings)
  for text, share in (("1%", 0.01), ("0.01", 0.01), ("", None)):
    object.__setattr__(settings, "drop_exposed", text)
    assert settings.dropped_share == share
  object.__setattr__(settings, "drop_exposed", "some")
  with pytest.raises(ValueError, match="--drop_exposed=some: pass a share"):
    settings.dropped_share  # noqa: B018  it raises


@pytest.mark.slow
def test_a_release_is_audited_without_its_most_exposed_members(tmp_path):
  data = mixdef.load("digits").select(np.arange(600)).hold_out(0.5, seed=0)
  learner = mixdef.classifier(mixdef.models.mlp(64), optax.adam(5e-3))
  run = mixdef.fit(learner, data, epochs=40, batch_size=64)
  how = {"budget": "shadows:8", "drop_exposed": 0.05, "out": tmp_path / "audit"}
  how["attacks"] = "lira_online, loss_threshold"
  found = mixdef.audit_release(run, **how)
  again, after = found.report["without_exposed"], found.after
  member = found.members
  scores = found.scores["lira_online"]
  worst = np.argsort(-np.where(member, scores, -np.inf))[:15]
  assert again["dropped"] == 15
  assert again["ids"] == found.ids[worst].tolist()
  np.testing.assert_array_equal(after.ids, np.delete(found.ids, worst))
  trained = after.run
  np.testing.assert_array_equal(
    trained.data.ids[~trained.members], np.sort(found.ids[worst])
  )
  assert after.report["setting"]["members"] == 285
  assert after.report["setting"]["holdout"] == 300
  assert after.report["title"] == "MLP, no defense, without the 0.05 most exposed"
  rest = again["remaining"]
  assert rest["both"] + rest["newly"] == rest["after"]
  rule = found.report["agreement"]["rank"]
  limit = np.sort(after.scores["lira_online"][~after.members])[-rule]
  named = after.scores["lira_online"][after.members] > limit
  assert rest["after"] == named.sum()
  assert len(again["newly_ids"]) == min(20, rest["newly"])
  assert set(again["newly_ids"]) <= set(after.ids[after.members][named])
  schema = json.loads(SCHEMA.read_text())
  for report in (found.report, after.report):
    jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
  models = sorted((tmp_path / "audit").rglob("*.npz"))
  times = [path.stat().st_mtime for path in models]
  resumed = mixdef.audit_release(run, **how)
  assert resumed.report["without_exposed"] == again
  assert [path.stat().st_mtime for path in models] == times
  page = found.save(tmp_path / "whole").read_text()
  assert "Without the 15 most exposed records" in page
  assert (tmp_path / "whole" / "without_exposed" / "report.html").exists()
  found.save(tmp_path / "redacted", redact=True)
  text = (tmp_path / "redacted" / "report.json").read_text()
  assert json.loads(text)["without_exposed"]["ids"] == []
  inner = tmp_path / "redacted" / "without_exposed"
  assert not (inner / "scores.npz").exists()
  assert json.loads((inner / "report.json").read_text())["exposed"] == []


@pytest.mark.slow
def test_persons_are_left_out_with_all_their_records():
  data = mixdef.load("digits").select(np.arange(400)).hold_out(0.5, seed=0)
  learner = mixdef.classifier(mixdef.models.mlp(16), optax.adam(5e-3))
  run = mixdef.fit(learner, data, epochs=10, batch_size=64)
  groups = np.concatenate([np.arange(200) // 2, 100 + np.arange(200) // 2])
  found = mixdef.audit_release(
    run, groups=groups, attacks="loss_threshold", drop_exposed=0.1
  )
  again = found.report["without_exposed"]
  assert again["dropped"] == 10
  assert found.after.report["setting"]["members"] == 90
  assert found.after.run.members.sum() == 180
  lost = np.flatnonzero(~found.after.run.members)
  assert set(groups[:200][lost]) == set(again["ids"])
