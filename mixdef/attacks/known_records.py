"""An attack whose attacker already knows the membership of a few records."""

import numpy as np

from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, count, seed
from mixdef.core.randomness import generator
from mixdef.core.registry import attack
from mixdef.metrics.roc import Roc


@attack(
  family="threshold",
  reads="signals",
  note="knows the membership of 200 records of the target, which are not scored",
)
@checked(known=count(), seed=seed)
def threshold_known(
  signals: Signals, *, target: int, known: int = 100, seed: int = 0
) -> np.ndarray:
  """Score the loss against the threshold that is best on known records of the target.

      score = -l(x) - t,   t = argmax_t [TPR(t) - FPR(t)] on `known` members and as many
      non-members of the target

  Member iff score >= 0. The known records are not attacked: their score is NaN. Unlike
  any other attack, this one reads the target's own membership, of the known records
  only.

  Args:
    signals: any signals.
    target: index of the attacked model.
    known: number of members, and of non-members, that the attacker knows.
    seed: random seed for choosing the known records among the audited ones.

  Returns:
    Scores [N] in nats; NaN where known or not audited.

  Raises:
    Unavailable: if the target does not leave one member and one non-member to attack.
    ValueError: if known < 1.

  Deviation: the official code searches mean +/- 5 standard deviations in 1001 steps;
    ours is exact, the lowest of equally good observed values. The draw depends on the
    rank of phi, not on the order of records with different phi.

  Reference: the "powerful" attack of Kaya, Dumitras, "When Does Data Augmentation Help
    With Membership Inference Attacks?", 2021, which judges 100 + 100 known records.

  >>> member = np.arange(6) < 3
  >>> signals = Signals.from_phi([np.where(member, 5., -5.)], [member])
  >>> scores = threshold_known(signals, target=0, known=1)
  >>> np.isnan(scores[:3]).sum(), np.isnan(scores[3:]).sum(), np.nanmax(scores) >= 0
  (np.int64(1), np.int64(1), np.True_)
  """
  signals.check_model("target", target)
  member, audited = signals.members[target], signals.audited
  fewest = min((audited & member).sum(), (audited & ~member).sum())
  if fewest <= known:
    raise Unavailable(
      f"target={target} has only {fewest} audited members or non-members; pass a "
      "smaller known"
    )
  order = np.flatnonzero(audited)
  order = order[np.argsort(signals.phi[target, order, 0], kind="stable")]
  drawn = generator(seed).permutation(order)
  judged = np.concatenate([drawn[member[drawn] == kind][:known] for kind in (0, 1)])
  values = -signals.loss[target, :, 0]
  scores = signals.only_audited(
    values - Roc.of(values[judged], member[judged]).best_threshold
  )
  scores[judged] = np.nan
  return scores
