import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import Signals, Unavailable
from mixdef.attacks.quantile import quantile
from mixdef.attacks.relative_loss import attack_p, attack_r, calibrated_loss
from mixdef.metrics import auc


def phi_of_loss(loss):
  return -np.log(np.expm1(np.asarray(loss, dtype=np.float64)))


def make(models=9, records=200, population=300, classes=3, seed=0, boost=2.0):
  """Logits of members, non-members and a population, with labels that matter."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5

  def outputs(rows, gain):
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(models, rows, classes))
    lift = 2 * rng.normal(size=rows) + labels + gain
    return logits + np.eye(classes)[labels] * lift[..., None], labels

  logits, labels = outputs(records, boost * members)
  return logits, labels, members, outputs(population, np.zeros((models, 1)))


def signals_of(logits, labels, members, population):
  return Signals.from_logits(logits, labels, members, population=population)


def constant(signals):
  """Features that say nothing."""
  records, unseen = signals.members.shape[1], signals.population.members.shape[1]
  return np.zeros((unseen, 1)), np.zeros((records, 1))


def test_golden_attack_p():
  z = phi_of_loss([1, 2, 3, 4])
  signals = Signals.from_phi(
    [[z[1], z[1] + 1e-9, 99.0, -99.0]], np.ones((1, 4), bool), population=[z]
  )
  np.testing.assert_array_equal(attack_p(signals, target=0), [0.75, 0.75, 1.0, 0.0])
  harder = Signals.from_phi([[z[1] - 1e-9]], [[True]], population=[z])
  assert attack_p(harder, target=0) == 0.5


def test_attack_p_equals_a_count_over_the_population():
  signals = signals_of(*make(records=20))
  scores = attack_p(signals, target=4)
  loss, unseen = signals.loss[4, :, 0], signals.population.loss[4, :, 0]
  np.testing.assert_allclose(scores, [(unseen >= own).mean() for own in loss])


def test_attack_r_and_calibrated_loss_equal_a_loop():
  signals = signals_of(*make(records=5))
  rank = attack_r(signals, target=2)
  difference = calibrated_loss(signals, target=2)
  loss, counts = signals.loss[:, :, 0], set()
  for i in range(5):
    out = [loss[k, i] for k in range(9) if k != 2 and not signals.members[k, i]]
    counts.add(len(out))
    assert rank[i] == pytest.approx(np.mean([other >= loss[2, i] for other in out]))
    assert difference[i] == pytest.approx(np.mean(out) - loss[2, i])
  assert len(counts) > 1


def test_pitfall_42_losses_above_1000_are_ordinary():
  phi = np.array([[1.0, 0.0], [2.0, 2.0], [0.5, 0.5], [-1.0, -1.0]])
  members = np.zeros(phi.shape, bool)
  near = attack_r(Signals.from_phi(phi, members), target=0)
  far = attack_r(Signals.from_phi(phi - 5e3, members), target=0)
  np.testing.assert_allclose(near, [2 / 3, 1 / 3])
  np.testing.assert_array_equal(near, far)


def test_pitfall_07_sure_records_do_not_tie_in_attack_p():
  z = np.array([[500.0, 900.0, 1500.0]])
  members = np.ones((1, 2), bool)
  scores = attack_p(
    Signals.from_phi([[1000.0, 2000.0]], members, population=z), target=0
  )
  np.testing.assert_allclose(scores, [2 / 3, 1.0])


@pytest.mark.parametrize("attack", [attack_r, calibrated_loss, quantile])
def test_a_record_that_no_reference_is_without_has_no_score(attack):
  logits, labels, members, population = make()
  members[1:, 4] = True
  scores = attack(signals_of(logits, labels, members, population), target=0)
  assert np.isnan(scores[4])
  assert np.isfinite(np.delete(scores, 4)).mean() > 0.95


@pytest.mark.parametrize("attack", [attack_p, quantile])
def test_a_population_is_needed(attack):
  logits, labels, members, _ = make()
  with pytest.raises(Unavailable, match="pass population="):
    attack(Signals.from_logits(logits, labels, members), target=0)


@pytest.mark.parametrize("fpr", [0.005, 0.103, 0.5])
def test_constant_pinball_is_the_empirical_quantile(fpr):
  signals = signals_of(*make(population=299))
  values, unseen = signals.hinge[1, :, 0], signals.population.hinge[1, :, 0]
  scores = quantile(
    signals, target=1, head="pinball", fpr=fpr, features=constant(signals)
  )
  # Pitfall 39 too: the threshold is a float with its digits, and every row counts.
  threshold = np.sort(unseen)[int(np.ceil((1 - fpr) * 299)) - 1]
  np.testing.assert_allclose(scores, values - threshold, atol=1e-9)
  assert threshold != round(threshold)


def test_constant_gaussian_is_the_z_score_of_the_population():
  signals = signals_of(*make())
  values, unseen = signals.hinge[1, :, 0], signals.population.hinge[1, :, 0]
  scores = quantile(signals, target=1, features=constant(signals))
  np.testing.assert_allclose(scores, (values - unseen.mean()) / unseen.std(), atol=1e-9)


@pytest.mark.parametrize("head", ["gaussian", "pinball"])
def test_pitfall_39_every_row_of_the_population_is_used(head):
  logits, labels, members, (logits_z, labels_z) = make(population=25)
  before = quantile(
    signals_of(logits, labels, members, (logits_z, labels_z)),
    target=0,
    head=head,
    fpr=0.3,
  )
  for row in (0, 24):
    moved = logits_z.copy()
    moved[0, row, labels_z[row]] += 20
    after = quantile(
      signals_of(logits, labels, members, (moved, labels_z)),
      target=0,
      head=head,
      fpr=0.3,
    )
    assert (after != before).any()


def test_pitfall_40_records_that_are_scored_never_enter_the_fit():
  logits, labels, members, population = make()
  changed = logits.copy()
  changed[:, 1:] *= 3
  first = quantile(signals_of(logits, labels, members, population), target=0)
  second = quantile(signals_of(changed, labels, members, population), target=0)
  assert first[0] == second[0]
  assert (first[1:] != second[1:]).any()


def test_gaussian_head_recovers_a_linear_law():
  rng = np.random.default_rng(0)
  u = rng.normal(size=(20_000, 2))
  mu, sigma = 1 + 2 * u[:, 0], np.exp(0.3 + 0.5 * u[:, 1])
  unseen = mu + sigma * rng.normal(size=20_000)
  asked = np.array([[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]])
  phi = np.array([3.0, 3.0, 3.0])
  signals = Signals.from_phi([phi], np.ones((1, 3), bool), population=[unseen])
  scores = quantile(signals, target=0, score="phi", features=(u, asked))
  expected = (phi - 1 - 2 * asked[:, 0]) / np.exp(0.3 + 0.5 * asked[:, 1])
  np.testing.assert_allclose(scores, expected, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("tail", [1.5, 3.0])
def test_gaussian_head_minimises_its_loss(tail):
  rng = np.random.default_rng(1)
  u = rng.normal(size=(400, 3))
  unseen = u[:, 0] + np.exp(0.5 * u[:, 1]) * rng.standard_t(tail, size=400)
  unseen[7] = 300.0
  # Asked twice with values 0 and 1, a record shows its mu and sigma.
  both = np.concatenate([np.zeros(400), np.ones(400)])
  signals = Signals.from_phi([both], np.ones((1, 800), bool), population=[unseen])
  scores = quantile(signals, target=0, score="phi", features=(u, np.tile(u, (2, 1))))
  sigma = 1 / (scores[400:] - scores[:400])
  mu = -scores[:400] * sigma

  def loss(mu, sigma):
    return np.mean(np.log(sigma) + (unseen - mu) ** 2 / (2 * sigma**2))

  best = loss(mu, sigma)
  for column in (np.ones(400), *u.T):
    for step in (-0.05, 0.05):
      # The penalty is worth a few observations in 400.
      assert loss(mu + step * sigma.mean() * column, sigma) > best - 1e-3
      assert loss(mu, sigma * np.exp(step * column)) > best - 1e-3
  assert loss(mu, sigma) < loss(unseen.mean(), unseen.std()) - 0.1


def test_references_and_labels_sharpen_the_attack():
  signals = signals_of(*make(records=3000, population=3000, models=17))
  informed = quantile(signals, target=0)
  onehot = tuple(np.eye(3)[part.labels] for part in (signals.population, signals))
  by_label = quantile(signals, target=0, features=onehot)
  blind = quantile(signals, target=0, features=constant(signals))
  areas = [auc(scores, signals.members[0]) for scores in (informed, by_label, blind)]
  assert areas[0] > areas[1] + 0.05 > areas[2] + 0.05


@pytest.mark.parametrize("head", ["gaussian", "pinball"])
def test_non_members_exceed_their_quantile_at_the_named_rate(head):
  signals = signals_of(*make(records=4000, population=3000, seed=3))
  scores = quantile(signals, target=0, head=head, fpr=0.1)
  threshold = stats.norm.isf(0.1) if head == "gaussian" else 0.0
  outsiders = scores[~signals.members[0] & np.isfinite(scores)]
  assert (outsiders > threshold).mean() == pytest.approx(0.1, abs=0.04)


def test_a_class_that_the_population_lacks_or_shows_once_is_scored():
  logits, labels, members, (logits_z, labels_z) = make()
  labels_z = np.where(labels_z == 2, 0, labels_z)
  labels_z[5] = 2
  with_one = signals_of(logits, labels, members, (logits_z, labels_z))
  labels_z = np.where(labels_z == 2, 0, labels_z)
  without = signals_of(logits, labels, members, (logits_z, labels_z))
  for signals in (with_one, without):
    scores = quantile(signals, target=0)
    assert np.abs(scores[np.isfinite(scores)]).max() < 100


def test_a_target_that_always_answers_alike_gives_finite_scores():
  signals = Signals.from_phi(
    np.full((3, 8), 2.0), np.zeros((3, 8), bool), population=np.full((3, 20), 2.0)
  )
  np.testing.assert_allclose(quantile(signals, target=0, score="phi"), 0, atol=1e-12)


def test_quantile_says_what_it_lacks():
  alone = Signals.from_phi([[0.0, 1.0]], [[True, False]], population=[[2.0, 3.0]])
  with pytest.raises(Unavailable, match="train more models, or pass features="):
    quantile(alone, target=0, score="phi")
  with pytest.raises(Unavailable, match="no hinge"):
    quantile(alone, target=0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"head": "net"}, "head is 'net'"),
    ({"fpr": 1.0}, "fpr is 1.0; pass a number above 0 and below 1"),
    ({"score": "loss"}, "score is 'loss'"),
    ({"features": (np.zeros((3, 1)), np.zeros((200, 1)))}, r"pass \[300, D\]"),
    ({"features": (np.zeros((300, 2)), np.zeros((200, 1)))}, r"pass \[200, D\]"),
    ({"features": (np.zeros(300), np.zeros((200, 1)))}, r"pass \[300, D\]"),
    ({"features": (np.zeros((300, 1)), np.full((200, 1), np.nan))}, "200 not finite"),
  ],
)
def test_unusable_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    quantile(signals_of(*make()), target=0, **options)
