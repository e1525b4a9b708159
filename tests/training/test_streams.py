"""Seeds give the models they always gave: every part keeps its stream of randomness.

The numbers are projections of the parameters of two trained models, and of what they
answer. They hold to rounding; a part that draws once more, or from another stream, is
far off. A change of them is a change of every published seed, for CHANGELOG.
"""

import jax
import numpy as np
import optax
import pytest

import mixdef
from mixdef.data import Dataset

pytestmark = pytest.mark.slow

RECORDS, SHAPE, CLASSES = 48, (4, 3), 3
SIZES = {"epochs": 2, "batch_size": 6, "strategy": "vmap", "noise_seed": 0}
NETWORKS = mixdef.models.table_networks(
  12, CLASSES, hidden=8, latent=3, conditional=True
)
CHAINS = {
  "none": [1.911883, -5.652607, 15.08887, 11.94781],
  "adamixup|weight_decay(1e-3)": [1.949229, -5.592012, 15.12289, 12.89167],
  "random_crop(1)|random_flip|cutmix": [1.425539, -5.405025, 14.72717, 12.00951],
  "disturb_label(0.3)|dropout(0.3)": [1.940505, -5.764031, 15.04792, 10.29583],
  "gaussian_noise(0.1)|relaxloss(1.0)": [1.852753, -5.70985, 14.98377, 12.01442],
  "dp_sgd(1.0)": [-3.579895, 3.941584, 9.89603, 1.649594],
  "dp_sgd(1.0, estimator='microbatch')|confidence_masking(2)": [
    -3.579895,
    3.941584,
    22.06004,
    60.84548,
  ],
  "weighted_smoothing(1.0, start=0)": [1.96528, -5.648634, 15.75427, 13.0306],
  "selena|ema(0.9)": [2.265212, -5.215398, 15.01048, 12.82372],
  "memguard(steps=20, epochs=20)": [1.911883, -5.652607, 17.10014, 11.18564],
  "past(0.1, start=0)|early_stopping(1)": [4.197014, -2.972486, 12.88529, 14.45742],
  "mixup|mmd": [1.827843, -5.661198, 14.66902, 12.75759],
  "adversarial_regularization(attack_rate=0.1, start=0)": [
    1.88043,
    -5.652607,
    14.11699,
    11.94781,
  ],
}
GANS = {
  "wgan_gp": [-2.827335, 3.824637, 1.782104, -0.2405393],
  "mixup_gan": [-2.786984, 3.953898, 1.626301, -0.1953833],
  "par_gan": [5.901686, -1.746304, 16.64343, -4.040597],
}


def records(shape):
  rng = np.random.default_rng(0)
  x = rng.random((RECORDS, *shape), np.float32)
  y = rng.integers(CLASSES, size=RECORDS)
  return Dataset.from_arrays(x, y, num_classes=CLASSES).with_auxiliary(8, seed=0)


def fingerprint(learner, *shape):
  """Project the parameters of two models, and then their answers, on a direction."""
  data = records(shape)
  members = mixdef.subsets(data, 2, seed=0)
  ensemble = mixdef.fit_many(learner, data, members, **SIZES)
  leaves = jax.tree.leaves(ensemble.states.params)
  rows = [np.asarray(leaf).reshape(2, -1) for leaf in leaves]
  answers = ensemble.log_probs(data.x).reshape(2, -1)
  found = []
  for values in (np.concatenate(rows, 1), np.maximum(answers, -20)):
    found += list(values @ np.random.default_rng(1).normal(size=values.shape[1]))
  return found


@pytest.mark.parametrize("text", CHAINS)
def test_classifiers_keep_their_streams(text):
  net = mixdef.models.mlp(8, num_classes=CLASSES)
  learner = mixdef.classifier(net, optax.sgd(0.1, momentum=0.9), mixdef.parse(text))
  np.testing.assert_allclose(fingerprint(learner, *SHAPE), CHAINS[text], rtol=2e-4)


@pytest.mark.parametrize("name", GANS)
def test_gans_keep_their_streams(name):
  learner = getattr(mixdef, name)(NETWORKS, optax.sgd(0.03), critic_steps=2)
  np.testing.assert_allclose(fingerprint(learner, 12), GANS[name], rtol=2e-4)
