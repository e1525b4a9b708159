import copy
import math
import re

import numpy as np
import pytest
import report_case
from scipy.stats import binom, norm

from mixdef.auditing.levels import (
  LEVELS,
  level_of,
  lowest_resolvable,
  pairs_needed,
  strongest,
  widened,
)
from mixdef.auditing.verdict import verdict


def found(low, rate=None, fpr=0.01):
  """A finding whose intervals begin at `low` and, for the TPR, at `rate`."""
  return {
    "auc": low + 0.02,
    "auc_ci": [low, low + 0.04],
    "tpr": None if rate is None else rate + 0.01,
    "tpr_ci": None if rate is None else [rate, rate + 0.02],
    "fpr": None if rate is None else fpr,
    "tpr_attack": "lira_online",
    "attack": "lira_online",
    "num_attacks": 5,
    "pairs": 500,
  }


@pytest.mark.parametrize(
  ("low", "level"),
  [
    (0.70001, "high"),
    (0.7, "moderate"),
    (0.55001, "moderate"),
    (0.55, "low"),
    (0.50001, "low"),
    (0.5, "none_found"),
    (0.3, "none_found"),
  ],
)
def test_levels_change_where_the_interval_of_the_auc_does(low, level):
  assert level_of(found(low)) == level


@pytest.mark.parametrize(
  ("rate", "fpr", "level"),
  [
    (0.1001, 0.01, "high"),
    (0.0999, 0.01, "moderate"),
    (0.0301, 0.01, "moderate"),
    (0.0299, 0.01, "low"),
    (0.0101, 0.01, "low"),
    (0.01, 0.01, "none_found"),
    (0.0101, 0.001, "high"),
    (0.0099, 0.001, "none_found"),  # ten times the FPR, but less than one percent
  ],
)
def test_levels_change_where_the_interval_of_the_tpr_does(rate, fpr, level):
  assert level_of(found(0.4, rate, fpr)) == level


def test_the_worse_of_auc_and_tpr_decides():
  assert level_of(found(0.71, 0.005)) == "high"
  assert level_of(found(0.51, 0.2)) == "high"
  assert level_of(None) == "none_found"


def test_the_interval_of_the_best_is_that_of_bonferroni():
  # With many trials, that of a normal estimate of level 1 - 0.05/m.
  value, trials = 0.6, 1e7
  error = math.sqrt(value * (1 - value) / trials)
  for m in (1, 5, 20):
    np.testing.assert_allclose(
      widened(value, trials, m), norm.interval(1 - 0.05 / m, value, error), atol=1e-6
    )
  # With few, perfect separation by one of 30 attacks has the bound that is exact.
  low, high = widened(1.0, 25, 30)
  assert (low**25, high) == (pytest.approx(0.025 / 30), 1)


@pytest.mark.parametrize("attacks", [1, 5, 30])
def test_no_level_is_given_where_perfect_separation_could_not_be_called_high(attacks):
  perfect = {"tpr_ci": None, "fpr": None, "num_attacks": attacks}
  needed = pairs_needed(attacks)
  for pairs in (1, 2, needed - 1, needed, 10 * needed):
    interval = widened(1.0, pairs, attacks)
    level = level_of(perfect | {"auc_ci": interval, "pairs": pairs})
    assert level == ("high" if interval[0] > 0.7 else "too_few_records")
    assert level_of(perfect | {"auc_ci": [0.2, 0.8], "pairs": pairs}) == (
      "none_found" if pairs >= needed else "too_few_records"
    )


@pytest.mark.parametrize(("low", "level"), [(0.8, "high"), (0.4, "none_found")])
def test_too_few_canaries_do_not_grade(report, low, level):
  few = found(0.3) | {"pairs": 2}
  report["strongest"] = found(low)
  report["canaries"] = {"kind": "clean", "count": 4, "strongest": few}
  assert spoken(report)[0] == level


def test_too_few_records_are_neither_an_accusation_nor_an_all_clear(report):
  report["strongest"] = found(0.9, 0.5) | {"pairs": 5}
  level, text = spoken(report)
  assert level == "too_few_records"
  assert "too few records to measure" in text
  assert "Audit more records" in text
  for claim in ("public", "release", "distinguish", "exclud"):
    assert claim not in text.split("; 0.5")[0].replace("guessing", "")
  # Canaries that suffice still count.
  report["canaries"] = canaries(0.8)
  assert spoken(report)[0] == "high"
  report["canaries"] = canaries(0.4) | {"strongest": found(0.4)}
  assert spoken(report)[0] == "too_few_records"


def metrics(auc, rate, resolvable, fpr="0.01"):
  return {
    "auc": auc,
    "auc_ci": [auc - 0.02, auc + 0.02],
    "auc_trials": 1500,
    "pairs": 300,
    "tpr": {
      fpr: {"value": rate, "trials": 900, "resolvable": resolvable},
      "0.05": {"value": 0.2, "trials": 900, "resolvable": True},
    },
  }


def test_the_strongest_is_widened_for_the_number_it_was_picked_from():
  attacks = {
    "gap": metrics(0.6, 0.04, True),
    "rmia": metrics(0.8, 0.05, True),
    "base": metrics(0.7, 0.09, True),
  }
  best = strongest(attacks)
  assert (best["attack"], best["auc"], best["num_attacks"]) == ("rmia", 0.8, 3)
  assert best["auc_ci"] == pytest.approx(widened(0.8, 1500, 3))
  assert (best["fpr"], best["tpr"], best["tpr_attack"]) == (0.01, 0.09, "base")
  assert best["tpr_ci"] == pytest.approx(widened(0.09, 900, 3))
  assert strongest({}) is None


def test_a_rate_that_few_pairs_give_is_not_the_strongest():
  attacks = {
    "white_box": metrics(0.9, 0.9, False),
    "rmia": metrics(0.6, 0.05, True),
  }
  best = strongest(attacks)
  assert best["attack"] == "white_box"
  assert (best["tpr_attack"], best["tpr"]) == ("rmia", 0.05)
  only = {"white_box": attacks["white_box"]}
  assert lowest_resolvable(only) == "0.05"
  only["white_box"]["tpr"]["0.05"]["resolvable"] = False
  assert lowest_resolvable(only) is None
  assert strongest(only)["tpr"] is strongest(only)["tpr_ci"] is None


def test_an_attack_on_few_records_is_passed_over_where_others_have_more():
  attacks = {
    "lira_online": metrics(1.0, 0.9, True) | {"pairs": 3},
    "rmia": metrics(0.6, 0.05, True),
  }
  best = strongest(attacks)
  assert (best["attack"], best["tpr_attack"], best["num_attacks"]) == ("rmia",) * 2 + (
    2,
  )
  assert strongest({"lira_online": attacks["lira_online"]})["attack"] == "lira_online"


@pytest.fixture(scope="module")
def example():
  return report_case.make(models=8, records=200)[0]


@pytest.fixture
def report(example):
  """A report without canaries and without a baseline, to be changed."""
  return copy.deepcopy(example) | {"canaries": None, "dp_baseline": None}


def spoken(report):
  said = verdict(report)
  lines = [said["headline"], *said["who"], *said["how_sure"], *said["what_to_do"]]
  return said["level"], " ".join(lines)


@pytest.mark.parametrize(
  ("low", "level"),
  [(0.8, "high"), (0.6, "moderate"), (0.52, "low"), (0.4, "none_found")],
)
def test_the_words_are_those_of_the_level(report, low, level):
  report["strongest"] = found(low, 0.0)
  said, text = spoken(report)
  assert said == level
  release = "Do not release" in text, "public" in text
  assert release == ((level == "high"),) * 2
  assert ("no reason against release" in text) == (level == "none_found")
  assert ("Release is defensible" in text) == (level == "low")
  assert ("None of the attacks distinguished" in text) == (level == "none_found")


def test_nothing_found_is_no_proof(report):
  report["strongest"] = found(0.4)
  level, text = spoken(report)
  assert level == "none_found"
  assert "does not prove that nothing leaks" in text
  assert "There is no formal guarantee" in text
  assert "safe" not in text


def test_the_metrics_are_quoted_as_they_are(report):
  best = report["strongest"] = found(0.6, 0.031, 0.02)
  row = report["attacks"]["lira_online"]
  _, text = spoken(report)
  assert (
    "At one false positive per 50 non-members, the attack lira_online identifies 4.1%"
    in text
  )
  assert "random guessing would identify 2.0%" in text
  assert f"AUC {best['auc']:.3f} [0.600, 0.640]" in text
  assert f"{row['num_members']:,} members" in text
  assert f"{row['num_nonmembers']:,} non-members of {row['num_targets']} models" in text
  most = report["records"]["exposed"][0]
  hits = round(most["rate"] * most["times"])
  assert f"identified in {hits} of the {most['times']} models" in text
  # One record in ten lies at or above the 90 % quantile.
  assert (
    "one record in ten in 31.0% of them or more (at one false positive per 100" in text
  )
  report["records"]["quantiles"]["0.9"] = 1.0
  assert "one record in ten in all of them (at one false" in spoken(report)[1]


def test_a_rate_that_is_not_resolved_is_not_quoted(report):
  report["strongest"] = found(0.6)
  assert "identifies" not in spoken(report)[1]


@pytest.mark.parametrize(
  ("hits", "times", "fpr", "stands_out"),
  [(0, 8, 0.01, False), (2, 4, 0.01, False), (3, 4, 0.01, True), (2, 2, 0.05, False)],
)
def test_a_record_stands_out_only_if_chance_does_not_explain_it(
  report, hits, times, fpr, stands_out
):
  setting, records = report["setting"], report["records"]
  records["fpr"] = fpr
  records["exposed"][0] |= {"rate": hits / times, "times": times}
  expected = setting["num_audited"] * binom.sf(hits - 1, times, fpr) < 0.05
  assert expected == stands_out
  for auc in (0.4, 0.6):
    report["strongest"] = found(auc)
    assert ("The risk differs" in spoken(report)[1]) == stands_out


def test_classes_are_named_only_if_their_intervals_are_apart(report):
  row = {"label": 0, "num_records": 9, "auc": 0.8, "auc_ci": [0.7, 0.9]}
  other = {"label": 1, "num_records": 9, "auc": 0.6, "auc_ci": [0.5, 0.69]}
  report["classes"] = [row, other]
  assert (
    "Class 0 is the most exposed (AUC 0.80), class 1 the least" in spoken(report)[1]
  )
  other["auc_ci"] = [0.5, 0.71]
  assert "Class" not in spoken(report)[1]
  report["classes"] = [row]
  assert "Class" not in spoken(report)[1]


def test_epsilon_is_stated_where_there_is_one(report):
  report["setting"] |= {"epsilon": 3.1416, "delta": 1e-5}
  _, text = spoken(report)
  assert "epsilon 3.14 at delta 1e-05 bounds every attack" in text
  assert "There is no formal guarantee" not in text
  report["setting"] |= {"delta": None}
  assert "epsilon 3.14 bounds every attack" in spoken(report)[1]
  report["setting"] |= {"epsilon": None}
  assert "epsilon 3" not in spoken(report)[1]
  assert "There is no formal guarantee" in spoken(report)[1]


def canaries(low, bound=0.0):
  return {
    "kind": "mislabelled",
    "count": 40,
    "strongest": found(low, 0.2, 0.05),
    "epsilon": {"lower_bound": bound, "delta": 1e-5, "confidence": 0.95},
  }


def test_canaries_that_break_a_guarantee_are_not_kept_quiet(report):
  report["setting"] |= {"epsilon": 1.0, "delta": 1e-5}
  report["canaries"] = canaries(0.6, bound=2.5)
  assert "prove that epsilon is at least 2.5 at 95% confidence" in spoken(report)[1]
  report["canaries"] = canaries(0.6, bound=0.9)
  assert "canaries prove" not in spoken(report)[1]
  # A bound at a smaller delta says nothing about a guarantee at a larger one.
  report["canaries"] = canaries(0.6, bound=2.5)
  report["setting"]["delta"] = 1e-3
  assert "canaries prove" not in spoken(report)[1]


def test_pitfall_144_the_verdict_is_that_of_the_worst_case(report):
  report["strongest"] = found(0.4)
  assert "No canaries were planted" in spoken(report)[1]
  report["canaries"] = canaries(0.8)
  level, text = spoken(report)
  assert level == "high"
  assert "None of the attacks" not in text
  assert "No canaries were planted" not in text
  assert "mislabelled canaries planted for the audit, 21.0% are identified" in text
  assert verdict(report)["headline"].startswith("Unusual members")
  report["strongest"] = found(0.75)
  assert verdict(report)["headline"].startswith("Members can be distinguished")


def test_a_weak_finding_asks_for_canaries_only_if_there_were_none(report):
  report["strongest"] = found(0.52)
  assert "Plant canaries" in spoken(report)[1]
  report["canaries"] = canaries(0.4) | {"strongest": found(0.4)}
  assert "Plant canaries" not in spoken(report)[1]


@pytest.mark.parametrize(
  ("ci", "words", "preferred"),
  [
    ([0.02, 0.3], "this model leaks more than DP-SGD", True),
    ([-0.3, -0.02], "this model leaks less than DP-SGD", False),
    ([-0.1, 0.2], "it is inconclusive whether this model leaks more", False),
  ],
)
def test_the_comparison_with_dp_sgd_is_a_sentence_of_its_own(
  report, ci, words, preferred
):
  report["dp_baseline"] = {
    "matched": True,
    "test_accuracy": 0.9,
    "defense_test_accuracy": 0.91,
    "paired": [
      {"records": "mislabelled", "auc": 0.7, "dp_auc": 0.6, "difference": 0.1, "ci": ci}
    ],
  }
  said = verdict(report)
  (line,) = said["compared"]
  assert line.startswith(f"On mislabelled canaries, {words}")
  assert f"[{ci[0]:+.3f}, {ci[1]:+.3f}] on the same records" in line
  assert ("Prefer the DP-SGD baseline" in " ".join(said["what_to_do"])) == preferred


def test_without_a_baseline_nothing_is_compared(report):
  assert verdict(report)["compared"] == []


def test_every_sentence_ends_and_no_number_is_missing(report):
  for low in (0.8, 0.6, 0.52, 0.4):
    report["strongest"] = found(low, 0.05)
    said = verdict(report)
    assert said["level"] in LEVELS
    for line in (*said["who"], *said["how_sure"], *said["what_to_do"]):
      assert line.endswith(".")
      assert not re.search(r"\b(nan|None|inf)\b", line)


def test_adaptive_attacks_on_a_generator_count_even_if_the_others_find_nothing(report):
  def row(auc, query, references):
    rates = {"0.01": {"value": 0.01, "trials": 900, "resolvable": False}}
    ends = {"auc": auc, "auc_trials": 2000, "pairs": 300, "tpr": rates}
    return ends | {"query": query, "references": references}

  calm = copy.deepcopy(report)
  calm["canaries"] = None
  calm["strongest"] = found(0.48)
  rows = [row(0.5, "single", "natural"), row(0.8, "mixed", "natural")]
  calm["generator"] = {"adaptive": rows}
  said = verdict(calm)
  assert said["level"] == "high"
  assert said["headline"].startswith("Members can be distinguished from non-members")
  assert any("mixed queries and undefended" in line for line in said["how_sure"])
  calm["generator"]["adaptive"] = rows[:1]
  assert verdict(calm)["level"] == "none_found"
