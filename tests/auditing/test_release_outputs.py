"""Audits of one model from its outputs: counts, controls, refusals, the page."""

import json

import numpy as np
import pytest
from scipy.special import softmax

import mixdef
from mixdef.auditing.confounding import blind_test
from mixdef.auditing.prices import Price
from mixdef.auditing.release_verdict import LEVELS, level_of

CLASSES = 5


def outputs(shift=0.0, *, members=800, holdout=600, seed=0, exposed=None):
  """Return outputs of a model with larger logits for all members, or the first."""
  rng = np.random.default_rng(seed)
  made = {}
  for side, count in (("member", members), ("holdout", holdout)):
    labels = rng.integers(CLASSES, size=count)
    logits = rng.normal(size=(count, CLASSES))
    more = np.full(count, shift if side == "member" else 0.0)
    if side == "member" and exposed is not None:
      more[exposed:] = 0
    logits[np.arange(count), labels] += 1 + more
    made |= {f"{side}_logits": logits, f"{side}_labels": labels}
  return made


def audit(arrays, **options):
  return mixdef.audit_release(
    arrays, attacks=options.pop("attacks", THRESHOLDS), **options
  )


THRESHOLDS = ["loss_threshold", "lira_global"]


@pytest.mark.slow
def test_members_that_stand_out_are_counted():
  found = audit(outputs(12.0, exposed=200))
  counts = next(row for row in found.report["priors"] if row["prior"] == 0.1)
  assert 200 <= counts["shown"]["0.5"] <= 210
  assert found.report["verdict"]["level"] == "moderate"  # 600 cannot show 19 of 20
  assert counts["certifiable"]["0.95"] > 1
  long = audit(outputs(12.0, exposed=200, holdout=20_000)).report
  assert long["verdict"]["level"] == "high"
  assert long["verdict"]["headline"].startswith("At least 20")
  assert long["list"]["share"] == pytest.approx(0.25, abs=0.02)
  assert {row["id"] for row in long["exposed"]} <= set(range(200))
  assert all(row["attacks"] == 2 for row in long["exposed"])


def test_counts_equal_a_loop_over_the_scores():
  found = audit(outputs(2.0))
  row = found.report["attacks"]["loss_threshold"]["rules"][3]
  scores, member = found.scores["loss_threshold"], found.members
  limit = sorted(scores[~member])[-row["rank"]]
  assert row["named"] == sum(scores[member] > limit)
  assert row["tpr"] == row["named"] / member.sum()


@pytest.mark.slow
def test_without_leakage_nobody_is_named():
  levels = [
    audit(
      outputs(members=300, holdout=300, seed=seed), attacks=["loss_threshold"]
    ).report["verdict"]["level"]
    for seed in range(10)
  ]
  assert levels.count("none_found") >= 9


def test_a_shuffled_membership_gives_chance():
  """The negative control of a leaking model: its outputs in random order."""
  arrays, rng = outputs(3.0), np.random.default_rng(9)
  logits = np.concatenate([arrays["member_logits"], arrays["holdout_logits"]])
  labels = np.concatenate([arrays["member_labels"], arrays["holdout_labels"]])
  order = rng.permutation(len(labels))
  logits, labels = logits[order], labels[order]
  mixed = {
    "member_logits": logits[:800],
    "member_labels": labels[:800],
    "holdout_logits": logits[800:],
    "holdout_labels": labels[800:],
  }
  report = audit(mixed, attacks=["loss_threshold"]).report
  low, high = report["attacks"]["loss_threshold"]["auc_ci"]
  assert low < 0.5 < high
  assert report["list"]["named"] < 5
  leaking = audit(arrays, attacks=["loss_threshold"]).report
  assert leaking["attacks"]["loss_threshold"]["auc_ci"][0] > 0.8


@pytest.mark.slow
def test_a_hold_out_from_another_site_gets_no_level():
  rng = np.random.default_rng(1)
  arrays = outputs(12.0, members=200, holdout=150, exposed=50)
  x = {"member_x": rng.normal(size=(200, 2)), "holdout_x": rng.normal(size=(150, 2))}
  fair = audit({**arrays, **x}, attacks=["loss_threshold"]).report
  assert not fair["confounding"]["confounded"]
  assert fair["verdict"]["level"] != "confounded"
  x["holdout_x"] = x["holdout_x"] + 1
  report = audit({**arrays, **x}, attacks=["loss_threshold"]).report
  assert report["verdict"]["level"] == "confounded"
  assert "cannot be graded" in report["verdict"]["headline"]
  assert "distinguishes members from hold-out with AUC" in report["verdict"]["who"][0]


@pytest.mark.slow
def test_the_blind_test_rarely_fires_without_a_difference():
  rng = np.random.default_rng(2)
  fired = 0
  for seed in range(6):
    x, members = rng.normal(size=(200, 3)), rng.random(200) < 0.5
    fired += blind_test(x, rng.integers(2, size=200), members, seed=seed)["confounded"]
  assert fired <= 1


def test_a_function_is_queried_on_both_sides():
  rng = np.random.default_rng(3)
  weights = rng.normal(size=(4, CLASSES))
  members = rng.normal(size=(50, 4)), rng.integers(CLASSES, size=50)
  holdout = rng.normal(size=(40, 4)), rng.integers(CLASSES, size=40)
  found = mixdef.audit_release(
    lambda x: x @ weights, members=members, holdout=holdout, attacks="loss_threshold"
  )
  logits = members[0].astype(np.float32) @ weights
  expected = logits[np.arange(50), members[1]] - np.log(np.exp(logits).sum(1))
  np.testing.assert_allclose(found.scores["loss_threshold"][:50], expected, rtol=1e-4)
  assert found.ids[0] == "member 0"
  assert found.ids[50] == "hold-out 0"


def test_the_files_hold_the_report_and_redaction_drops_records(tmp_path):
  np.savez(tmp_path / "outputs.npz", **outputs(12.0, exposed=200))
  found = audit(tmp_path / "outputs.npz", setting={"model": "theirs"})
  found.save(tmp_path / "whole")
  report = json.loads((tmp_path / "whole" / "report.json").read_text())
  assert report["title"] == "theirs"
  assert len(report["exposed"]) == 20
  with np.load(tmp_path / "whole" / "scores.npz") as arrays:
    np.testing.assert_array_equal(arrays["lira_global"], found.scores["lira_global"])
    assert arrays["member"].sum() == 800
  page = (tmp_path / "whole" / "report.html").read_text()
  assert report["verdict"]["headline"] in page
  for title in ("Who can be found", "How certain this is", "Compared with what",
                "What to do", "What was not tried"):  # fmt: skip
    assert title in page
  found.save(tmp_path / "redacted", redact=True)
  assert not (tmp_path / "redacted" / "scores.npz").exists()
  kept = json.loads((tmp_path / "redacted" / "report.json").read_text())
  assert kept["exposed"] == []
  assert kept["verdict"] == report["verdict"]
  assert (
    "most exposed records" not in (tmp_path / "redacted" / "report.html").read_text()
  )


PLAIN, LABELS = (outputs()[f"member_{name}"] for name in ("logits", "labels"))


def sides(**both):
  return {
    f"{side}_{name}": part
    for name, parts in both.items()
    for side, part in zip(("member", "holdout"), parts, strict=True)
  }


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"member_labels": None}, "lack 'member_labels': pass member_logits"),
    ({"logits": np.zeros((3, 2))}, "hold 'logits', which is not read"),
    ({"member_groups": np.zeros(800)}, "hold 'member_groups' alone"),
    ({"holdout_logits": np.zeros((600, 3))}, "query both in the same way"),
    ({"member_logits": softmax(PLAIN, -1)}, r"member_logits holds probabilities; pass"),
    ({"member_logits": PLAIN.T}, r"shape \(5, 800\), for 800 labels; .*logits\.T"),
    ({"member_logits": PLAIN[None]}, r"pass \[800, K\] .*: member_logits\[0\]"),
    ({"member_logits": PLAIN[:, :1]}, r"np\.stack\(\[np\.zeros_like\(z\), z\], -1\)"),
    (
      {"member_logits": np.ma.array(PLAIN, mask=PLAIN > 1)},
      "member_logits is a masked",
    ),
    ({"member_logits": PLAIN[:0], "member_labels": []}, "at least one record"),
    ({"member_labels": np.zeros(799, int)}, r"member_logits .* for 799 labels"),
    ({"population_labels": np.zeros(9, int)}, "lack 'population_logits'"),
    (sides(ids=(np.arange(800), np.arange(600).astype(str))), "ids are int64 on one"),
    (sides(groups=(np.zeros(800, int), np.zeros(600, int))), "group 0 has training"),
    (sides(x=(np.zeros((799, 2)), np.zeros((600, 2)))), "member_x has shape"),
    (sides(x=(np.full((800, 2), np.nan), np.zeros((600, 2)))), "not finite"),
    (
      sides(logits=(PLAIN, PLAIN), labels=(LABELS, LABELS)),
      "800 of the 800 records of",
    ),
    (
      sides(logits=(PLAIN, PLAIN[:200]), labels=(LABELS, LABELS[:200])),
      "hold-out, the first at 0, have the same outputs as members; pass records that",
    ),
  ],
)
def test_arrays_that_are_wrong_are_one_line(change, says):
  arrays = {**outputs(), **change}
  arrays = {name: value for name, value in arrays.items() if value is not None}
  with pytest.raises(ValueError, match=says):
    audit(arrays)


@pytest.mark.parametrize(
  ("returned", "says"),
  [
    (lambda x: None, "returned a NoneType; return logits"),
    (lambda x: (x, x), "returned a tuple; return logits"),
    (lambda x: x.T, r"returned shape \(2, 30\) for 30 records"),
    (lambda x: x[:, 0], r"of one logit z \[B\], np\.stack"),
  ],
)
def test_a_function_that_returns_something_else_is_told(returned, says):
  x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
  with pytest.raises(ValueError, match=says):
    mixdef.audit_release(returned, members=(x[:15], y[:15]), holdout=(x[15:], y[15:]))


def test_text_labels_have_the_same_numbers_on_both_sides():
  """A side that lacks a class must not number the others anew."""
  rng = np.random.default_rng(4)
  x, y = rng.normal(size=(90, 3)).astype(np.float32), np.arange(90) % 3
  names = np.array(["ant", "bee", "cat"])[y]
  held = y > 0
  given = {"members": (x[:60], names[:60]), "holdout": (x[60:][held[60:]],)}
  given["holdout"] += (names[60:][held[60:]],)
  made = mixdef.data.Dataset.from_arrays
  for parts in (given, {key: made(*pair) for key, pair in given.items()}):
    found = mixdef.audit_release(lambda x: x, attacks="loss_threshold", **parts)
    scores = found.scores["loss_threshold"][60:]
    expected = x - np.log(np.exp(x).sum(1, keepdims=True))
    expected = expected[np.arange(90), y][60:][held[60:]]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
  mixed = {**given, "holdout": made(x[60:], y[60:])}
  with pytest.raises(
    ValueError, match="labels of holdout and of the training records are"
  ):
    mixdef.audit_release(lambda x: x, **mixed)


def test_members_by_chance_are_neither_named_nor_an_alarm():
  """Of few members and a long hold-out, chance alone names some."""
  levels, alarms = [], []
  for seed in range(20):
    verdict = audit(
      outputs(members=20, holdout=500, seed=100 + seed),
      attacks=["loss_threshold"],
      setting={"epsilon": 0.01, "delta": 0.0},
    ).report["verdict"]
    levels.append(verdict["level"])
    alarms.append(verdict["alarm"] != "")
  assert levels.count("none_found") >= 18
  assert sum(alarms) <= 2


def test_arguments_that_are_wrong_are_one_line():
  with pytest.raises(ValueError, match="prior=10"):
    audit(outputs(), prior=10.0)
  with pytest.raises(ValueError, match=r"budget='shadows:2'; pass 'free'"):
    audit(outputs(), budget="shadows:2")
  with pytest.raises(ValueError, match="trains models on the records"):
    audit(outputs(), budget="shadows:8")
  with pytest.raises(ValueError, match="members= and holdout= are needed"):
    mixdef.audit_release(lambda x: x)
  with pytest.raises(ValueError, match="pass a Run, a function"):
    mixdef.audit_release(3)
  x = np.zeros((4, 2)), np.zeros(4, int)
  with pytest.raises(ValueError, match="needs the recipe"):
    mixdef.audit_release(lambda x: x, members=x, holdout=x, budget="shadows:8")


def test_levels_come_from_the_lists():
  def counts(sure, likely, beats):
    return {"shown": {"0.95": sure, "0.5": likely}, "beats_guessing": beats}

  rows = [
    counts(1, 1, True),
    counts(0, 1, True),
    counts(0, 0, True),
    counts(0, 0, False),
  ]
  assert [level_of(row) for row in rows] == list(LEVELS[1:])
  assert level_of(rows[0], confounded=True) == "confounded"


def test_prices_are_read_and_written():
  assert str(Price.parse("shadows:64")) == "shadows:64"
  assert str(Price.parse("free")) == "free"


def test_the_page_has_no_matrix_of_names_if_nobody_is_named():
  found = audit(outputs(2.0))
  assert 'class="dots"' in found.html()
  for row in found.report["exposed"]:
    row["named_by"] = []
  page = found.html()
  assert 'class="dots"' not in page
  assert "None of these records is named." in page
