"""Rows of the report's tables: every metric of report.json as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixdef.auditing.facts import epsilon_remark
from mixdef.auditing.pages import formatting
from mixdef.metrics.summary import strongest_first

FAMILIES = {
  "reference": "Compare with reference models",
  "trained": "Train an attack model",
  "threshold": "Threshold the model's own confidence",
  "label_only": "Observe only the predicted label",
  "white_box": "Access the weights",
  "critic": "Query the critic, or train one on samples",
  "generator": "Examine the generated samples",
}
"""Headings of the attack table by family."""

_SETTING = {
  "dataset": "Data set",
  "num_records": "Records",
  "num_groups": "Groups (persons)",
  "encoding": "Encoding of the columns",
  "queries": "Queries per record",
  "num_models": "Models trained",
  "gap_attack": "Accuracy of the gap attack",
  "test_accuracy_std": "Standard deviation of the test accuracy",
  "num_members": "Size of a training set, for ε",
  "noise_seed": "Seed of the noise",
  "unit": "Unit of ε",
  "excludes": "Not covered by ε",
  "training_seconds": "Training time",
  "attack_seconds": "Attack time",
}
_COUNTED = {
  "record": {"num_audited": "Audited records", "num_population": "Population records"},
  "person": {"num_audited": "Audited persons", "num_population": "Population persons"},
}
_STRONGEST = 5  # attacks that are shown unfolded
_RATES = {"train_accuracy", "test_accuracy", "test_accuracy_std", "gap_attack"}


def attack_table(attacks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Rank attacks: the strongest in one table, the others in a folded one by family.

  Args:
    attacks: metrics by name, as in report.json.

  Returns:
    `strongest`, the rows of the five attacks with the largest AUC, where a metric with
    an interval is a pair of texts; `groups`, the others, each group with a `title` and
    `rows`, and `others`, their number; `every`, all rows; `ppv_fpr`, the false-positive
    rate of every PPV, or None if they differ.
  """
  ranked = strongest_first(attacks)
  rows = {name: _attack(name, attacks[name]) for name in ranked}
  others = ranked[_STRONGEST:]
  families = dict.fromkeys([*FAMILIES, *(row["family"] for row in attacks.values())])
  groups = []
  for family in families:
    names = [name for name in others if attacks[name]["family"] == family]
    if names:
      title = FAMILIES.get(family, formatting.plain(family))
      groups.append({"title": title, "rows": [rows[name] for name in names]})
  rates = {row["ppv_fpr"] for row in attacks.values() if row.get("ppv_fpr")}
  return {
    "strongest": [rows[name] for name in ranked[:_STRONGEST]],
    "groups": groups,
    "others": len(others),
    "every": list(rows.values()),
    "ppv_fpr": formatting.percent(rates.pop()) if len(rates) == 1 else None,
  }


def _attack(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
  ppv = row.get("ppv") or {}
  calibrated = (row.get("calibrated") or {}).get("0.01")
  return {
    "name": name,
    "auc": formatting.measured(row["auc"], row["auc_ci"]),
    "balanced": formatting.measured(
      row["balanced_accuracy"], row["balanced_accuracy_ci"], formatting.percent
    ),
    "tpr": [formatting.rate_at(row["tpr"], fpr) for fpr in ("0.001", "0.01")],
    "ppv": [formatting.percent(ppv.get(prior)) for prior in ("0.01", "0.1", "0.5")],
    "ppv_fpr": formatting.percent(row["ppv_fpr"]) if row.get("ppv_fpr") else None,
    "targets": formatting.plain(row.get("num_targets")),
    "degenerate": bool(row.get("degenerate")),
    "about": row.get("about") or "",
    "note": row.get("note") or "",
    "reached": calibrated
    and {
      key: formatting.percent(calibrated[key]) for key in ("tpr", "fpr", "fpr_spread")
    },
    "hindsight": formatting.percent(row.get("balanced_accuracy_max")),
    "positive_rate": formatting.percent(row.get("positive_rate")),
    "pairs": f"{row['num_members']:,} / {row['num_nonmembers']:,}",
    "excluded": f"{row.get('excluded') or 0:,}",
    "seconds": formatting.duration(row.get("seconds")),
  }


def quantile_rows(
  quantiles: Mapping[str, float | None], unit: str = "record"
) -> list[tuple[str, str]]:
  """Describe each quantile of the risk of records, or persons.

  >>> quantile_rows({"0.5": .01, "1": .97})
  [('50% of the records', 'at most 1%'), ('all records', 'at most 97%')]
  """
  rows = []
  for share, rate in sorted(quantiles.items(), key=lambda item: float(item[0])):
    part = float(share)
    which = f"{formatting.percent(part)} of the {unit}s"
    which = f"all {unit}s" if part == 1 else which
    rows.append((which, f"at most {formatting.percent(rate)}"))
  return rows


def exposed_rows(
  exposed: Sequence[Mapping[str, Any]], pictures: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
  """Combine every exposed record with its image.

  Args:
    exposed: rank, index, id, label, rate, score and times of each record.
    pictures: result of `record_pictures`, in the same order; None without records to
      show.
  """
  return [
    {
      "rank": row["rank"],
      "id": formatting.plain(row["index"] if row.get("id") is None else row["id"]),
      "label": formatting.plain(row["label"]),
      "rate": formatting.percent(row["rate"]),
      "score": formatting.fixed(row["score"], 2),
      "times": formatting.plain(row["times"]),
      "picture": pictures[place] if pictures else None,
    }
    for place, row in enumerate(exposed)
  ]


def class_rows(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Return label, number of records and AUC of every class."""
  return [
    {
      "label": formatting.plain(row["label"]),
      "records": f"{row['num_records']:,}",
      "auc": formatting.measured(row["auc"], row["auc_ci"]),
    }
    for row in classes
  ]


def setting_rows(
  setting: Mapping[str, Any], unit: str = "record"
) -> list[tuple[str, str]]:
  """Return the name and the value of every setting, in the order of the report.

  Args:
    setting: facts by name.
    unit: what was audited, "record" or "person".

  >>> setting_rows({"batch_size": 128, "test_accuracy": .9312, "epsilon": None})
  [('Batch size', '128'), ('Test accuracy', '93.1%'), ('Epsilon', '–')]
  """
  rows, names = [], _SETTING | _COUNTED[unit]
  for key, value in setting.items():
    if key in _RATES:
      text = formatting.percent(value)
    elif key.endswith("_seconds"):
      text = formatting.duration(value)
    elif key == "accounting":
      text = _accounting(value)
    else:
      text = formatting.plain(value)
    rows.append((names.get(key, key.replace("_", " ").capitalize()), text))
  return rows


def self_audit_rows(facts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
  """Return names and values of what is shown of a self-audit; none without one."""
  if facts is None:
    return []
  moments = [value for value in facts["moments"].values() if value is not None]
  return [
    ("Stated epsilon", formatting.fixed(facts["claimed"], 2)),
    ("At least", formatting.fixed(facts["epsilon_one_run"], 2)),
    (
      "At least, if Gaussian differential privacy holds",
      formatting.fixed(facts["epsilon_one_run_gdp"], 2),
    ),
    (
      "At least, if canaries are independent and Gaussian",
      formatting.fixed(facts["epsilon_order_statistics"], 2),
    ),
    ("Wrong guesses", f"{facts['errors']:,} of {facts['canaries']:,}"),
    ("p of the exact test", formatting.plain(float(f"{facts['p']:.2g}"))),
    (
      "Largest deviation of a moment",
      f"{formatting.fixed(max(map(abs, moments), default=None), 1)} standard errors",
    ),
  ]


def _accounting(known: Mapping[str, Any]) -> str:
  """Return what an epsilon was computed from, and its two bounds."""
  pld = formatting.MISSING if known["pld"] is None else f"{known['pld']:.4g}"
  bands = int(known.get("bands", 1))
  groups = f" in {bands} groups (bands)" if bands > 1 else ""
  return (
    f"{known['steps']:,.0f} steps, {known['sampling']} sampling{groups} with "
    f"probability {known['sampling_probability']:.3g}, noise multiplier "
    f"{known['noise_multiplier']:.4g}; epsilon by privacy-loss distribution {pld}, by "
    f"Renyi divergence {known['rdp']:.4g}"
  )


def key_metrics(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  """Return the key metrics of a report: name, value, remarks."""
  strongest, setting = report.get("strongest"), report.get("setting") or {}
  metrics = []
  if report.get("unit") == "person":
    note = "graded instead of records; the records of each are combined"
    metrics.append(("Persons", formatting.plain(setting.get("num_audited")), note))
  if strongest:
    name = strongest["attack"]
    auc = formatting.measured(strongest["auc"], strongest["auc_ci"])
    widened = (
      auc["interval"] and f"{auc['interval']}, widened to account for the selection"
    )
    note = ", ".join(filter(None, (f"AUC of {name}, 0.5 is random guessing", widened)))
    metrics.append(("Strongest attack", auc["value"], note))
    metrics.append(_members_found(strongest))
  if setting.get("test_accuracy") is not None:
    spread = setting.get("test_accuracy_std")
    note = f"±{formatting.percent(spread)} between models" if spread is not None else ""
    metrics.append(
      ("Test accuracy", formatting.percent(setting["test_accuracy"]), note)
    )
  for row in (report.get("generator") or {}).get("utility", []):
    if row["name"] == "downstream_accuracy":
      real = formatting.percent(row["real"])
      note = f"of a classifier trained on samples; {real} if trained on real records"
      metrics.append(("Accuracy from samples", formatting.percent(row["value"]), note))
  if setting.get("epsilon") is not None:
    note = f"δ = {formatting.plain(setting.get('delta'))}{epsilon_remark(setting)}"
    value = f"ε = {formatting.fixed(setting['epsilon'], 2)}"
    metrics.append(("Privacy guarantee", value, note))
  if setting.get("num_models") is not None:
    persons = report.get("unit") == "person"  # which have their own entry
    audited = f"{formatting.plain(setting.get('num_audited'))} records audited"
    note = "" if persons else audited
    metrics.append(("Models", formatting.plain(setting["num_models"]), note))
  return metrics


def _members_found(strongest: Mapping[str, Any]) -> tuple[str, str, str]:
  if strongest.get("tpr") is None:
    return (
      "TPR at a low FPR",
      formatting.NOT_RESOLVABLE,
      "too few non-members",
    )
  found = formatting.measured(strongest["tpr"], strongest["tpr_ci"], formatting.percent)
  note = ", ".join(filter(None, (f"by {strongest['tpr_attack']}", found["interval"])))
  title = f"TPR at {formatting.percent(strongest['fpr'])} FPR"
  return title, found["value"], note
