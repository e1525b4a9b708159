"""LOGAN (critic-score attacks) and the total-variation distance of score histograms."""

import functools

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import Signals, Unavailable
from mixdef.attacks._querying import records_to_query
from mixdef.attacks.gan._sampling import conditions, samples
from mixdef.attacks.gan.signals import critic_scores
from mixdef.core import validate
from mixdef.core.check import check_count, checked, count, flag, one_of, seed
from mixdef.core.learner import Learner
from mixdef.core.randomness import generator
from mixdef.core.registry import attack
from mixdef.data import Dataset, to_float
from mixdef.learners import wgan_gp
from mixdef.models import image_networks, table_networks
from mixdef.training import Ensemble, fit_many

_OVER = {"max": np.max, "mean": np.mean}


@attack(family="critic", reads="signals", of="generators")
@checked(over=one_of(*_OVER))
def logan(signals: Signals, *, target: int, over: str = "max") -> np.ndarray:
  """Score by the target's own critic (white box).

      score = D(x, y) - mean_i D(x_i, y_i) over all audited records, members or not

  Args:
    signals: result of `Ensemble.signals`.
    target: index of the attacked model.
    over: with several critics, the "max" or the "mean" of their scores.

  Returns:
    Scores [N]; NaN where not audited.

  Raises:
    Unavailable: if the signals have no scores of critics.

  Deviation: the loss of a WGAN determines each critic only up to a constant, so each is
    centred before critics or targets are compared; a single critic of a single target
    ranks records like the plain D(x, y). The official toy code predicts that the n
    records of the highest scores are members and assumes that n is known; here the
    scores are returned.

  Reference: Hayes, Melis, Danezis, De Cristofaro, "LOGAN: Membership Inference Attacks
    Against Generative Models", 2019, arXiv 1705.07663.
  """
  signals.check_model("target", target)
  critic = getattr(signals, "critic", None)
  if critic is None:
    raise Unavailable("these signals have no scores of critics; use ensemble.signals()")
  own = critic[target, :, 0].astype(np.float64)
  own -= own[signals.audited].mean(0)
  return signals.only_audited(_OVER[over](own, axis=-1))


@attack(
  family="critic",
  reads="models",
  of="generators",
  trains=True,
  note="uses a GAN that the attacker trains on samples of the target",
)
@checked(
  num_samples=count(), epochs=count(), batch_size=count(), seed=seed, progress=flag
)
def logan_black_box(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  learner: Learner | None = None,
  num_samples: int = 2000,
  epochs: int = 100,
  batch_size: int = 64,
  seed: int = 0,
  progress: bool = False,
) -> np.ndarray:
  """Score by the critic of a GAN that is trained on samples of the target (black box).

  Only samples with their labels are needed. If the target reproduces its members, the
  attacker's critic learns to score them high.

  Args:
    ensemble: S trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    learner: the attacker's GAN, which may differ from the target's; default `wgan_gp`
      with conditional networks: `image_networks` of width 16 for images,
      `table_networks` of width 256 for tables.
    num_samples: number of samples that the attacker's GAN is trained on.
    epochs: passes over the samples.
    batch_size: samples per step.
    seed: random seed of samples and training.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    Scores float64 [N], minus their mean on the samples because each critic is defined
    up to a constant, and averaged over the critics if the learner has several; NaN
    where not attacked.

  Raises:
    ValueError: for an invalid model or record.
    Unavailable: if the attacker's GAN diverges.

  Reference: Hayes, Melis, Danezis, De Cristofaro, "LOGAN: Membership Inference Attacks
    Against Generative Models", 2019, arXiv 1705.07663.
  """
  rows = records_to_query(ensemble, target, records)
  data, victim = ensemble.data, ensemble[target]
  made = Dataset.from_arrays(
    *samples(victim, num_samples, seed=seed), num_classes=data.num_classes
  )
  own = fit_many(
    learner or _attacker(data.x.shape[1:], data.num_classes),
    made,
    np.ones((1, num_samples), bool),
    epochs=epochs,
    batch_size=batch_size,
    seed=seed,
    strategy="loop",
    progress=progress,
  )
  if own.diverged.any():
    raise Unavailable(
      "the GAN that the attacker trains diverged on samples of the target"
    )
  scores = np.full(len(data), np.nan)
  y = conditions(victim, data.y[rows])
  queried = critic_scores(own, to_float(data.x[rows]), y)[0]
  usual = critic_scores(own, made.x, conditions(victim, made.y))[0]
  scores[rows] = queried.mean(-1, dtype=np.float64) - usual.mean(dtype=np.float64)
  return scores


def tvd(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  bins: int = 50,
  permutations: int = 1000,
  seed: int = 0,
) -> dict[str, float]:
  """Compare the histograms of members' and non-members' scores of one target.

      TVD = 1/2 sum_b |share of members in bin b - share of non-members in bin b|

  The bins have equal width, from the lowest score to the highest. Even uninformative
  scores have a distance above 0, which is larger with fewer records. Compare it with
  the distances of the same scores under random permutations of membership.

  Args:
    scores: [N], for example of critics; NaN is excluded.
    members: bool [N].
    bins: number of bins.
    permutations: number of permutations of membership.
    seed: random seed of the permutations.

  Returns:
    tvd, in [0,1]; null_mean and null_high, the mean and the 95% quantile over
    permutations; p_value, the fraction of permutations with at least this distance,
    where the observed one counts as a permutation.

  Raises:
    ValueError: for a wrong shape, or if members or non-members are missing.

  Deviation: privGAN's bins divide [0,1], the range of a critic with a sigmoid; the
    critic of a WGAN has no range. It reports no null distribution.

  Reference: Mukherjee et al., "privGAN: Protecting GANs from membership inference
    attacks at low cost", 2021, arXiv 2001.00071 (its code).

  >>> found = tvd([0.0, 1.0, 2.0, 3.0], np.array([True, True, False, False]), bins=2)
  >>> found["tvd"], round(found["null_mean"], 1)
  (1.0, 0.3)
  """
  check_count("tvd: bins", bins)
  check_count("tvd: permutations", permutations)
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1:
    raise ValueError(f"scores have shape {scores.shape}; pass those of one target, [N]")
  members = validate.mask(members, scores.shape, "members")
  scored = ~np.isnan(scores)
  scores, members = scores[scored], members[scored]
  inside, outside = int(members.sum()), int((~members).sum())
  if not inside or not outside:
    raise ValueError(
      f"{inside} members and {outside} non-members have a score; at least one of each "
      "is needed"
    )
  edges = np.histogram_bin_edges(scores, bins)
  everyone = np.histogram(scores, edges)[0]

  def distance(of_members):
    gaps = of_members / inside - (everyone - of_members) / outside
    return np.abs(gaps).sum(-1) / 2

  observed = distance(np.histogram(scores[members], edges)[0])
  # Permuting membership draws the members' counts without replacement.
  dealt = generator(seed).multivariate_hypergeometric(
    everyone, inside, size=permutations, method="marginals"
  )
  null = distance(dealt)
  as_large = int((null >= observed - 1e-12).sum())
  return {
    "tvd": float(observed),
    "null_mean": float(null.mean()),
    "null_high": float(np.quantile(null, 0.95)),
    "p_value": (1 + as_large) / (1 + permutations),
  }


@functools.lru_cache(maxsize=8)
def _attacker(shape: tuple[int, ...], num_classes: int) -> Learner:
  """Make one learner for all targets, so that its programs are compiled once."""
  if len(shape) > 1:
    return wgan_gp(image_networks(shape, num_classes, width=16))
  return wgan_gp(table_networks(shape[0], num_classes, conditional=True))
