"""All metrics that compare samples by features, from one pass of the extractor."""

from typing import Any

from numpy.typing import ArrayLike

from mixdef.utility.coverage import density_coverage
from mixdef.utility.extractors import OFFICIAL, Extractor, features
from mixdef.utility.frechet import frechet_distance, metric_name
from mixdef.utility.kernel_distance import kid


def sample_quality(
  extractor: Extractor, real: ArrayLike, fake: ArrayLike, *, k: int = 5, seed: int = 0
) -> dict[str, Any]:
  """Compare generated with real records in the features of one extractor.

  Use real records that the generator was not trained on, because a generator that
  copies its training records scores perfectly against these.

  Args:
    extractor: the feature extractor; see `classifier_features` and
      `inception_features`.
    real: images [N,H,W,C] in [0,1] or table rows [N,D], float, N > k.
    fake: the same for fakes, [M,...].
    k: number of neighbours for density and coverage.
    seed: random seed of the subsets of the kernel distance.

  Returns:
    fd_<name>: Frechet distance, >= 0, biased upward at small N, M; called `fid` only
      with the true Inception weights;
    kid_<name>, kid_<name>_std: kernel distance, unbiased, may be negative, and its
      standard deviation over subsets; called `kid` only with the true Inception
      weights;
    density_<name>, coverage_<name>: >= 0, and in [0,1]; see `density_coverage`;
    num_real, num_fake, weights: N, M and the SHA-256 of the extractor's weights.

  Raises:
    ValueError: for records that the extractor does not take, or too few of them.
  """
  sets = features(extractor, real), features(extractor, fake)
  name = extractor.name
  kernel = kid(*sets, seed=seed)
  shape = density_coverage(*sets, k=k)
  kid_name = "kid" if name == OFFICIAL else f"kid_{name}"
  return {
    metric_name(extractor): frechet_distance(*sets),
    kid_name: kernel["kid"],
    f"{kid_name}_std": kernel["kid_std"],
    f"density_{name}": shape["density"],
    f"coverage_{name}": shape["coverage"],
    "num_real": len(sets[0]),
    "num_fake": len(sets[1]),
    "weights": extractor.weights,
  }
