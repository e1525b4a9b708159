import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.attacks import Unavailable, leave_one_out
from mixdef.attacks.augmentation_aware import AGGREGATES, augmentation_aware
from mixdef.core import chain
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import adamixup, confidence_masking, label_smoothing, mixup
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit_many

RECORDS, REFERENCE, COUNT = 120, 10, 4
MIXUP = chain(mixup(), label_smoothing(0.1))
QUICK = {"repeats": 4}


def train(defense, epochs=80):
  data = synthetic_memorize(RECORDS, num_test=10).with_auxiliary(REFERENCE)
  members = subsets(RECORDS, COUNT, seed=0) & data.audited
  learner = classifier(models.mlp(64, num_classes=4), optax.adam(1e-2), defense)
  return fit_many(learner, data, members, epochs=epochs, batch_size=32, strategy="vmap")


@pytest.fixture(scope="module")
def mixed():
  return train(MIXUP)


@pytest.fixture(scope="module")
def brief():
  """Return models that need not leak."""
  return train(MIXUP, epochs=2)


def figure(scores, members):
  asked = ~np.isnan(scores)
  return auc(scores[asked][None], members[asked][None])


def as_is(x, y, key):
  del key
  return x, y


@pytest.mark.slow
def test_records_mixed_as_in_training_give_members_away(mixed):
  scores = leave_one_out(augmentation_aware, mixed)
  assert scores.dtype == np.float64
  assert np.isnan(scores[:, mixed.data.auxiliary]).all()
  assert figure(scores, mixed.members) > 0.7
  random = np.random.default_rng(0).random(mixed.members.shape) < 0.5
  other = dataclasses.replace(mixed, members=random & mixed.data.audited)
  scores = leave_one_out(augmentation_aware, other, **QUICK)
  assert figure(scores, other.members) == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_aggregate_is_larger_for_members(aggregate, mixed):
  scores = leave_one_out(augmentation_aware, mixed, aggregate=aggregate, **QUICK)
  assert figure(scores, mixed.members) > 0.55


@pytest.mark.slow
def test_unchanged_records_give_the_loss(mixed):
  scores = augmentation_aware(mixed, target=1, augment=as_is, aggregate="mean")
  data = mixed.data
  log_probs = mixed[1].log_probs(data.x).astype(np.float64)
  expected = np.where(data.audited, log_probs[np.arange(RECORDS), data.y], np.nan)
  np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.slow
def test_the_loss_is_that_of_both_labels(mixed):
  """A fixed partner and share, against a plain loop."""
  data, lam = mixed.data, 0.7
  other_x, other_y = data.x[0], data.y[0]

  def augment(x, y, key):
    del key
    both = jax.nn.one_hot(other_y, 4)
    return lam * x + (1 - lam) * other_x, lam * y + (1 - lam) * both

  scores = augmentation_aware(mixed, target=2, augment=augment, aggregate="max")
  for i in np.flatnonzero(data.audited)[:5]:
    x = (lam * data.x[i] + (1 - lam) * other_x).astype(np.float32)
    p = mixed[2].log_probs(x[None])[0]
    loss = -lam * p[data.y[i]] - (1 - lam) * p[other_y]
    assert scores[i] == pytest.approx(-loss, abs=1e-5)


@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_are_those_of_numpy(name, brief):
  def scaled(x, y, key):
    return x * jax.random.uniform(key), y

  seen = []

  def record(x, y, key):
    x, y = scaled(x, y, key)
    jax.debug.callback(lambda value: seen.append(np.asarray(value)), x)
    return x, y

  options = {"target": 0, "records": [7], "repeats": 5, "aggregate": name}
  scores = augmentation_aware(brief, augment=record, **options)
  jax.effects_barrier()
  copies = np.stack(seen)
  assert len(np.unique(copies, axis=0)) == 5
  losses = -brief[0].log_probs(copies)[:, brief.data.y[7]]
  expected = -getattr(np, name)(losses.astype(np.float64))
  assert scores[7] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_pitfall_54_the_aggregate_is_chosen_on_the_shadow(mixed):
  def chosen(ensemble, **options):
    found = augmentation_aware(ensemble, target=1, **QUICK, **options)
    fixed = {
      name: augmentation_aware(ensemble, target=1, aggregate=name, **QUICK)
      for name in AGGREGATES
    }
    (name,) = (n for n, s in fixed.items() if np.array_equal(s, found, equal_nan=True))
    return name, found

  name, plain = chosen(mixed)
  on_shadow = {
    each: figure(
      augmentation_aware(mixed, target=2, shadow=1, aggregate=each, **QUICK)[None],
      mixed.members[2:3],
    )
    for each in AGGREGATES
  }
  assert on_shadow[name] >= max(on_shadow.values()) - 0.02
  members = mixed.members.copy()
  members[1] = ~members[1] & mixed.data.audited
  other = dataclasses.replace(mixed, members=members)
  np.testing.assert_array_equal(chosen(other)[1], plain)
  # A shadow whose membership is turned around prefers another aggregate.
  members = mixed.members.copy()
  members[2] = ~members[2] & mixed.data.audited
  assert chosen(dataclasses.replace(mixed, members=members))[0] != name


@pytest.mark.slow
def test_pitfall_137_the_complement_of_the_target_chooses_nothing(brief):
  members = brief.members.copy()
  members[2] = ~members[1] & brief.data.audited
  pairs = dataclasses.replace(brief, members=members)
  np.testing.assert_array_equal(
    augmentation_aware(pairs, target=1, **QUICK),
    augmentation_aware(pairs, target=1, shadow=3, **QUICK),
  )
  with pytest.raises(ValueError, match="complement"):
    augmentation_aware(pairs, target=1, shadow=2, **QUICK)


def test_pitfall_12_copies_do_not_depend_on_the_other_records(brief):
  options = {"target": 0, "aggregate": "mean", **QUICK}
  plain = augmentation_aware(brief, **options)
  rows = np.flatnonzero(brief.data.audited)[[9, 2, 30]]
  some = augmentation_aware(brief, records=rows, **options)
  np.testing.assert_array_equal(some[rows], plain[rows])
  assert np.isnan(np.delete(some, rows)).all()
  other = augmentation_aware(brief, seed=1, **options)
  assert not np.array_equal(other[rows], plain[rows])


def test_order_of_records_and_reference_rows_do_not_matter(brief):
  data = brief.data
  options = {"target": 0, **QUICK}
  plain = augmentation_aware(brief, **options)
  order = np.random.default_rng(1).permutation(RECORDS)
  moved = dataclasses.replace(
    brief, data=data.select(order), members=brief.members[:, order]
  )
  np.testing.assert_array_equal(augmentation_aware(moved, **options), plain[order])
  x = np.where(data.auxiliary[:, None], np.float32(9), data.x)
  changed = dataclasses.replace(brief, data=dataclasses.replace(data, x=x))
  np.testing.assert_array_equal(augmentation_aware(changed, **options), plain)


@pytest.mark.slow
def test_a_single_reordering_defense_gives_each_record_its_own_copy():
  """With lam near 0 or 1, about half of the copies are the record itself."""
  defense = mixup(1e-4, per="record", pairs=True)
  ensemble = train(defense, epochs=2)
  options = {"target": 0, "aggregate": "min", "repeats": 20}
  found = augmentation_aware(ensemble, **options)
  plain = augmentation_aware(ensemble, augment=as_is, **options)
  audited = ensemble.data.audited
  assert (found[audited] >= plain[audited] - 1e-4).all()
  assert (found[audited] > plain[audited] + 1e-4).any()  # the partner's loss is lower


@pytest.mark.slow
def test_copies_are_those_of_the_last_epoch_and_masked_losses_are_finite():
  """AdaMixup ends at a share of 0.95, so a copy's loss is near the record's own."""
  defense = chain(adamixup(schedule="to_min"), confidence_masking(2))
  ensemble = train(defense, epochs=3)
  options = {"target": 0, "aggregate": "mean", **QUICK}
  audited = ensemble.data.audited
  scores = augmentation_aware(ensemble, **options)[audited]
  plain = augmentation_aware(ensemble, augment=as_is, **options)[audited]
  assert np.isfinite(scores).all()
  assert not np.array_equal(scores, plain)
  assert np.corrcoef(scores, plain)[0, 1] > 0.9


def test_what_cannot_be_asked_is_refused(brief):
  with pytest.raises(Unavailable, match="does not change batches"):
    augmentation_aware(train(confidence_masking(), epochs=1), target=0)
  with pytest.raises(ValueError, match="aggregate is 'best'"):
    augmentation_aware(brief, target=0, aggregate="best")
  with pytest.raises(ValueError, match="repeats is 0"):
    augmentation_aware(brief, target=0, repeats=0)
  with pytest.raises(ValueError, match="target=4"):
    augmentation_aware(brief, target=4)


def test_traced_copies_are_on_the_models_scale(brief):
  seen = []

  def look(x, y, key):
    del key
    seen.append((x.dtype, y.shape))
    return x, y

  augmentation_aware(brief, target=0, augment=look, records=[3], aggregate="mean")
  assert seen == [(jnp.float32, (4,))]
