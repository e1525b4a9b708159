"""What a report says of persons, whose records were combined before the attacks."""

import dataclasses
from typing import Any

import numpy as np

from mixdef.attacks import Catalogue, Signals, auc_within, strata
from mixdef.auditing.pages.formatting import fixed, rate_at
from mixdef.auditing.running import Findings
from mixdef.core.registry import section
from mixdef.metrics.summary import strongest_first

_FPR = "0.01"


@section("Persons")
def persons(findings: Findings, signals: Signals) -> dict[str, Any] | None:
  """Describe the persons, and compare only those with similar numbers of records.

  The number of records may differ between members and non-members for other reasons
  than training, and a mean over many records varies less. Among persons of similar
  size, neither helps an attack.
  """
  if signals.sizes is None:
    return None
  kinds, rows = strata(signals.sizes), []
  for name in strongest_first(findings.metrics):
    metrics = findings.metrics[name]
    pairs = zip(findings.scores[name], signals.members, strict=True)
    alike = [auc_within(*pair, kinds) for pair in pairs if not np.isnan(pair[0]).all()]
    low, high = map(fixed, metrics["auc_ci"])
    rate = rate_at(metrics["tpr"], _FPR)
    rows.append(
      [
        name,
        f"{fixed(metrics['auc'])} [{low}, {high}]",
        fixed(float(np.nanmean(alike))) if np.isfinite(alike).any() else fixed(None),
        f"{rate['value']} {rate['interval']}".strip(),
      ]
    )
  text = (
    f"{counted(signals)}. The records of each are averaged before an attack is fitted, "
    "as an attacker would who looks for a person. The second AUC compares only persons "
    "with similar numbers of records."
  )
  columns = ["Attack", "AUC", "AUC, similar sizes", "TPR at 1% FPR"]
  return {"text": [text], "columns": columns, "rows": rows}


def counted(signals: Signals) -> str:
  """Return how many persons are audited, and how many records they have.

  >>> signals = Signals(phi=np.zeros((1, 2, 1)), members=[[True, False]], sizes=[2, 5])
  >>> counted(signals)
  '2 persons with 2 to 5 records each'
  """
  sizes = signals.sizes[signals.audited]
  few, many = int(sizes.min()), int(sizes.max())
  if few == many:
    spread = "one record each" if many == 1 else f"{many:,} records each"
  else:
    spread = f"{few:,} to {many:,} records each"
  return f"{len(sizes):,} person{'s' if len(sizes) > 1 else ''} with {spread}"


def person_limits(
  findings: Findings, signals: Signals, given: Signals, catalogue: Catalogue
) -> list[str]:
  """Return what an audit of persons does not cover.

  Args:
    findings: results of the attacks.
    signals: signals of persons, or of records, about which there is nothing to say.
    given: the signals of the records.
    catalogue: the catalogue of the attacks.
  """
  if signals.unit == "record":
    return []
  lines = [
    "The records of a person are averaged: a person of whom a single record leaks is "
    "found less often than by an attack on that record."
  ]
  averaged = [
    name
    for name in findings.metrics
    if catalogue.reads(catalogue.plain_name(name)) == "models"
  ]
  if averaged:
    lines.append(
      "These attacks score single records, and a person by the mean of these scores: "
      f"{', '.join(averaged)}."
    )
  if given.population is not None and signals.population is None:
    lines.append("The population was not used, because its records have no groups.")
  return lines


def records_of(signals: Signals, given: Signals) -> Signals:
  """Return the signals of the records, audited if their person is.

  Args:
    signals: signals of persons or records, of which some may not be audited.
    given: the signals from which they were made.
  """
  if given.groups is None:
    return signals
  place = np.unique(given.groups, return_inverse=True)[1]
  return dataclasses.replace(given, audited=signals.audited[place])
