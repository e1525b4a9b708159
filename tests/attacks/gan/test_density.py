import dataclasses

import numpy as np
import pytest
from generator_cases import ignorant, leak, memorised
from scipy import stats

from mixdef.attacks._targets import Unavailable
from mixdef.attacks.gan._sampling import samples
from mixdef.attacks.gan.density import domias, log_density

FEW = {"num_samples": 300}


def whitened(reference, *others):
  """Scale by the inverse root of the covariance; any root gives the same distances."""
  mean, root = reference.mean(0), np.linalg.cholesky(np.cov(reference.T))
  return [np.linalg.solve(root, (np.float64(x) - mean).T) for x in (reference, *others)]


def test_log_density_is_that_of_a_kernel_estimate():
  rng = np.random.default_rng(0)
  points, x = rng.normal(size=(2000, 3)), rng.normal(size=(50, 3))
  # Against scipy's, whose kernels take the covariance of the points.
  root = np.linalg.cholesky(np.cov(points.T))
  white = [np.linalg.solve(root, each.T).T for each in (x, points)]
  volume = np.log(np.diag(root)).sum()
  for factor in (None, 0.3):
    naive = stats.gaussian_kde(points.T, bw_method=factor).logpdf(x.T)
    found = log_density(*white, bandwidth=factor) - volume
    np.testing.assert_allclose(found, naive, rtol=1e-6)


def test_log_density_is_finite_where_the_density_is_zero():
  far = log_density(np.array([[1e4]]), np.array([[0.0], [1.0]]), 1.0)
  assert far[0] == pytest.approx(-0.5 * (1e4 - 1) ** 2 - np.log(2 * np.sqrt(2 * np.pi)))


def test_the_score_is_the_log_ratio_of_two_densities():
  ensemble = memorised()
  made, _ = samples(ensemble[1], 300)
  other, x, fake = whitened(ensemble.data.test.x, ensemble.data.x, made)
  dense = [
    stats.multivariate_normal(cov=h**2 * np.eye(6))
    .pdf(x.T[:, None] - points.T[None])
    .mean(1)
    for points, h in ((fake, 300**-0.1), (other, 40**-0.1))
  ]
  scores = domias(ensemble, target=1, **FEW)
  np.testing.assert_allclose(scores, np.log(dense[0] / dense[1]), rtol=1e-5, atol=1e-6)
  usual = stats.multivariate_normal(cov=np.eye(6)).pdf(x.T)
  scores = domias(ensemble, target=1, prior="gaussian", **FEW)
  np.testing.assert_allclose(scores, np.log(dense[0] / usual), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", ["kde", "gaussian"])
def test_members_of_a_memorising_generator_are_found_and_others_not(prior):
  leaky, tight = memorised(), ignorant()
  options = {"prior": prior, "bandwidth": 0.3}
  assert leak(domias(leaky, target=1, **options, **FEW), leaky.members[1]) > 0.8
  scores = domias(tight, target=1, **options, **FEW)
  # 100 against 100: 3 sigma of the AUC are .12.
  assert leak(scores, tight.members[1]) == pytest.approx(0.5, abs=0.12)


def test_a_generator_of_one_record_has_a_density():
  """Its samples' covariance is zero; the kernels have that of the auxiliary records."""
  ensemble = memorised()
  state = ensemble.states
  one = state.params["stored"][:, :1].repeat(state.params["stored"].shape[1], 1)
  state = state._replace(params={**state.params, "stored": one})
  scores = domias(dataclasses.replace(ensemble, held=state), target=0, **FEW)
  assert np.isfinite(scores).all()
  copied = np.abs(ensemble.data.x - np.asarray(one)[0, 0]).max(1).argmin()
  assert scores[copied] > np.median(scores)


def test_scores_follow_their_records_and_do_not_depend_on_others():
  ensemble = memorised()
  scores = domias(ensemble, target=0, **FEW)
  order = np.random.default_rng(3).permutation(len(ensemble.data))
  moved = dataclasses.replace(
    ensemble, data=ensemble.data.select(order), members=ensemble.members[:, order]
  )
  np.testing.assert_allclose(domias(moved, target=0, **FEW), scores[order], rtol=1e-8)
  records = np.array([20, 3])
  some = domias(ensemble, target=0, records=records, **FEW)
  np.testing.assert_allclose(some[records], scores[records], rtol=1e-8)
  assert np.isnan(np.delete(some, records)).all()


def test_other_records_may_be_given():
  ensemble = memorised()
  alone = dataclasses.replace(ensemble.data, test=None)
  without = dataclasses.replace(ensemble, data=alone)
  with pytest.raises(Unavailable, match="pass reference=, or hold out"):
    domias(without, target=0, **FEW)
  given = domias(without, target=0, auxiliary=ensemble.data.test.x, **FEW)
  np.testing.assert_array_equal(given, domias(ensemble, target=0, **FEW))
  with pytest.raises(ValueError, match="preprocess both in the same way"):
    domias(ensemble, target=0, auxiliary=np.zeros((5, 6), np.uint8))
  with pytest.raises(ValueError, match="prior is 'bnaf'; choose from 'kde'"):
    domias(ensemble, target=0, prior="bnaf")
  with pytest.raises(ValueError, match="bandwidth is 0; pass a number above 0"):
    domias(ensemble, target=0, bandwidth=0)
