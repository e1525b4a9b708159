from mixdef.auditing import sweep_tables


def cell(**changes):
  metrics = {
    "auc": 0.8,
    "auc_ci": [0.7, 0.9],
    "balanced_accuracy": 0.6,
    "tpr": {"0.001": {"value": 0.1, "ci": [0.05, 0.2], "resolvable": True}},
  }
  facts = {
    "dataset": "digits",
    "seed": 0,
    "family": "none",
    "defense": "none",
    "num_shadows": 4,
    "epsilon": None,
    "gap_attack": 0.55,
    "test_accuracy": 0.9,
    "test_accuracy_std": 0.01,
    "attacks": {"rmia": metrics},
  }
  return {**facts, **changes}


def test_one_seed_shows_intervals_and_several_their_spread():
  one = sweep_tables.markdown([cell()])
  assert "| 90.0 ± 1.0 | 55.0 | 0.800 [0.700, 0.900] | 10.0 [5.0, 20.0] |" in one
  two = sweep_tables.markdown([cell(), cell(seed=1, test_accuracy=0.8)])
  assert two.count("| digits |") == 1
  assert "| 85.0 ± 7.1 | 55.0 ± 0.0 | 0.800 ± 0.000 | 10.0 ± 0.0 |" in two


def test_an_epsilon_does_not_cover_the_choice_of_a_row():
  assert "is not covered" in sweep_tables.markdown([cell(), cell(epsilon=1.0)])
  assert "is not covered" not in sweep_tables.markdown([cell()])


def test_a_bar_in_a_defense_does_not_end_its_column():
  table = sweep_tables.markdown([cell(defense="mixup|l1")])
  assert r"`mixup\|l1`" in table
