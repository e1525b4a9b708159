"""What an audit does not cover, as stated in its report."""

from mixdef.attacks import Signals
from mixdef.auditing.records import record_limits
from mixdef.auditing.running import Findings
from mixdef.data import Dataset, duplicate_records
from mixdef.training import Ensemble

_HINDSIGHT = {
  True: (
    "TPR is read off the ROC curve, at the best threshold in hindsight; report.json "
    "also has the rates achieved with thresholds calibrated on shadow models."
  ),
  False: (
    "TPR is read off the ROC curve, at the best threshold in hindsight. The rates "
    "achieved with thresholds calibrated on other models, and the balanced accuracy "
    "at those, are omitted because only one model was attacked."
  ),
}


def audit_limits(
  findings: Findings,
  signals: Signals,
  ensemble: Ensemble | None,
  population: Dataset | None,
) -> list[str]:
  """Return what the audit does not cover, for the end of a report.

  Args:
    findings: results of the attacks.
    signals: the signals that the attacks read.
    ensemble: the models, or None if only outputs were audited.
    population: the records that no model trained on, if they are at hand.
  """
  lines = [
    f"Intervals resample the {signals.unit}s with the trained models fixed; they do "
    "not cover the randomness of training.",
    _HINDSIGHT[len(signals.members) > 1 and signals.target is None],
  ]
  if signals.target is None:
    lines.append(
      "Attacks differ in their access to the model; white-box and trained attacks "
      "were run on the first models only where the table says so."
    )
  notes = {name: f["note"] for name, f in findings.metrics.items() if f["note"]}
  lines += [f"{name}: {note}." for name, note in notes.items()]
  if ensemble is None:
    return lines
  if "start_from(" in ensemble.learner.text:
    lines.append(
      "The models start from given parameters. The audit does not cover the records "
      "that these were trained on: one that is also audited counts as a non-member of "
      "a model that was not trained on it again."
    )
  lines += record_limits(ensemble.data)
  parts = [ensemble.data] if population is None else [ensemble.data, population]
  pairs = duplicate_records(*parts)
  copies = sum(pair.copy[0] == 0 for pair in pairs)
  if copies:
    lines.append(
      f"{copies} of the {len(ensemble.data)} records are equal to an earlier one: a "
      "model can be trained on the content of such a record without the record itself."
    )
  shared = sum(pair.first[0] != pair.copy[0] for pair in pairs)
  if shared and population is not None:
    lines.append(
      f"{shared} of the {len(population)} population records are equal to a training "
      f"record."
    )
  return lines
