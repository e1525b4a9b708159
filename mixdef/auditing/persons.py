"""A section of the report: attacks on persons, whose records are combined."""

from typing import Any

import numpy as np

from mixdef.attacks import ATTACKS, Signals, auc_within, by_group, strata
from mixdef.auditing.pages.formatting import fixed, rate_at
from mixdef.auditing.running import Findings, run_attacks
from mixdef.core.registry import section

_FAMILIES = ("threshold", "reference")
_FPR = "0.01"


@section("Persons")
def persons(findings: Findings, signals: Signals) -> dict[str, Any] | None:
  """Combine the records of each person, and attack the persons.

  The attacks are those of the report that read one statistic of each record. Their
  AUC is also given among persons with a similar number of records, because that number
  may differ between members and non-members for other reasons.
  """
  if signals.groups is None or type(signals) is not Signals:  # not those of GANs
    return None
  try:
    together = by_group(signals)
  except ValueError as error:
    return {"text": [f"Persons were not attacked: {error}."]}
  families = {
    name: ATTACKS.family(ATTACKS.plain_name(name)) for name in findings.metrics
  }
  names = [name for name, family in families.items() if family in _FAMILIES]
  found = run_attacks(names, together)
  kinds, rows = strata(together.sizes), []
  for name, metrics in found.metrics.items():
    pairs = zip(found.scores[name], together.members, strict=True)
    alike = [auc_within(*pair, kinds) for pair in pairs if not np.isnan(pair[0]).all()]
    low, high = map(fixed, metrics["auc_ci"])
    rate = rate_at(metrics["tpr"], _FPR)
    rows.append(
      [
        name,
        f"{fixed(metrics['auc'])} [{low}, {high}]",
        fixed(float(np.nanmean(alike))) if np.isfinite(alike).any() else fixed(None),
        f"{rate['value']} {rate['interval']}".strip(),
        fixed(findings.metrics[name]["auc"]),
      ]
    )
  text = (
    f"The {together.phi.shape[1]:,} persons have {together.sizes.min()} to "
    f"{together.sizes.max()} records. Here the records of each are averaged before an "
    "attack is fitted, as an attacker would who looks for a person. Intervals are 95%."
  )
  columns = ["Attack", "AUC", "AUC, similar sizes", "TPR at 1% FPR", "AUC of records"]
  return {"text": [text], "columns": columns, "rows": rows}
