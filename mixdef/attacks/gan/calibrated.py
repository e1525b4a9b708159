"""A record's loss under the target, compared with models not trained on it."""

import inspect
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._designs import detect_design, drawn, references, related
from mixdef.attacks._querying import records_to_query
from mixdef.attacks.gan.nearest import nearest_losses
from mixdef.attacks.gan.reconstruction import reconstruction_losses
from mixdef.core.check import checked, one_of
from mixdef.core.registry import attack
from mixdef.training import Ensemble

_LOSSES: dict[str, Any] = {
  "nearest": nearest_losses,
  "reconstruction": reconstruction_losses,
}


def _of_the_loss(*, loss="nearest", **arguments):
  known = {"target", "records", "seed", *inspect.signature(_LOSSES[loss]).parameters}
  for name in arguments:
    if name not in known:
      raise ValueError(
        f"gan_leaks_calibrated: loss={loss!r} has no argument {name}; it accepts "
        f"{', '.join(_LOSSES[loss].checks)}"
      )


@attack(
  family="generator",
  reads="models",
  of="generators",
  note="calibrated by the mean of all models without the record",
)
@checked(
  together=_of_the_loss,
  loss=one_of(*_LOSSES),
  **_LOSSES["nearest"].checks | _LOSSES["reconstruction"].checks,
)
def gan_leaks_calibrated(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  loss: str = "nearest",
  seed: int = 0,
  **options,
) -> np.ndarray:
  """Score by the target's loss relative to models that did not train on the record.

      score = mean_k l(x | theta_k) - l(x | theta),   k without x

  Args:
    ensemble: S >= 2 trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    loss: "nearest", the distance to the nearest sample (a full black box), or
      "reconstruction" (a white box).
    seed: random seed of the samples or starts, the same for all models.
    **options: options of `nearest_losses` or `reconstruction_losses`.

  Returns:
    Scores float64 [N]; NaN where every reference trained on the record, or not
    attacked.

  Raises:
    ValueError: for an unknown loss, or arguments that the loss rejects.

  Deviation: the official code uses one reference model trained on disjoint data; here
    the mean over all admissible models (see `mixdef.attacks._designs.references`) that
    were not trained on the record is used. References are trained like the target: they
    are defended if the target is.

  Reference: Chen, Yu, Zhang, Fritz, "GAN-Leaks: A Taxonomy of Membership Inference
    Attacks against Generative Models", 2020, arXiv 1909.03935.
  """
  rows = records_to_query(ensemble, target, records)
  losses = _LOSSES[loss](ensemble, rows, seed=seed, **options)
  members, audited = ensemble.members, ensemble.data.audited
  draws = drawn(members, audited, ensemble.data.groups)
  how = {"design": detect_design(draws), "alike": related(draws)}
  usable = references(members, target, audited=audited, **how)
  out = (usable & ~members)[:, rows]
  count = out.sum(0)
  mean = np.where(out, losses, 0).sum(0) / np.maximum(count, 1)
  scores = np.full(len(audited), np.nan)
  scores[rows] = np.where(count > 0, mean - losses[target], np.nan)
  return scores
