"""Records that are names, token ids [N,T], from arrays to a report."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import mixdef
from mixdef import attacks
from mixdef.attacks import Unavailable, leave_one_out
from mixdef.auditing import plant
from mixdef.core.hooks import Defense
from mixdef.core.randomness import hash_rows
from mixdef.metrics import auc

VOCABULARY, LENGTH = 40, 6


class Bag(nn.Module):
  """Mean of word vectors; an Embed refuses anything but integers."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(nn.Embed(VOCABULARY, 16)(x).mean(1))


def sentences(count=60):
  random = np.random.default_rng(0)
  x = random.integers(VOCABULARY, size=(count, LENGTH))
  return mixdef.Dataset.from_arrays(x, random.integers(2, size=count), name="words")


TRAINING = {"epochs": 40, "batch_size": 30, "strategy": "vmap"}


@pytest.fixture(scope="module")
def trained():
  data = sentences()
  members = mixdef.subsets(data, 6)
  learner = mixdef.classifier(
    Bag(), optax.adam(0.1), mixdef.parse("weight_decay(1e-5)")
  )
  return mixdef.fit_many(learner, data, members, **TRAINING)


@pytest.mark.slow
def test_an_embedding_is_trained_on_tokens_and_attacked(trained):
  assert trained.data.x.dtype == np.int32
  signals = trained.signals()
  scores = leave_one_out(attacks.lira_online_fixed, signals)
  assert auc(scores, trained.members) > 0.7


def test_the_whole_catalogue_says_what_tokens_do_not_allow(trained):
  result = mixdef.audit(
    trained,
    attacks=[
      *("loss_threshold", "rmia(score='ratio')", "label_only_noise"),
      *("label_only_boundary", "label_only_rotation", "gradient_norm"),
      *("distance_to_confident", "gradient_norm(wrt='weights')"),
    ],
    budget=mixdef.auditing.Budget(targets=1, records=20),
  )
  names = {"loss_threshold", "rmia(score='ratio')", "gradient_norm(wrt='weights')"}
  assert set(result.report["attacks"]) == names
  for reason in result.report["not_run"].values():
    assert "categories such as token ids" in reason


@pytest.mark.parametrize(
  "defense",
  [
    *("mixup", "cutmix", "gaussian_noise", "cutout(2)", "random_crop(1)"),
    *("random_flip", "adamixup", "label_smoothing(0.1)|mixup"),
  ],
)
def test_parts_that_mix_disturb_or_crop_refuse_tokens(defense):
  learner = mixdef.classifier(Bag(), optax.sgd(0.1), mixdef.parse(defense))
  with pytest.raises(
    ValueError, match="categories such as token ids; remove it, or pass"
  ):
    mixdef.fit(learner, sentences(), epochs=1, batch_size=30)


def test_a_part_of_the_users_own_that_makes_floats_of_tokens_is_refused():
  part = Defense(
    "scale", batch=lambda batch, state, ctx: batch._replace(x=batch.x * 0.5)
  )
  learner = mixdef.classifier(Bag(), optax.sgd(0.1), part)
  with pytest.raises(ValueError, match="scale makes float32 of int32 records"):
    mixdef.fit(learner, sentences(), epochs=1, batch_size=30)


def test_views_canaries_and_standardizing_refuse_tokens():
  data = sentences()
  with pytest.raises(Unavailable, match="a mixed view computes with records"):
    attacks.mixed(data.x)(data.x)
  with pytest.raises(ValueError, match="a blank canary computes with records"):
    plant(data, "blank", 3)
  assert plant(data, "ood", 3).x.dtype == np.int32
  with pytest.raises(ValueError, match="standardize computes with records"):
    data.standardize()


def test_large_tokens_are_told_apart_by_their_hashes():
  tokens = np.array([[2**24], [2**24 + 1], [2**31 - 1]], np.int32)
  assert len(np.unique(jax.jit(hash_rows)(tokens))) == 3
