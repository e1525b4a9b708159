"""Cascading attack: thresholds, anchors and scores, in simulated worlds."""

import numpy as np
import pytest

from mixdef.attacks import Signals, cmia, cmia_anchors, lira_online
from mixdef.attacks.cmia import (
  AnchorRule,
  Anchors,
  choose_anchors,
  negative_threshold,
  positive_threshold,
)
from mixdef.attacks.lira import OFFICIAL
from mixdef.metrics import auc

RECORDS = 1500
SMALL = AnchorRule(1, 1, 3, 3, 0.2)


class World:
  """Outputs of models in which some records, the hubs, change those of many others."""

  def __init__(self, seed=0, reach=15):
    rng = self.rng = np.random.default_rng(seed)
    hubs = RECORDS // 20
    self.gain = np.where(np.arange(RECORDS) < hubs, 8.0, 1.0)
    self.effect = np.zeros((RECORDS, RECORDS))
    for hub in range(hubs):
      reached = rng.choice(np.arange(hubs, RECORDS), reach, replace=False)
      self.effect[hub, reached] = 3.0

  def phi(self, members):
    noise = self.rng.normal(size=members.shape)
    return self.gain * members + members @ self.effect + noise

  def models(self, count, anchors=None):
    members = self.rng.random((count, RECORDS)) < 0.5
    if anchors is not None:
      members = (members | anchors.positive) & ~anchors.negative
    return self.phi(members), members

  def cascade(self, phi, rounds=3, models=16):
    sides = [self.models(models)]
    for _ in range(rounds - 1):
      sides.append(self.models(models, cmia_anchors(phi, sides)))
    return sides


def test_check_values_of_the_thresholds():
  scores = np.arange(-5.0, 3)
  labels = np.array([0, 0, 1, 0, 0, 1, 1, 1], bool)
  assert negative_threshold(scores, labels, tolerance=0, least=1) == -4
  assert negative_threshold(scores, labels, tolerance=1, least=1) == -1
  assert positive_threshold(scores, labels, tolerance=0, least=1) == 0
  labels[0] = True
  assert negative_threshold(scores, labels, tolerance=0, least=1) is None
  assert negative_threshold(scores, labels, tolerance=1, least=3) is None  # has two
  assert positive_threshold(scores, labels, tolerance=0, least=4) is None  # has three


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_thresholds_equal_a_loop_over_scores(tolerance):
  rng = np.random.default_rng(tolerance)
  for _ in range(30):
    scores = rng.integers(-6, 6, size=25).astype(float)  # with ties
    labels = rng.random(25) < 0.5
    low = [
      t for t in scores if sum(labels[i] for i in range(25) if scores[i] <= t)
      <= tolerance and sum(s <= t for s in scores) >= 2
    ]  # fmt: skip
    high = [
      t for t in scores if sum(not labels[i] for i in range(25) if scores[i] >= t)
      <= tolerance and sum(s >= t for s in scores) >= 2
    ]  # fmt: skip
    options = {"tolerance": tolerance, "least": 2}
    assert negative_threshold(scores, labels, **options) == max(low, default=None)
    assert positive_threshold(scores, labels, **options) == min(high, default=None)
    more = np.append(scores, np.nan), np.append(labels, True)
    assert negative_threshold(*more, **options) == max(low, default=None)


def test_negatives_come_first_and_are_capped():
  nobody = np.zeros(40, bool)
  none, scores = Anchors(nobody, nobody), np.arange(40.0)
  found = choose_anchors(scores, none, 9.0, 30.0)
  assert np.flatnonzero(found.negative).tolist() == [0, 1]  # 5 % of 40
  assert not found.positive.any()
  again = choose_anchors(scores, found, 9.0, 30.0)
  assert np.flatnonzero(again.negative).tolist() == [0, 1, 2]  # 5 % of 38
  for negative in (None, -1.0):
    found = choose_anchors(scores, none, negative, 30.0)
    assert np.flatnonzero(found.positive).tolist() == list(range(30, 40))
    assert not found.negative.any()
  scores[0] = np.nan
  assert np.flatnonzero(choose_anchors(scores, none, 9.0, None).negative)[0] == 1
  assert choose_anchors(scores, none, None, None) == none


def lira_loop(phi, values, members):
  """Score records by median and ddof 0, each by itself."""
  scores = np.full(len(phi), np.nan)
  for i in range(len(phi)):
    inside, out = values[members[:, i], i], values[~members[:, i], i]
    if min(len(inside), len(out)) > 1:
      logs = [
        -((phi[i] - np.median(x)) ** 2) / (2 * x.var()) - np.log(x.std())
        for x in (inside, out)
      ]
      scores[i] = logs[0] - logs[1]
  return scores


def test_anchors_and_scores_equal_a_loop_over_rounds():
  rng = np.random.default_rng(3)
  records, models = 60, 12
  target = rng.random(records) < 0.5
  own = 3.0 * target + rng.normal(size=records)

  def trained(anchors):
    members = rng.random((models, records)) < 0.5
    members = (members | anchors.positive) & ~anchors.negative
    return 3.0 * members + rng.normal(size=members.shape), members

  positive, negative = set(), set()
  kept, rounds, chosen = {}, [], Anchors(*np.zeros((2, records), bool))
  for _ in range(3):
    rounds.append(trained(chosen))
    values, members = (np.concatenate(parts) for parts in zip(*rounds, strict=True))
    scores = lira_loop(own, values, members)
    closed = positive | negative
    kept |= {i: scores[i] for i in range(records) if i not in closed}
    expected = np.array([kept[i] for i in range(records)])
    np.testing.assert_allclose(cmia(own, rounds, rule=SMALL), expected, rtol=1e-9)
    rest = [i for i in range(records) if i not in closed]
    lows, highs = [], []
    for model in range(len(values) - models, len(values)):
      others = [k for k in range(len(values)) if k != model]
      theirs = lira_loop(values[model], values[others], members[others])[rest]
      labels = members[model][rest]
      options = {"tolerance": 1, "least": 3}
      lows.append(negative_threshold(theirs, labels, **options))
      highs.append(positive_threshold(theirs, labels, **options))
    low = np.mean([x for x in lows if x is not None])
    high = np.mean([x for x in highs if x is not None])
    below = sorted((kept[i], i) for i in rest if kept[i] <= low)
    below = [i for _, i in below][: int(0.2 * len(rest))]
    assert len([x for x in lows if x is not None]) > models / 2
    negative |= set(below)
    positive |= set() if below else {i for i in rest if kept[i] >= high}
    chosen = cmia_anchors(own, rounds, rule=SMALL)
    assert set(np.flatnonzero(chosen.negative)) == negative
    assert set(np.flatnonzero(chosen.positive)) == positive
  assert len(negative) > 5


def test_one_round_is_lira():
  world = World()
  phi, members = world.models(17)
  signals = Signals.from_phi(phi, members, design="bernoulli")
  expected = lira_online(signals, target=0, **OFFICIAL)
  np.testing.assert_allclose(cmia(phi[0], [(phi[1:], members[1:])]), expected)


def test_anchors_help_where_records_change_each_other():
  """Equal numbers of models; without effects between records there is no gain."""
  gains = {}
  for reach in (15, 0):
    world = World(0, reach)
    (phi,), (member,) = world.models(1)
    cascade, plain = world.cascade(phi, models=32), [world.models(96)]
    gains[reach] = auc(cmia(phi, cascade), member) - auc(cmia(phi, plain), member)
  assert gains[15] > 0.01
  assert abs(gains[0]) < 0.01


def test_a_release_trained_on_no_record_is_not_found():
  """Its outputs scatter as those of reference models, whatever the labels are."""
  world, areas = World(5), []
  for _ in range(2):
    (phi,), _ = world.models(1)
    scores = cmia(phi, world.cascade(phi))
    areas.append(auc(scores, world.rng.random(RECORDS) < 0.5))
  sd = np.sqrt(1 / (3 * RECORDS))
  assert abs(np.mean(areas) - 0.5) < 3.3 * sd / np.sqrt(2)


def test_an_anchor_keeps_its_score():
  world = World()
  (phi,), _ = world.models(1)
  sides = world.cascade(phi)
  anchors = cmia_anchors(phi, sides[:1])
  assert not anchors.open.all()
  first, last = cmia(phi, sides[:1]), cmia(phi, sides)
  np.testing.assert_array_equal(last[~anchors.open], first[~anchors.open])
  assert (last != first)[anchors.open].mean() > 0.9


def test_rounds_without_their_anchors_are_refused():
  world = World()
  (phi,), _ = world.models(1)
  with pytest.raises(ValueError, match="round 2 was not trained with the anchors"):
    cmia(phi, [world.models(16), world.models(16)])
  with pytest.raises(ValueError, match="rounds are empty"):
    cmia(phi, [])
  with pytest.raises(ValueError, match="same records"):
    cmia(phi[1:], [world.models(16)])
