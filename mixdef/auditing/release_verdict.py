"""The verdict on one released model: who can be named, how sure, and what to do."""

from typing import Any

from mixdef.auditing.release_bound import alarm
from mixdef.auditing.self_audit import contradiction

LEVELS = ("confounded", "high", "moderate", "low", "none_found")
"""From most to least leakage; "confounded" means that no level is given."""

_SURE, _LIKELY = "0.95", "0.5"
_SHORT = 0.05  # a certifiable share above it is remarked on

_HEADLINES = {
  "confounded": (
    "Members and hold-out differ by more than membership: leakage cannot be graded."
  ),
  "high": "At least {n} of the {people} can be named as training members.",
  "moderate": (
    "At least {n} {people} are on a list that is right more often than wrong."
  ),
  "low": (
    "The attacks beat guessing, but no list of names is shown to be right half of the "
    "time."
  ),
  "none_found": "No attack at this price beat guessing. This does not prove safety.",
}


def release_verdict(report: dict[str, Any]) -> dict[str, Any]:
  """Explain what was measured to the person who decides about the release.

  Args:
    report: the report of `audit_release`, without its verdict.

  Returns:
    {"level", "headline", "alarm", "who", "how_sure", "compared", "what_to_do",
    "not_tried"}; `alarm` says so if the scores, or the canaries of the run, contradict
    a stated epsilon, and is "" otherwise; the last five are lists of sentences that
    answer one question each.

  Deviation: the levels follow from the number of members on lists of a stated precision
    at a stated prior. No regulation fixes such numbers; they are a convention [ours].
  """
  counts = _at_prior(report)
  level = level_of(
    counts, confounded=bool((report["confounding"] or {}).get("confounded"))
  )
  shown = counts["shown"][_SURE if level == "high" else _LIKELY]
  people = _plural(report["unit"])
  return {
    "level": level,
    "headline": _HEADLINES[level].format(n=f"{shown:,}", people=people),
    "alarm": " ".join(filter(None, _alarms(report))),
    "who": _who(report, counts, level),
    "how_sure": _how_sure(report, counts),
    "compared": _compared(report),
    "what_to_do": _what_to_do(report, level),
    "not_tried": _not_tried(report),
  }


def _alarms(report):
  """Return what contradicts the stated epsilon: the scores, and the run's canaries."""
  return alarm(report["bound"]), contradiction(report.get("self_audit"))


def level_of(counts: dict[str, Any], *, confounded: bool = False) -> str:
  """Grade the members on lists at one prior.

  high: a list of at least one member is right in 19 of 20 cases. moderate: a list is
  right in half of the cases. low: some rule names a larger share of the members than
  the bound on its FPR. none_found: otherwise.

  Args:
    counts: an entry of the report's `priors`.
    confounded: whether the hold-out differs from the members by itself.

  >>> counts = {"shown": {"0.95": 0, "0.5": 3}, "beats_guessing": True}
  >>> level_of(counts), level_of(counts, confounded=True)
  ('moderate', 'confounded')
  """
  if confounded:
    return "confounded"
  if counts["shown"][_SURE]:
    return "high"
  if counts["shown"][_LIKELY]:
    return "moderate"
  return "low" if counts["beats_guessing"] else "none_found"


def title_of(given: dict[str, Any], setting: dict[str, Any]) -> str:
  """Return what was audited, in a few words.

  Args:
    given: facts from the caller, whose `model` takes precedence.
    setting: all facts.

  >>> title_of({}, {"model": "MLP(widths=(32,))", "defense": "none"})
  'MLP, no defense'
  """
  named = given if "model" in given else setting
  model, defense = named.get("model"), named.get("defense")
  if model is None:
    return "released model"
  words = str(model) if named is given else str(model).partition("(")[0]
  if defense is None:
    return words
  return f"{words}, {'no defense' if defense == 'none' else defense}"


def _at_prior(report):
  return next(row for row in report["priors"] if row["prior"] == report["prior"])


def _who(report, counts, level):
  people, facts = _plural(report["unit"]), report["setting"]
  if level == "confounded":
    found = report["confounding"]
    return [
      f"Without the model, {found['classifier']} distinguishes members from hold-out "
      f"with AUC {found['auc']:.3f}; equal sides give {found['chance'][0]:.3f} to "
      f"{found['chance'][1]:.3f}. An attack may find the same difference."
    ]
  shown, possible = counts["shown"], counts["possible"]
  best, agreed = report["list"], report["agreement"]
  wrong = f"; {best['rate']:.1%} were wrong in simulation" if best["named"] else ""
  return [
    f"A list that is right in 19 of 20 names holds {shown[_SURE]:,} of the "
    f"{facts['members']:,} {people} for certain, and up to {possible[_SURE]:,} cannot "
    f"be excluded; one that is right in half, {shown[_LIKELY]:,}, and up to "
    f"{possible[_LIKELY]:,}.",
    f"With at most {best['q']:.0%} wrong names on average, {best['attack']} names "
    f"about {best['named']:,.0f} ({best['share']:.1%} of the members){wrong}.",
    f"With one rule for all {len(report['attacks'])} attacks, {agreed['by_any']:,} "
    f"{people} are named by at least one, {agreed['by_half']:,} by half of them and "
    f"{agreed['by_all']:,} by all.",
  ]


def _how_sure(report, counts):
  facts, people = report["setting"], _plural(report["unit"])
  lines = [
    f"All {facts['members']:,} members were scored. False names are bounded by "
    f"{facts['holdout']:,} held-out {people}, at 95% confidence for all "
    f"{len(report['attacks'])} attacks together.",
    f"The attacker's candidates are assumed to contain {report['prior']:.0%} members. "
    f"The level counts raw scores of this release, one threshold for all {people}.",
    *_stable(report),
  ]
  share = counts["certifiable"][_SURE]
  if share > _SHORT:
    fewer = (
      "any list of them" if share > 1 else f"fewer than {share:.0%} of the members"
    )
    lines.append(
      f"This hold-out is too short to show {fewer}: a longer one can show more."
    )
  blind = report["confounding"]
  if blind is None:
    lines.append(
      "Whether members and hold-out differ by more than membership was not tested: "
      "the records were not passed."
    )
  elif not blind["confounded"]:
    lines.append(
      "Without the model, members and hold-out could not be distinguished (AUC "
      f"{blind['auc']:.3f}; equal sides give {blind['chance'][0]:.3f} to "
      f"{blind['chance'][1]:.3f})."
    )
  return lines


def _stable(report):
  """Say how much of a list two sets of reference models, or two seeds, share."""
  found = report["stability"]
  compared = [
    (row, f"Two sets of {row['models']} reference models") for row in found["sets"][:1]
  ] + [
    (row, "Two seeds") for row in found["seeds"] if row["attack"] == report["primary"]
  ]
  return [
    f"{sides} share {row['jaccard']:.0%} of the names of {row['attack']}."
    for row, sides in compared
    if row["jaccard"] is not None
  ]


def _compared(report):
  rows = [row for row in report["priors"] if row["prior"] != report["prior"]]
  counted = "; ".join(
    f"{row['shown'][_SURE]:,} ({row['shown'][_LIKELY]:,}) at {row['prior']:.0%}"
    for row in rows
  )
  facts, models = report["setting"], report["price"]["models"]
  lines = [
    f"Members are compared with {facts['holdout']:,} {_plural(report['unit'])} that "
    "the model has not seen"
    + (f", and with {models} reference models of its recipe." if models else "."),
    "With other shares of members among the candidates, lists with 19 of 20 (half) "
    f"right show {counted}.",
  ]
  forecast = report["forecast"]
  if forecast["tnr"] is not None:
    lines.append(
      f"The loss of {forecast['tnr']:.1%} of the hold-out exceeds that of "
      f"{1 - forecast['fnr']:.0%} of the members. The larger this share, the more "
      "reference models usually find."
    )
  return lines + _guarantee(report["bound"])


def _guarantee(bound):
  """Say what a stated epsilon means for the comparison."""
  if bound is None:
    return []
  epsilon = f"epsilon {bound['epsilon']:.3g}"
  if bound["exceeded"]:
    return [f"The stated {epsilon} would bound every attack; the scores contradict it."]
  lines = [
    f"Training was differentially private with {epsilon}, which bounds every attack, "
    "including those that were not tried."
  ]
  if bound["why_not"]:
    return [*lines, f"The attacks were not compared with it: {bound['why_not']}."]
  return [
    *lines,
    "No attack names more members than this epsilon allows, which does not prove it.",
  ]


def _what_to_do(report, level):
  train = (
    "Train with a defense, and audit again; dp_sgd is the only one with a formal "
    "guarantee."
  )
  again, people = report["without_exposed"], _plural(report["unit"])
  exclude = "Consider excluding the most exposed members below and training again."
  lines = {
    "confounded": [
      "Draw the hold-out at random from the records before the next training.",
      "Do not read the numbers below as leakage.",
    ],
    "high": [
      "Do not release this model if membership in its training set is confidential.",
      train,
      *([exclude] if again is None else []),
    ],
    "moderate": [
      "Decide with the data owners whether such a list is acceptable.",
      train,
    ],
    "low": ["Release is defensible if a small average leakage is acceptable."],
    "none_found": ["The audit found no reason against release at this price."],
  }[level]
  if any(_alarms(report)):
    lines.insert(0, "Do not state this epsilon before the error is found.")
  if again is not None:
    lines.append(_onion(again, people))
  if report["price"]["models"] == 0 and level != "confounded":
    lines.append(
      "Audit again with reference models, budget='shadows:64': without them, the "
      "attacks find easy records, not the exposed ones."
    )
  return lines


def _onion(again, people):
  """Say who is exposed once the most exposed have been left out."""
  before, after, rest = again["before"], again["after"], again["remaining"]
  accuracy = ""
  if after["test_accuracy"] is not None:
    accuracy = (
      f" Test accuracy went from {before['test_accuracy']:.1%} to "
      f"{after['test_accuracy']:.1%}."
    )
  return (
    f"Trained without the {again['dropped']:,} most exposed {people}, the model "
    f"gives away {rest['after']:,} of the others, instead of {rest['before']:,} of "
    f"them; {rest['newly']:,} are new, in part by the randomness of training."
    f"{accuracy}"
  )


def _not_tried(report):
  lines = []
  if report["price"]["models"] == 0:
    lines.append("No reference models were trained.")
  if report["not_run"]:
    lines.append(
      f"{len(report['not_run'])} attacks, for lack of reference models or other input."
    )
  lines.append(
    "White-box attacks, several releases of one data set, and attackers with partial "
    "knowledge of a record."
  )
  return lines


def _plural(unit):
  return {"record": "records", "person": "persons"}[unit]
