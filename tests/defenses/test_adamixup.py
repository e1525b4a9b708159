"""AdaMixup's readings, schedules, labels and warnings."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import (
  DATA,
  KEEP,
  REFERENCE,
  SPEC,
  K,
  after,
  in_epoch,
  make_batch,
  make_log_probs,
)

from mixdef.core.chaining import chain
from mixdef.defenses import adamixup, label_smoothing

# t -> raw, floor, to_min, m literal, m strength
GOLDEN = {
  0: (1.00, 1.00, 1.0000, 0.00, 0.500),
  5: (0.75, 0.75, 0.7632, 0.25, 0.375),
  10: (0.50, 0.50, 0.5263, 0.50, 0.250),
  15: (0.25, 0.25, 0.2895, 0.25, 0.125),
  18: (0.10, 0.10, 0.1474, 0.10, 0.050),
  19: (0.05, 0.10, 0.1000, 0.10, 0.050),
}


def mixed(part, epoch, epochs=20, batch=None, seed=0, state=()):
  batch = make_batch(16) if batch is None else batch
  return part.batch(batch, state, in_epoch(epoch, epochs, seed))


def share(out):
  """The lam of the mixed rows; 1 where nothing is mixed."""
  values = np.unique(out.lam[out.lam != 1])
  assert len(values) <= 1
  return values[0] if len(values) else 1.0


@pytest.mark.parametrize("epoch", GOLDEN)
@pytest.mark.parametrize("column", [0, 1, 2])
def test_pitfall_62_golden_schedules(epoch, column):
  schedule = ("raw", "floor", "to_min")[column]
  out = mixed(adamixup("literal", schedule=schedule), epoch)
  np.testing.assert_allclose(share(out), GOLDEN[epoch][column], atol=5e-5)


@pytest.mark.parametrize("epoch", GOLDEN)
def test_pitfall_62_golden_minor_shares(epoch):
  literal = share(mixed(adamixup("literal"), epoch))
  strength = share(mixed(adamixup(), epoch))
  np.testing.assert_allclose(min(literal, 1 - literal), GOLDEN[epoch][3], atol=1e-6)
  np.testing.assert_allclose(1 - strength, GOLDEN[epoch][4], atol=1e-6)


def test_one_epoch_of_to_min_stays_at_the_start():
  out = mixed(adamixup("literal", schedule="to_min", start=0.8), 0, epochs=1)
  np.testing.assert_allclose(share(out), 0.8, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["strength", "literal", "beta", "probability"])
@pytest.mark.parametrize("epoch", [0, 9, 10, 11, 19])
def test_pitfall_62_labels_are_the_dominant_records(reading, epoch):
  batch = make_batch(16)
  out = mixed(adamixup(reading), epoch, batch=batch)
  assert set(np.unique(out.y)) <= {0.0, 1.0}
  for i in range(16):
    j, lam = int(out.partner[i]), float(out.lam[i])
    np.testing.assert_array_equal(out.y[i], batch.y[i if lam >= 0.5 else j])
    x = lam * np.asarray(batch.x[i]) + (1 - lam) * np.asarray(batch.x[j])
    np.testing.assert_allclose(out.x[i], x, rtol=1e-5, atol=1e-6)
    if reading != "literal":
      np.testing.assert_array_equal(out.y[i], batch.y[i])


def test_literal_gives_the_partners_label_just_below_one_half():
  batch = make_batch(16)
  tie = mixed(adamixup("literal"), 10, batch=batch)
  np.testing.assert_array_equal(tie.y, batch.y)
  below = mixed(adamixup("literal"), 1001, 2000, batch=batch)
  np.testing.assert_allclose(share(below), 0.4995, rtol=1e-5)
  np.testing.assert_array_equal(below.y, batch.y[below.partner])


def test_literal_mixes_the_same_pairs_at_lam_and_at_its_complement():
  """A swap of two rows makes the same two mixtures at 0.75 and at 0.25."""
  batch = make_batch(2)
  part = adamixup("literal", schedule="raw")
  rows = []
  for epoch in (5, 15):
    outs = [mixed(part, epoch, batch=batch, seed=seed) for seed in range(10)]
    swap = next(out for out in outs if int(out.partner[0]) == 1)
    table = np.concatenate([swap.x, swap.y], -1)
    rows.append(table[np.lexsort(table.T)])
  np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5, atol=1e-6)


def test_soft_label_is_mixup_with_a_known_share():
  batch = make_batch(16)
  out = mixed(adamixup(label="soft"), 0, batch=batch)
  expected = 0.5 * np.asarray(batch.y) + 0.5 * np.asarray(batch.y)[out.partner]
  np.testing.assert_allclose(out.y, expected)


def test_hard_label_of_soft_rows_is_the_dominant_whole_row():
  batch = make_batch(16)
  batch = batch._replace(y=jnp.exp(make_log_probs(16)))
  np.testing.assert_array_equal(mixed(adamixup(), 0, batch=batch).y, batch.y)


def test_pitfall_62_share_is_constant_within_an_epoch():
  part, steps = adamixup("literal"), range(4)
  shares = {float(share(mixed(part, 3, seed=seed))) for seed in steps}
  assert len(shares) == 1
  assert shares != {float(share(mixed(part, 4)))}


def test_unmixed_at_zero_is_exact():
  batch = make_batch(16)
  np.testing.assert_array_equal(mixed(adamixup("literal"), 0, batch=batch).x, batch.x)


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.25), (10, 0.1817), (18, 0.0584)])
def test_beta_has_the_tabulated_mean_share(epoch, expected):
  part, batch = adamixup("beta"), make_batch(2)

  def minor(seed):
    return 1 - mixed(part, epoch, batch=batch, seed=seed).lam[0]

  values = np.asarray(jax.jit(jax.vmap(minor))(jnp.arange(8000)))
  # Half of the shuffles of two rows leave them in place, with a minor share of 0. The
  # standard deviation of a number in [0, 0.5] is at most 0.25: five sigma of 8,000.
  assert abs(values.mean() - expected / 2) < 5 * 0.25 / np.sqrt(len(values))


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (10, 0.5), (19, 0.1)])
def test_probability_mixes_that_share_of_the_rows(epoch, expected):
  out = mixed(adamixup("probability"), epoch, batch=make_batch(4000))
  assert abs(float((out.lam < 1).mean()) - expected) < 5 * 0.5 / np.sqrt(4000)
  assert float(out.lam.min()) >= 0.5


def test_performance_shrinks_the_share_when_the_gap_stops_shrinking():
  part = adamixup("performance", end=0.85)
  state = part.init(None, SPEC)
  np.testing.assert_allclose(share(mixed(part, 0, state=state)), 0.5)
  right, wrong = jax.nn.one_hot(DATA.y, K), jax.nn.one_hot(DATA.y + 1, K)
  overfitted = jnp.where(REFERENCE[:, None], wrong, right)
  expected = []
  looks = [overfitted, right, overfitted, overfitted]  # gaps 1, 0, 1, 1
  for log_probs in looks:
    state = part.epoch(state, after(in_epoch(0), jnp.log(log_probs + 1e-9)))
    expected.append(float(state["m"]))
  # The first gap only sets the mark, the second shrinks; then 0.9, then the floor.
  np.testing.assert_allclose(expected, [0.5, 0.5, 0.45, 0.425], rtol=1e-6)
  assert part.traits.needs_auxiliary
  np.testing.assert_allclose(share(mixed(part, 0, state=state)), 0.575, rtol=1e-6)


def test_performance_reads_members_and_reference_rows_only():
  part = adamixup("performance")
  state = part.init(None, SPEC)
  out = (~KEEP & ~REFERENCE)[:, None]
  a = make_log_probs(len(DATA.y))
  looks = [after(in_epoch(0), jnp.where(out, value, a)) for value in (0.0, 9.0)]
  gaps = [part.epoch(state, look)["gap"] for look in looks]
  np.testing.assert_array_equal(*gaps)


def test_hard_label_comes_before_smoothing_wherever_it_stands():
  part = chain(label_smoothing(), adamixup())
  out = part.batch(make_batch(16), part.init(jax.random.key(0), SPEC), in_epoch(0))
  np.testing.assert_allclose(np.sort(out.y, -1)[:, -1], 0.9 + 0.1 / K, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "epochs", "warns"),
  [
    ({}, 9, True),
    ({}, 10, False),
    ({"schedule": "to_min"}, 5, False),
    ({"end": 0.0}, 50, True),
    ({"reading": "performance"}, 5, False),
  ],
)
def test_pitfall_63_warns_when_the_floor_is_not_reached(options, epochs, warns, caplog):
  logger = logging.getLogger("absl")
  logger.addHandler(caplog.handler)
  try:
    adamixup(**options).init(None, SPEC._replace(epochs=epochs))
  finally:
    logger.removeHandler(caplog.handler)
  assert ("to_min" in caplog.text) == warns
