import dataclasses
import json

import jax
import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals, leave_one_out
from mixdef.attacks.gan import ATTACKS as GAN_ATTACKS
from mixdef.attacks.gan import GanSignals
from mixdef.auditing import Budget, run_attacks, running
from mixdef.metrics import summarize

ASKING = "label_only_noise(draws=5)"


def draw(models=6, records=120, boost=2.0, seed=0):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  labels = rng.integers(0, 3, records)
  logits = rng.normal(size=(models, records, 3))
  logits += np.eye(3)[labels] * boost * members[:, :, None]
  population = rng.normal(size=(models, 40, 3)), rng.integers(0, 3, 40)
  audited = np.arange(records) >= 20
  return Signals.from_logits(
    logits, labels, members, audited=audited, population=population
  )


@pytest.fixture(scope="module")
def outputs():
  return draw()


@pytest.fixture
def runs(monkeypatch):
  """Names of the attacks that are run from here on; "attack_r" breaks off."""
  seen = []

  def watched(attack, source, **options):
    seen.append(getattr(attack, "func", attack).__name__)
    if seen[-1] == "attack_r":
      raise RuntimeError("the device is lost")
    return leave_one_out(attack, source, **options)

  monkeypatch.setattr(running, "leave_one_out", watched)
  return seen


def test_cheap_attacks_meet_every_model(outputs):
  findings = run_attacks(["lira_online", "rmia(gamma=4.0)"], outputs)
  expected = leave_one_out(attacks.lira_online, outputs)
  np.testing.assert_array_equal(findings.scores["lira_online"], expected)
  expected = leave_one_out(attacks.rmia, outputs, gamma=4.0)
  np.testing.assert_array_equal(findings.scores["rmia(gamma=4.0)"], expected)
  row = findings.metrics["rmia(gamma=4.0)"]
  assert row["num_targets"] == 6
  assert row["family"] == "reference"
  # A record that is in every other model has no score.
  assert row["num_members"] + row["num_nonmembers"] + row["excluded"] == 6 * 100
  plain = summarize(expected, outputs.members, outputs.audited).to_json()
  assert {name: row[name] for name in plain} == plain


def test_options_go_to_the_attack_of_that_name(outputs):
  findings = run_attacks(
    ["rmia", "base"], outputs, options={"rmia": {"gamma": 4.0}, "shokri": {"x": 1}}
  )
  expected = leave_one_out(attacks.rmia, outputs, gamma=4.0)
  np.testing.assert_array_equal(findings.scores["rmia"], expected)


def test_attacks_that_train_a_model_meet_the_first_targets_only(outputs):
  findings = run_attacks(["salem_1"], outputs, budget=Budget(targets=2))
  scored = ~np.isnan(findings.scores["salem_1"])
  assert scored[:2, 20:].all()
  assert scored.sum() == 200
  assert findings.metrics["salem_1"]["num_targets"] == 2
  assert findings.metrics["salem_1"]["excluded"] == 0


def test_attacks_that_ask_meet_few_targets_and_few_records(memorised):
  signals, budget = memorised.signals(), Budget(targets=2, records=30)
  findings = run_attacks([ASKING, "gap"], signals, memorised, budget=budget, seed=3)
  scored = ~np.isnan(findings.scores[ASKING])
  assert scored[:2].sum(1).tolist() == [30, 30]
  assert not scored[2:].any()
  np.testing.assert_array_equal(scored[0], scored[1])
  row = findings.metrics[ASKING]
  assert (row["num_targets"], row["excluded"]) == (2, 0)
  assert row["num_members"] + row["num_nonmembers"] == 60
  assert findings.metrics["gap"]["num_targets"] == 6
  # The records are drawn by the seed, and what is not asked changes no answer.
  again = run_attacks([ASKING], signals, memorised, budget=budget, seed=4)
  other = ~np.isnan(again.scores[ASKING])
  assert (other[0] != scored[0]).any()
  both = scored & other
  np.testing.assert_array_equal(
    again.scores[ASKING][both], findings.scores[ASKING][both]
  )


def test_what_cannot_be_run_is_listed_with_the_reason(outputs, memorised):
  findings = run_attacks(["salem_2", ASKING, "gap"], outputs)
  assert list(findings.scores) == list(findings.metrics) == ["gap"]
  assert "pass source=" in findings.not_run["salem_2"]
  assert "pass the ensemble" in findings.not_run[ASKING]
  pictures = "label_only_translation"
  findings = run_attacks([pictures], memorised.signals(), memorised)
  assert "are not images" in findings.not_run[pictures]
  assert not findings.scores


@pytest.mark.parametrize("name", ["lira_online", "rmia", "label_only_logreg"])
def test_an_attack_that_scores_nobody_is_not_run(name):
  findings = run_attacks([name, "gap"], draw(models=1))
  assert list(findings.metrics) == ["gap"]
  assert findings.not_run[name].startswith("it needs reference models")


def test_a_model_with_one_kind_of_record_is_not_judged(outputs):
  members = outputs.members.copy()
  members[2] = True
  signals = Signals.from_phi(outputs.phi, members)
  row = run_attacks(["loss_threshold"], signals).metrics["loss_threshold"]
  assert row["num_targets"] == 5
  others = [0, 1, 3, 4, 5]
  plain = run_attacks(
    ["loss_threshold"], Signals.from_phi(outputs.phi[others], members[others])
  ).metrics["loss_threshold"]
  assert {**row, "seconds": 0} == {**plain, "seconds": 0}


def test_unknown_attacks_and_arguments_are_refused_before_anything_runs(outputs, runs):
  with pytest.raises(ValueError, match="did you mean rmia"):
    run_attacks(["lira_global", "rmai"], outputs)
  with pytest.raises(ValueError, match="gama"):
    run_attacks(["lira_global", "base(gama=1)"], outputs)
  assert not runs


def test_an_error_of_an_attack_is_not_swallowed(outputs, memorised):
  with pytest.raises(ValueError, match=r"score is 'psi'; choose from 'phi', 'hinge'"):
    run_attacks(["gap", "lira_online(score='psi')"], outputs)
  with pytest.raises(ValueError, match="draws is 0; pass an integer of at least 1"):
    run_attacks(["label_only_noise(draws=0)"], memorised.signals(), memorised)


def test_finished_attacks_are_found_again(outputs, runs, tmp_path):
  names = ["lira_global", "rmia(gamma=4.0)", "salem_1"]
  first = run_attacks(names[:2], outputs, out=tmp_path)
  assert runs == ["lira_global", "rmia"]
  second = run_attacks(names, outputs, out=tmp_path)
  assert runs == ["lira_global", "rmia", "salem_1"]
  for name in names[:2]:
    np.testing.assert_array_equal(second.scores[name], first.scores[name])
    assert second.scores[name].dtype == np.float64
    plain = {**first.metrics[name], "seconds": 0}
    assert {**second.metrics[name], "seconds": 0} == plain


def test_the_same_attack_with_other_arguments_is_another_one(outputs, tmp_path):
  names = ["rmia", "rmia(gamma=4.0)"]
  findings = run_attacks(names, outputs, out=tmp_path)
  again = run_attacks(names[::-1], outputs, out=tmp_path)
  for name in names:
    np.testing.assert_array_equal(findings.scores[name], again.scores[name])
  assert (findings.scores["rmia"] != findings.scores["rmia(gamma=4.0)"])[:, 20:].any()


def test_what_was_not_run_is_tried_again(memorised, tmp_path):
  signals, budget = memorised.signals(), Budget(targets=1, records=30)
  findings = run_attacks([ASKING], signals, budget=budget, out=tmp_path)
  assert ASKING in findings.not_run
  findings = run_attacks([ASKING], signals, memorised, budget=budget, out=tmp_path)
  assert ASKING in findings.metrics


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"signals": draw(seed=1)}, "signals was '.*', now '.*'"),
    ({"seed": 5}, "seed was 0, now 5"),
    ({"budget": Budget(targets=2)}, "targets was 4, now 2"),
    ({"budget": Budget(records=7)}, "records was 500, now 7"),
    ({"options": {"rmia": {"gamma": 4.0}}}, r"options was None, now .*rmia\.gamma"),
  ],
)
def test_a_folder_of_another_run_is_refused(outputs, runs, tmp_path, change, message):
  run_attacks(["lira_global"], outputs, out=tmp_path)
  options = {"signals": outputs, **change}
  with pytest.raises(ValueError, match=message) as raised:
    run_attacks(["lira_global"], out=tmp_path, **options)
  assert "Choose another out folder" in str(raised.value)
  assert runs == ["lira_global"]


def test_a_folder_of_another_population_is_refused(outputs, tmp_path):
  run_attacks(["attack_p"], outputs, out=tmp_path)
  other = Signals.from_phi(
    outputs.phi,
    outputs.members,
    audited=outputs.audited,
    population=outputs.population.phi + 1,
  )
  with pytest.raises(ValueError, match=r"population was '.*', now '.*'") as raised:
    run_attacks(["attack_p"], other, out=tmp_path)
  assert "signals was" not in str(raised.value)


def test_options_that_hold_signals_are_told_apart_and_found_again(
  outputs, runs, tmp_path
):
  first, second = draw(models=2, seed=8), draw(models=2, seed=9)
  for _ in range(2):
    source = {"salem_2": {"source": first}}
    run_attacks(["lira_global"], outputs, options=source, out=tmp_path)
  assert runs == ["lira_global"]
  assert json.loads((tmp_path / "signature.json").read_text())["options"]
  source = {"salem_2": {"source": second}}
  with pytest.raises(ValueError, match="options was"):
    run_attacks(["lira_global"], outputs, options=source, out=tmp_path)


def change_correct(signals):
  return dataclasses.replace(signals, correct=~signals.correct)


def change_log_probs(signals):
  return dataclasses.replace(signals, log_probs=signals.log_probs - 0.1)


def change_population_labels(signals):
  labels = signals.population.labels[::-1]
  others = dataclasses.replace(signals.population, labels=labels)
  return dataclasses.replace(signals, population=others)


@pytest.mark.parametrize(
  "change", [change_correct, change_log_probs, change_population_labels]
)
def test_all_that_an_attack_may_read_tells_runs_apart(outputs, tmp_path, change):
  run_attacks(["gap"], outputs, out=tmp_path)
  with pytest.raises(ValueError, match=r"(answers|population) was"):
    run_attacks(["gap"], change(outputs), out=tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_scores_without_a_signature_are_those_of_the_call(
  outputs, runs, tmp_path, text, caplog
):
  run_attacks(["lira_global", "gap"], outputs, out=tmp_path)
  signature = tmp_path / "signature.json"
  signature.unlink()
  if text is not None:
    signature.write_text(text)
  other = draw(seed=1)
  findings = run_attacks(["lira_global"], other, out=tmp_path)
  expected = leave_one_out(attacks.lira_global, other)
  np.testing.assert_array_equal(findings.scores["lira_global"], expected)
  assert "lira_global.npz was computed from other inputs" in caplog.text
  assert runs == ["lira_global", "gap", "lira_global"]


def test_scores_of_other_models_with_equal_answers_are_not_taken(memorised, tmp_path):
  signals, how = memorised.signals(), {"budget": Budget(targets=1, records=5)}
  run_attacks([ASKING], signals, memorised, out=tmp_path, **how)
  (kept,) = tmp_path.glob("*.npz")
  written = kept.stat().st_mtime_ns
  run_attacks([ASKING], signals, memorised, out=tmp_path, **how)
  assert kept.stat().st_mtime_ns == written
  params = jax.tree.map(lambda leaf: 2 * leaf, memorised.states.params)
  states = memorised.states._replace(params=params)
  other = dataclasses.replace(memorised, held=states)
  run_attacks([ASKING], signals, other, out=tmp_path, **how)
  assert kept.stat().st_mtime_ns > written


def cut_short(path):
  path.write_bytes(path.read_bytes()[:100])


def exchange(path):
  with np.load(path) as kept:
    arrays = {**kept, "scores": kept["seconds"], "seconds": kept["scores"]}
  np.savez(path, **arrays)


def drop_the_origin(path):
  with np.load(path) as kept:
    arrays = {name: kept[name] for name in ("scores", "seconds")}
  np.savez(path, **arrays)


@pytest.mark.parametrize("damage", [cut_short, exchange, drop_the_origin])
def test_damaged_scores_are_told_and_made_again(
  outputs, runs, tmp_path, damage, caplog
):
  first = run_attacks(["lira_global"], outputs, out=tmp_path)
  damage(tmp_path / "lira_global.npz")
  again = run_attacks(["lira_global"], outputs, out=tmp_path)
  assert runs == ["lira_global"] * 2
  (told,) = [line for line in caplog.messages if "lira_global.npz" in line]
  assert told.endswith("the attack is run again")
  np.testing.assert_array_equal(
    again.scores["lira_global"], first.scores["lira_global"]
  )
  run_attacks(["lira_global"], outputs, out=tmp_path)
  assert runs == ["lira_global"] * 2


def test_long_texts_of_attacks_are_kept_too(outputs, runs, tmp_path):
  name = f"rmia(gamma={'0' * 300}4.5)"
  for _ in range(2):
    run_attacks([name], outputs, out=tmp_path)
  assert runs == ["rmia"]


def test_a_file_that_a_kill_cut_short_is_ignored(outputs, runs, tmp_path):
  first = run_attacks(["lira_global"], outputs, out=tmp_path)
  whole = tmp_path / "lira_global.npz"
  partial = tmp_path / "lira_global.npz.new"
  partial.write_bytes(whole.read_bytes()[:100])
  whole.unlink()
  again = run_attacks(["lira_global"], outputs, out=tmp_path)
  assert runs == ["lira_global"] * 2
  np.testing.assert_array_equal(
    again.scores["lira_global"], first.scores["lira_global"]
  )
  assert whole.exists()
  assert not partial.exists()


@pytest.mark.usefixtures("runs")
def test_an_attack_that_fails_leaves_what_was_finished(outputs, tmp_path):
  with pytest.raises(RuntimeError, match="the device is lost"):
    run_attacks(["base", "attack_r"], outputs, out=tmp_path)
  left = {path.name for path in tmp_path.iterdir()}
  assert left == {"signature.json", "base.npz"}


def test_pitfall_53_the_number_of_members_changes_no_decision():
  rng = np.random.default_rng(0)
  member = np.arange(200) < 100
  phi = rng.normal(size=(4, 200)) + 1.0 * member
  rows = []
  for times in (1, 5):
    chosen = np.r_[np.tile(np.arange(100), times), 100:200]
    signals = Signals.from_phi(phi[:, chosen], np.tile(member[chosen], (4, 1)))
    rows.append(run_attacks(["loss_threshold"], signals).metrics["loss_threshold"])
  once, often = rows
  assert often["num_members"] == 5 * once["num_members"]
  tpr = once["balanced_accuracy"] + once["positive_rate"] - 0.5
  tnr = once["balanced_accuracy"] - once["positive_rate"] + 0.5
  assert often["balanced_accuracy"] == pytest.approx(once["balanced_accuracy"])
  assert often["positive_rate"] == pytest.approx((5 * tpr + 1 - tnr) / 6)
  # Calling the top n members would call just their share of all records.
  assert abs(often["positive_rate"] - 5 / 6) > 0.1


def test_scores_of_other_reconstructions_are_not_taken_for_these(tmp_path):
  rng = np.random.default_rng(0)
  members = rng.random((4, 30)) < 0.5
  first, second = (
    GanSignals(phi=np.zeros((4, 30, 1)), members=members, reconstruction=losses)
    for losses in rng.random((2, 4, 30, 1))
  )
  how = {"catalogue": GAN_ATTACKS, "out": tmp_path}
  run_attacks(["lira_gan_reconstruction"], first, **how)
  with pytest.raises(ValueError, match="reconstruction"):
    run_attacks(["lira_gan_reconstruction"], second, **how)
