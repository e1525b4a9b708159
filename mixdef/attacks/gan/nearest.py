"""The distance of a record to a generator's samples (GAN-Leaks, full black box)."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._querying import records_to_query
from mixdef.attacks.gan._distances import flat, nearest_distances
from mixdef.attacks.gan._sampling import samples
from mixdef.core.check import checked, count, seed
from mixdef.core.registry import attack
from mixdef.data import to_float
from mixdef.training import Ensemble, Run


@attack(family="generator", reads="models", of="generators")
@checked(num_samples=count(), seed=seed)
def gan_leaks_full_black_box(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  num_samples: int = 20_000,
  seed: int = 0,
) -> np.ndarray:
  """Score a record by the negated distance to the nearest of the target's samples.

      score = -min_j ||x - G(z_j, y_j)||_2,   z_j ~ N(0, I), y_j uniform, j = 1..M

  Only samples are needed, no access to the generator.

  Args:
    ensemble: S trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    num_samples: M >= 1, of all classes together; 20,000 as in the official code.
    seed: random seed of the samples, which all records share.

  Returns:
    Scores float64 [N], at most 0; NaN where not attacked.

  Raises:
    ValueError: for an invalid model or record, or a model that is not a generator.

  Deviation: distances are computed in the generator's range [0,1]; the official code's
    range of [-1,1] doubles all distances without changing their order. It stores the
    five nearest samples and uses only the first. As there, samples of a conditional
    generator are compared regardless of their label.

  Reference: Chen, Yu, Zhang, Fritz, "GAN-Leaks: A Taxonomy of Membership Inference
    Attacks against Generative Models", 2020, arXiv 1909.03935.
  """
  rows = records_to_query(ensemble, target, records)
  scores = np.full(len(ensemble.data), np.nan)
  scores[rows] = -_distances(ensemble[target], rows, num_samples, seed)
  return scores


@checked(num_samples=count(), seed=seed)
def nearest_losses(
  ensemble: Ensemble,
  records: ArrayLike | None = None,
  *,
  num_samples: int = 20_000,
  seed: int = 0,
) -> np.ndarray:
  """Return the distances of records to the nearest sample of every model.

  Args:
    ensemble: S trained GANs.
    records: int [R]; default all audited ones.
    num_samples: number of samples per model.
    seed: random seed of the samples; all models use the same latents and labels.

  Returns:
    float64 [S,R].
  """
  rows = records_to_query(ensemble, 0, records)
  runs = (ensemble[s] for s in range(len(ensemble)))
  return np.stack([_distances(run, rows, num_samples, seed) for run in runs])


def _distances(run: Run, rows, num_samples, seed):
  made, _ = samples(run, num_samples, seed=seed)
  return nearest_distances(flat(to_float(run.data.x[rows])), flat(made))
