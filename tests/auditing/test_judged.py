import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals, Unavailable, leave_one_out
from mixdef.auditing import audit
from mixdef.auditing.judged import judged
from mixdef.data import subsets
from mixdef.metrics import auc

RECORDS, UNSEEN, CLASSES = 600, 200, 3


def halves(models, seed, records=RECORDS):
  return np.random.default_rng([models, seed]).random((models, records)) < 0.5


def nearly(seed, share):
  members = np.repeat(halves(4, seed), 2, 0)
  members[1::2] ^= np.random.default_rng(seed).random((4, RECORDS)) < share
  return members


def order(seed):
  return np.random.default_rng(seed).permutation(RECORDS)


def own_rates(seed):
  random = np.random.default_rng(seed)
  return random.random((8, RECORDS)) < random.choice([0.2, 0.8], RECORDS)


def part_fixed(seed):
  members = halves(8, seed)
  members[:, :200], members[:, 200:300] = True, False
  return members


DESIGNS = {
  "independent": lambda seed: halves(8, seed),
  "balanced": lambda seed: subsets(RECORDS, 8, seed=seed, design="balanced"),
  "one split": lambda seed: np.repeat(halves(1, seed), 6, 0),
  "another seed of each": lambda seed: np.repeat(halves(4, seed), 2, 0),
  "every model twice": lambda seed: np.tile(halves(4, seed), (2, 1)),
  "1 % exchanged": lambda seed: nearly(seed, 0.01),
  "15 % exchanged": lambda seed: nearly(seed, 0.15),
  "complements": lambda seed: np.concatenate([halves(4, seed), ~halves(4, seed)]),
  "one pair": lambda seed: np.concatenate([halves(1, seed), ~halves(1, seed)]),
  "disjoint": lambda seed: order(seed) % 4 == np.arange(4)[:, None],
  "folds": lambda seed: order(seed) % 5 != np.arange(5)[:, None],
  "all but one": lambda seed: np.arange(RECORDS) != np.arange(8)[:, None],
  "nested": lambda seed: order(seed) < np.arange(1, 9)[:, None] * RECORDS / 9,
  "rates of their own": own_rates,
  "half fixed": part_fixed,
  "first four alike": lambda seed: np.concatenate(
    [np.repeat(halves(1, seed), 4, 0), halves(6, seed)]
  ),
  "two splits": lambda seed: np.repeat(halves(2, seed), 4, 0),
  "different sizes": lambda seed: (
    np.random.default_rng(seed).random((8, RECORDS)) < np.linspace(0.1, 0.9, 8)[:, None]
  ),
}
NOT_JUDGED = {"one split", "one pair"}  # by attacks that read or learn from others

READING = (
  *("lira_online", "lira_online_fixed", "lira_offline", "lira_offline_two_sided"),
  *("rmia", "base", "bavaria", "attack_r", "calibrated_loss"),
)
LEARNING = ("confidence", "privacy_risk_score", "salem_1")


def null(members, seed, twice=False):
  """Signals of models whose outputs say nothing of membership; records differ."""
  random = np.random.default_rng([99, seed])
  logits, others = (
    random.normal(size=(len(members), count, CLASSES)) for count in (RECORDS, UNSEEN)
  )
  logits[..., 0] += 2 * random.normal(size=RECORDS)
  others[..., 0] += 2 * random.normal(size=UNSEEN)
  if twice:
    logits = np.tile(logits[: len(members) // 2], (2, 1, 1))
  return Signals.from_logits(
    logits,
    np.zeros(RECORDS, int),
    members,
    population=(others, np.zeros(UNSEEN, int)),
  )


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_no_attack_finds_members_where_nothing_tells_them(design):
  signals, found = null(DESIGNS[design](1), 1, twice=design == "every model twice"), {}
  for name in (*READING, *LEARNING):
    options = {"n_hidden": 0} if name == "salem_1" else {}
    try:
      scores = leave_one_out(getattr(attacks, name), signals, **options)
    except Unavailable:
      continue
    scored = ~np.isnan(scores)
    inside, outside = (
      int((scored & kind).sum()) for kind in (signals.members, ~signals.members)
    )
    if inside and outside:
      error = np.sqrt((1 / inside + 1 / outside) / 12)
      found[name] = (auc(scores, signals.members) - 0.5) / error
  assert max(found.values(), default=0) < 5
  assert bool(found) == (design not in NOT_JUDGED)


def leaky(members, seed=0):
  """Signals of models that are surer of their members."""
  random = np.random.default_rng(seed)
  phi = (
    random.normal(size=members.shape)
    + 2 * members
    + random.normal(size=members.shape[1])
  )
  return Signals.from_phi(phi, members)


@pytest.mark.parametrize("design", ["independent", "disjoint", "15 % exchanged"])
def test_what_leaks_is_found_whatever_the_design(design):
  signals = leaky(DESIGNS[design](0))
  scores = leave_one_out(attacks.lira_offline_fixed, signals)
  assert auc(scores, signals.members) > 0.8


QUICK = [
  "loss_threshold",
  "lira_online_fixed",
  "bavaria",
  "confidence(per_class=False)",
]


def test_models_of_one_split_are_judged_by_what_needs_no_references():
  report = audit(null(DESIGNS["one split"](0), 0), attacks=QUICK).report
  assert list(report["attacks"]) == ["loss_threshold"]
  for name in QUICK[1:]:
    assert "needs reference models" in report["not_run"][name]
    assert (
      "the other models were trained on the same records" in report["not_run"][name]
    )
  assert "trained on the same records" in report["limits"][0]
  assert report["verdict"]["level"] in ("none_found", "low")


@pytest.mark.parametrize("design", ["every model twice", "another seed of each"])
def test_twins_are_no_references_and_named(design):
  signals = null(DESIGNS[design](0), 0, twice=design == "every model twice")
  report = audit(signals, attacks=["lira_online", "bavaria", "lira_offline"]).report
  assert report["verdict"]["level"] in ("none_found", "low")
  assert report["limits"][0].startswith("Models 0, 1, 2, 3, 4, 5, 6, 7 were trained on")


def test_an_audit_ends_well_though_its_first_models_share_a_split():
  signals = leaky(DESIGNS["first four alike"](0))
  result = audit(signals, attacks=["loss_threshold", "lira_online_fixed", "gap"])
  assert len(result.report["budget"]["lira_online_fixed"]) >= 1
  assert result.report["verdict"]["level"] == "high"
  assert result.report["attacks"]["lira_online_fixed"]["num_targets"] == 10


def test_records_that_nothing_varies_are_left_out_and_counted():
  members = part_fixed(0)
  signals, remarks = judged(leaky(members))
  varied = np.arange(RECORDS) >= 300
  assert not signals.audited[~varied].any()
  # Of eight models, one record in 128 is the same in all by chance.
  assert signals.audited.sum() > 280
  assert signals.design == "bernoulli"
  assert "20" in remarks[0]
  assert "records are in every training set" in remarks[0]
  everyone, remarks = judged(leaky(DESIGNS["independent"](0)))
  assert everyone.audited.all()
  assert not remarks


def test_models_of_all_or_no_records_are_references_only():
  members = np.concatenate([halves(6, 0), np.ones((1, RECORDS), bool)])
  signals, remarks = judged(leaky(members))
  assert remarks == [
    "Model 6 was trained on all audited records or on none: used as a reference only."
  ]
  assert signals.references(0)[6].all()


@pytest.mark.parametrize("members", [np.ones((3, 50), bool), np.zeros((1, 50), bool)])
def test_where_nobody_differs_there_is_nothing_to_audit(members):
  with pytest.raises(ValueError, match="there is no membership to infer"):
    judged(leaky(members))


@pytest.mark.parametrize("source", [None, "outputs.npz", np.zeros((2, 9, 3))])
def test_what_is_neither_models_nor_signals_is_one_line(source):
  with pytest.raises(ValueError, match=r"the source is a .*Signals\.from_npz\(path\)"):
    audit(source)
  with pytest.raises(ValueError, match="the source is a"):
    leave_one_out(attacks.gap, source)


def test_one_model_under_two_subsets_is_refused():
  members = halves(4, 0)
  phi = np.random.default_rng(0).normal(size=members.shape)
  phi[3] = phi[1]
  with pytest.raises(
    ValueError, match="models 1 and 3 have the same outputs, but different"
  ):
    audit(Signals.from_phi(phi, members), attacks=["loss_threshold"])


def test_exposed_records_go_by_their_names(tmp_path):
  signals = leaky(halves(8, 0))
  names = np.array([f"patient-{i}" for i in range(RECORDS)])
  named = Signals.from_phi(3 * signals.phi, signals.members, ids=names)
  result = audit(named, attacks=["lira_offline_fixed"])
  for row in result.report["records"]["exposed"]:
    assert row["id"] == f"patient-{row['index']}"
  page = result.save(tmp_path).read_text()
  assert f">{result.report['records']['exposed'][0]['id']}<" in page
  np.testing.assert_array_equal(np.load(tmp_path / "scores.npz")["ids"], names)
