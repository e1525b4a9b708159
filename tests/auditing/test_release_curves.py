"""The named ROC curves of a release, and the alarm for a contradicted epsilon."""

import json
import pathlib

import jsonschema
import numpy as np
import pytest
from scipy.stats import t

import mixdef
from mixdef.attacks import Signals
from mixdef.auditing.pages.release_charts import named_curves
from mixdef.auditing.release_bound import alarm, bound_of
from mixdef.auditing.release_counts import counted
from mixdef.auditing.release_curves import curves, own_p
from mixdef.auditing.running import metrics_of
from mixdef.metrics import auc, summarize
from mixdef.metrics.holdout import dp_tpr

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "release.schema.json"
SAID = "names more members than this epsilon allows"


def signals(effect=1.0, *, models=9, count=120, seed=0, release=None):
  """Return hand-made signals: phi is larger by `effect` for members of a model."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, count)) < 0.5
  members[0] = np.arange(count) < count // 2
  phi = rng.normal(size=(models, count)) + 5 * rng.normal(size=count)
  phi[1:] += effect * members[1:]
  if release is not None:
    phi[0] = release
  return Signals.from_phi(phi, members, design="bernoulli")


def drawn(found, attack="loss_threshold", scores=None):
  scores = found.phi[0, :, 0] if scores is None else scores
  p = own_p(found)
  metrics = summarize(scores[None], found.members[:1], seed=0).to_json()
  given = {"attack": attack, "pooled": attack, "metrics": metrics, "p": p}
  return curves(scores, found, **given, unit="record", seed=0)


def test_own_p_is_the_t_test_of_a_loop_over_records():
  found = signals(models=12)
  p = own_p(found)
  phi = found.phi[:, :, 0]
  for record in range(20):
    out = phi[1:, record][~found.members[1:, record]]
    spread = out.std(ddof=1) * np.sqrt(1 + 1 / len(out))
    expected = t.sf((phi[0, record] - out.mean()) / spread, len(out) - 1)
    assert p[record] == pytest.approx(expected, rel=1e-9)


def test_the_calibrated_curve_ranks_by_own_p():
  found = signals(models=12)
  curve = drawn(found)["calibrated"]
  p, member = own_p(found), found.members[0]
  assert curve["auc"] == pytest.approx(auc(-p, member))
  assert curve["nominal"]["0.05"]["holdout"] == (p[~member] <= 0.05).mean()
  assert curve["nominal"]["0.05"]["members"] == (p[member] <= 0.05).mean()


def test_the_pooled_curve_is_that_of_the_references_and_changes_no_count():
  """References that leak and others that do not, beside the same release."""
  release = signals().phi[0, :, 0]
  reports, pooled = [], []
  for effect in (0.0, 40.0):
    found = signals(effect, release=release)
    scores, member = {"loss_threshold": release}, found.members[:1]
    about = {"family": "threshold", "about": "", "seconds": None, "note": ""}
    metrics = {"loss_threshold": metrics_of(release[None], member, seed=0, **about)}
    reports.append(counted(scores, metrics, found, prior=0.1, seed=0))
    curve = drawn(found)
    pooled.append(curve["pooled"])
    assert curve["release"]["auc"] == metrics["loss_threshold"]["auc"]
    assert curve["pooled"]["targets"] == 8
    assert curve["pooled"]["members"] == found.members[1:].sum()
  assert [round(curve["auc"]) for curve in pooled] == [0, 1]
  names = ("priors", "list", "attacks", "agreement", "exposed")
  assert [reports[0][name] for name in names] == [reports[1][name] for name in names]


def test_the_pooled_curve_does_not_read_the_release():
  found = signals(2.0)
  other = signals(2.0, release=np.zeros(120))
  same = [drawn(one, "lira_online", np.zeros(120))["pooled"] for one in (found, other)]
  assert same[0] == same[1]


def test_without_references_there_is_one_curve():
  assert list(drawn(signals(models=1))) == ["release"]


def report(*rules, members=10**9, **changes):
  """Return what `bound_of` reads, with rules (tpr, fpr_high) of one attack."""
  rows = [
    {"rank": rank, "tpr": tpr, "fpr_high": high, "named": tpr * members}
    for rank, (tpr, high) in enumerate(rules, 1)
  ]
  facts = {"members": members, "holdout": 1000, "epsilon": 1.0, "delta": 1e-5}
  return {
    "attacks": {"quiet": {"rules": []}, "loud": {"rules": rows}},
    "setting": facts | changes.pop("setting", {}),
    "confounding": None,
    "unit": "record",
    **changes,
  }


def test_a_rule_over_the_bound_raises_an_alarm():
  """Epsilon 1 allows 0.0271928 at an FPR of 1%."""
  at = float(dp_tpr(0.01, 1.0, 1e-5))
  assert not bound_of(report((at, 0.01)))["exceeded"]
  found = bound_of(report((at, 0.01), (at + 0.001, 0.01), (0.5, 0.1)))
  assert found["exceeded"][0]["allowed"] == pytest.approx(1e-5 + np.e * 0.1)
  said = alarm(found)
  assert "loud names 50.0%" in said
  assert "at most 10.00% (95% confidence" in said
  assert SAID in said
  assert alarm(bound_of(report((at, 0.01)))) == ""


def test_few_members_over_the_bound_are_no_alarm():
  """Of 20 members, 3 named where 2.7% are allowed are chance; of 20,000, 15% not."""
  assert not bound_of(report((0.15, 0.01), members=20))["exceeded"]
  assert bound_of(report((0.15, 0.01), members=20_000))["exceeded"]


@pytest.mark.slow
def test_the_curve_of_the_training_allows_less_than_one_epsilon():
  """One full step of noise 1 has epsilon 4.377, and a TPR of 0.092 at an FPR of 1%."""
  stated = {"epsilon": 4.3772, "delta": 1e-5}
  assert not bound_of(report((0.2, 0.01), setting=stated))["exceeded"]
  known = {"noise_multiplier": 1.0, "sampling_probability": 1.0, "steps": 1.0}
  found = bound_of(report((0.2, 0.01), setting={**stated, "accounting": known}))
  (over,) = found["exceeded"]
  assert over["allowed"] == pytest.approx(0.09236, rel=1e-3)


def test_there_is_no_curve_without_a_guarantee_or_with_another_unit():
  assert bound_of(report((0.5, 0.01), setting={"epsilon": None})) is None
  foreign = bound_of(report((0.5, 0.01), confounding={"confounded": True}))
  persons = bound_of(report((0.5, 0.01), unit="person", setting={"unit": "record"}))
  for found in (foreign, persons):
    assert found["why_not"]
    assert found["points"] is None
    assert found["exceeded"] == []
  assert bound_of(report((0.5, 0.01), unit="person"))["exceeded"]


def outputs(shift, members=400, holdout=300):
  rng, made = np.random.default_rng(0), {}
  for side, count in (("member", members), ("holdout", holdout)):
    labels = rng.integers(5, size=count)
    logits = rng.normal(size=(count, 5))
    logits[np.arange(count), labels] += shift if side == "member" else 0
    made |= {f"{side}_logits": logits, f"{side}_labels": labels}
  return made


@pytest.mark.parametrize("shift", [0.0, 8.0], ids=["sound", "planted"])
def test_the_page_and_the_report_carry_the_alarm(shift):
  setting = {"epsilon": 1.0, "delta": 1e-5}
  found = mixdef.audit_release(
    outputs(shift), attacks="loss_threshold", setting=setting
  )
  verdict, planted = found.report["verdict"], shift > 0
  assert (SAID in verdict["alarm"]) == planted
  if planted:
    page = found.html()
    assert 'role="alert"' in page
    assert "most that ε = 1 allows" in page
  assert ("which bounds every attack" in " ".join(verdict["compared"])) != planted
  assert "counts raw scores of this release" in " ".join(verdict["how_sure"])
  text = json.dumps(found.report, allow_nan=False)
  jsonschema.validate(json.loads(text), described(), jsonschema.Draft202012Validator)


def described():
  return json.loads(SCHEMA.read_text())


def test_without_a_guarantee_no_bound_is_drawn_and_the_schema_refuses_other_layouts():
  found = mixdef.audit_release(outputs(0.0), attacks="loss_threshold")
  report = found.report
  assert report["bound"] is None
  legend = named_curves(report["curves"], [], None)["legend"]
  assert [row["name"] for row in legend] == ["this release"]
  jsonschema.validate(report, described(), jsonschema.Draft202012Validator)
  for wrong in (
    {**report, "schema": 2},
    {**report, "more": 1},
    {**report, "curves": {}},
    {name: value for name, value in report.items() if name != "stability"},
  ):
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.validate(wrong, described(), jsonschema.Draft202012Validator)
