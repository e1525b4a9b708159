"""Count a generator's samples in the neighbourhood of a record."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._querying import records_to_query
from mixdef.attacks.gan._distances import nearest_distances, tiles
from mixdef.attacks.gan._principal_components import (
  known_to_anyone,
  principal_components,
)
from mixdef.attacks.gan._sampling import samples
from mixdef.core.check import checked, count, number, one_of, seed
from mixdef.core.randomness import stream
from mixdef.core.registry import attack
from mixdef.training import Ensemble

KERNELS = ("count", "log", "ratio")

_NEAREST = 1e-6  # of the radius; smaller distances of float32 samples are rounding


@attack(family="generator", reads="models", of="generators")
@checked(
  num_samples=count(),
  kernel=one_of(*KERNELS),
  percentile=number(above=0, high=100),
  components=count(),
  seed=seed,
)
def monte_carlo(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  num_samples: int = 20_000,
  kernel: str = "count",
  percentile: float = 50.0,
  components: int = 40,
  seed: int = 0,
) -> np.ndarray:
  """Score a record by the target's samples inside a ball around it.

      score = mean_j k(d_j) [d_j < eps],   d_j = ||P(x) - P(G(z_j, y_j))||_2

  with k = 1 ("count": the fraction of samples inside), -log(d/eps) ("log") or eps/d
  ("ratio"), P the principal components of the held-out records, and eps a percentile of
  min_j d_j over all audited records, members or not. The default is the median, so that
  half of the records have a sample inside. Records without one tie, and exact copies
  count as if at a distance of a millionth of eps.

  Args:
    ensemble: S trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    num_samples: M >= 1, of all classes together.
    kernel: "count", "log" or "ratio".
    percentile: percentile of the nearest distances, in (0, 100].
    components: number of components of P, at least 1; 40 as in privGAN's copy of the
    attack.
    seed: random seed of the samples, which all records share.

  Returns:
    Scores float64 [N], at least 0; NaN where not attacked.

  Raises:
    ValueError: for an option out of range, or a model that is not a generator.

  Deviation: without held-out records P is fitted on all audited records. The official
    scripts can also use percentiles of all distances instead of the nearest ones, and
    distances of colour histograms and of gradient histograms.

  Reference: Hilprecht, Haerterich, Bernau, "Monte Carlo and Reconstruction Membership
    Inference Attacks against Generative Models", PETS 2019.
  """
  rows, data = records_to_query(ensemble, target, records), ensemble.data
  space = principal_components(known_to_anyone(data), components)
  made = space(samples(ensemble[target], num_samples, seed=seed)[0])
  # Use all audited records, so that a score does not depend on which are attacked.
  radius = np.percentile(
    nearest_distances(space(data.x[data.audited]), made), percentile
  )
  totals = np.zeros(len(rows))
  for block, _, squares in tiles(space(data.x[rows]), made):
    inside = squares < radius**2
    if kernel == "count":
      totals[block] += inside.sum(1)
      continue
    share = np.sqrt(np.where(inside, squares, radius**2)) / radius
    share = np.maximum(share, _NEAREST)
    near = -np.log(share) if kernel == "log" else inside / share
    totals[block] += near.sum(1)
  scores = np.full(len(data), np.nan)
  scores[rows] = totals / num_samples
  return scores


def monte_carlo_set(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  size: int = 100,
  draws: int = 1000,
  seed: int = 0,
) -> float:
  """Return how often a set of members outscores a set of non-members.

  In set inference, the attacker knows that one of two sets was trained on and names the
  one with the larger sum of scores.

  Args:
    scores: [N], of any attack; NaN is excluded.
    members: bool [N].
    size: number of records per set, drawn without replacement; 100 as in privGAN.
    draws: number of pairs of sets.
    seed: random seed of the pairs.

  Returns:
    Fraction of the pairs in [0,1] that are classified correctly; ties count half. Pairs
    have records in common, so their number is not a sample size.

  Raises:
    ValueError: for different shapes, or fewer members or non-members than `size`.

  Reference: Hilprecht, Haerterich, Bernau, "Monte Carlo and Reconstruction Membership
    Inference Attacks against Generative Models", PETS 2019.

  >>> monte_carlo_set([3.0, 2.0, 1.0, 0.0], [True, True, False, False], size=2)
  1.0
  """
  scores, members = np.asarray(scores, np.float64), np.asarray(members)
  if scores.shape != members.shape or members.dtype != bool:
    raise ValueError(
      f"scores are {scores.shape}, members {members.dtype} {members.shape}; pass [N] "
      "and bool [N]"
    )
  known = ~np.isnan(scores)
  sides = scores[known & members], scores[known & ~members]
  least = min(map(len, sides))
  if not 1 <= size <= least:
    raise ValueError(f"size={size}; pass 1 to {least}, the size of the smaller class")
  random = stream(seed, "monte_carlo_set")
  # Draw each side independently.
  sums = [
    [random.choice(side, size, replace=False).sum() for _ in range(draws)]
    for side in sides
  ]
  inside, outside = map(np.asarray, sums)
  return float(((inside > outside) + 0.5 * (inside == outside)).mean())
