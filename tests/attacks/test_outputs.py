import ml_dtypes
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from mixdef.attacks import Signals

MODELS, RECORDS, UNSEEN, CLASSES = 3, 40, 9, 5


def logits_of(records=RECORDS, seed=0, classes=CLASSES):
  return np.random.default_rng(seed).normal(0, 3, (MODELS, records, classes))


def inputs(**changed):
  random = np.random.default_rng(1)
  return {
    "logits": logits_of(),
    "labels": random.integers(CLASSES, size=RECORDS),
    "members": random.random((MODELS, RECORDS)) < 0.5,
    **changed,
  }


P = softmax(logits_of(), -1)
FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
def test_probabilities_are_refused_with_what_to_pass(dtype):
  with pytest.raises(
    ValueError, match=r"logits\[0\] holds probabilities; pass np\.log"
  ):
    Signals.from_logits(**inputs(logits=P.astype(dtype)))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (100 * P, r"percentages; pass np\.log\(np\.maximum\(p / 100"),
    (np.round(100 * P, 1), "percentages"),
    (np.round(P, 3), "probabilities"),
    (np.eye(CLASSES, dtype=int)[P.argmax(-1)], "probabilities"),
    (-np.log(P), "negated log-probabilities; pass them with the opposite sign"),
    (np.log2(P), r"base 2; multiply them by np\.log\(2\)"),
    (np.log10(P), r"base 10; multiply them by np\.log\(10\)"),
    (np.stack([logits_of()[0], logits_of()[1], P[2]]), r"logits\[2\] holds probab"),
    (np.stack([logits_of(), P], 2), r"logits\[0\] \(view 1\) holds probabilities"),
    (
      1 / (1 + np.exp(-logits_of())),
      r"values in \[0, 1\] only, like confidences; pass",
    ),
    (np.stack([logits_of(), 1 - P], 2), r"logits\[0\] \(view 1\) holds values in"),
    (np.round(255 * P).astype(np.uint8), r"sum to 25\d.*, like probabilities times"),
    (1000 * P, r"pass np\.log\(np\.maximum\(p / 1000, 1e-30\)\)"),
    (P > 0.5, "logits are bool, which are decisions"),
  ],
)
def test_outputs_on_another_scale_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    Signals.from_logits(**inputs(logits=values))


def test_a_population_of_probabilities_is_refused():
  z = softmax(logits_of(UNSEEN, seed=5), -1), np.arange(UNSEEN) % CLASSES
  with pytest.raises(ValueError, match=r"population logits\[0\] holds probabilities"):
    Signals.from_logits(**inputs(population=z))


@pytest.mark.parametrize("dtype", [*FLOATS, np.longdouble])
def test_log_probabilities_say_what_logits_say(dtype):
  plain = Signals.from_logits(**inputs())
  same = Signals.from_logits(
    **inputs(logits=log_softmax(logits_of(), -1).astype(dtype))
  )
  worst = {np.float16: 0.03, ml_dtypes.bfloat16: 0.2}.get(dtype, 1e-4)
  np.testing.assert_allclose(same.phi, plain.phi, atol=worst)


@pytest.mark.parametrize(
  "values",
  [
    np.round(4 * logits_of()).astype(np.int8),  # quantized
    np.maximum(logits_of(), 0) + 1e-3,
    2 * np.random.default_rng(0).random((MODELS, RECORDS, CLASSES)),
    np.zeros((MODELS, RECORDS, CLASSES)),
    np.where(np.eye(CLASSES)[P.argmax(-1)] > 0, 0.0, -40.0),  # sure of every record
    np.where(np.eye(CLASSES)[P.argmax(-1)] > 0, 0.0, -np.inf),
    np.stack([np.zeros((MODELS, RECORDS)), logits_of()[..., 0]], -1)[..., [0, 1, 1]],
  ],
)
def test_unusual_logits_are_logits(values):
  labels = np.zeros(RECORDS, int)
  assert Signals.from_logits(**inputs(logits=values, labels=labels)).phi.ndim == 3


def test_some_rows_that_happen_to_sum_to_one_are_no_probabilities():
  values = logits_of()
  values[0, : RECORDS - 1] = P[0, : RECORDS - 1]
  Signals.from_logits(**inputs(logits=values))


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"logits": logits_of()[..., :1]}, r"np\.stack\(\[np\.zeros_like\(z\), z\], -1\)"),
    ({"logits": logits_of()[..., 0]}, r"np\.stack\(\[np\.zeros_like\(z\), z\], -1\)"),
    ({"logits": logits_of().swapaxes(0, 1)}, r"logits\.transpose\(1, 0, 2\)"),
    ({"logits": logits_of().swapaxes(1, 2)}, r"logits\.transpose\(0, 2, 1\)"),
    ({"logits": logits_of().T}, r"logits\.transpose\(2, 1, 0\)"),
    (
      {"logits": logits_of()[0], "members": np.ones((1, RECORDS), bool)},
      r"logits\[None\]",
    ),
    ({"logits": logits_of()[0]}, r"pass \[3, 40, K\] or \[3, 40, Q, K\]"),
    ({"logits": logits_of()[:2]}, r"shape \(2, 40, 5\); pass \[3, 40, K\]"),
    (
      {"members": inputs()["members"].T},
      r"members has shape \(40, 3\); pass .*members\.T",
    ),
    (
      {"members": inputs()["members"].astype(int)},
      r"type int64; .*members\.astype\(bool\)",
    ),
    (
      {"members": inputs()["members"][0]},
      r"members has shape \(40,\); .*members\[None\]",
    ),
    (
      {"members": inputs()["members"][:, 1:]},
      r"members has shape \(3, 39\); pass \[3, 40\]",
    ),
    (
      {"members": [np.flatnonzero(k) for k in inputs()["members"]]},
      "members is ragged",
    ),
    (
      {"members": np.ma.array(inputs()["members"], mask=True)},
      "members is a masked array",
    ),
    ({"labels": inputs()["labels"][:9]}, r"labels have shape \(9,\); pass \[40\]"),
    ({"labels": np.eye(CLASSES)[inputs()["labels"]]}, r"y\.argmax\(1\) for one-hot"),
    ({"labels": inputs()["labels"] * 1.0}, r"labels are integers: y\.astype\(int\)"),
    ({"labels": inputs()["labels"] * 0.3}, "only classification"),
    ({"labels": inputs()["labels"] - 9}, r"labels\[0\] is -\d; labels run from 0"),
    ({"labels": np.full(RECORDS, np.nan)}, r"labels\[0\] is nan; remove records"),
    ({"labels": np.full(RECORDS, "cat")}, r"np\.unique\(labels, return_inverse"),
    ({"labels": np.full(RECORDS, CLASSES)}, r"40 values outside 0\.\.4"),
    ({"logits": np.ma.array(logits_of(), mask=True)}, "logits is a masked array"),
    ({"logits": logits_of() * 1j}, "logits has type complex128; pass real numbers"),
    ({"logits": logits_of().astype(object)}, "type object; .* Python objects"),
    ({"logits": logits_of().astype(str)}, "type <U32; .* text"),
    (
      {"logits": np.zeros((3, 40, 5), "V2")},
      r"type \|V2; .*bfloat16 in this way; save it as",
    ),
    ({"logits": np.zeros((3, 40, 5), "M8[s]")}, "holds dates"),
    ({"logits": None}, "logits is None; pass an array"),
    (
      {"logits": np.stack([logits_of()] * 2, 3), "labels": np.arange(RECORDS) % 5},
      r"if the classes are on axis 2, pass logits\.swapaxes\(2, 3\)",
    ),
    ({"ids": np.ma.array(np.arange(RECORDS), mask=True)}, "ids are a masked array"),
    ({"groups": np.ma.array(np.arange(RECORDS), mask=True)}, "groups are a masked"),
    ({"groups": [[1], [2, 3]] * 20}, r"groups are ragged; pass \[N\]"),
    ({"audited": np.ones(RECORDS)}, r"audited\.astype\(bool\)"),
    ({"ids": np.zeros(RECORDS, int)}, "ids contain 0 40 times"),
    ({"ids": np.arange(9)}, r"ids have shape \(9,\); pass \[40\]"),
    ({"ids": np.arange(RECORDS) / 2}, "ids have type float64; pass"),
  ],
)
def test_arrays_that_mean_something_else_are_refused_with_the_fix(changed, message):
  with pytest.raises(ValueError, match=message) as raised:
    Signals.from_logits(**inputs(**changed))
  assert "\n" not in str(raised.value)


def population(logits, labels=None):
  labels = np.zeros(len(logits[0]), int) if labels is None else labels
  return {"population": (logits, labels)}


@pytest.mark.parametrize(
  ("others", "message"),
  [
    (population(logits_of(), inputs()["labels"]), "40 of the 40 records of the popul"),
    (population(logits_of()[:, 7:19], inputs()["labels"][7:19]), "12 of the 12 rec"),
    (
      population(
        np.concatenate([logits_of(UNSEEN, seed=5), logits_of()[:, :3]], 1),
        np.concatenate([np.zeros(UNSEEN, int), inputs()["labels"][:3]]),
      ),
      "3 of the 12 records of the population, the first at 9, have the same out",
    ),
    (
      population(logits_of(UNSEEN, seed=5)[:2]),
      "query the same models with the same v",
    ),
    (
      population(logits_of(UNSEEN, classes=4)),
      "query the same models with the same vi",
    ),
    (
      population(logits_of(UNSEEN)[:, :, None]),
      "query the same models with the same v",
    ),
    (
      {"population": logits_of(UNSEEN)},
      r"population is not a pair .* \(logits, labels\)",
    ),
  ],
)
def test_a_population_that_cannot_be_one_is_refused(others, message):
  with pytest.raises(ValueError, match=message):
    Signals.from_logits(**inputs(**others))


def test_outputs_that_differ_by_rounding_are_copies_all_the_same():
  noise = 1e-6 * np.random.default_rng(3).normal(size=logits_of().shape)
  with pytest.raises(ValueError, match=r"of the 40 records of the population"):
    Signals.from_logits(**inputs(**population(logits_of() + noise, inputs()["labels"])))
  plain = Signals.from_logits(**inputs())
  with pytest.raises(ValueError, match="40 of the 40 records of the population"):
    Signals.from_phi(plain.phi, plain.members, population=plain.phi)


def test_a_population_as_coarse_as_the_records_is_taken():
  # A decision stump has few outputs: records agree in all models, as do others.
  coarse, unseen = np.round(logits_of() / 4), np.round(logits_of(200, seed=5) / 4)
  coarse, unseen = coarse[..., [0, 0, 1, 1, 1]], unseen[..., [0, 0, 1, 1, 1]]
  labels = np.zeros(RECORDS, int)
  others = population(unseen)
  assert Signals.from_logits(
    **inputs(logits=coarse, labels=labels, **others)
  ).population


def test_names_of_records_are_read(tmp_path):
  names = np.array([f"patient {i}" for i in range(RECORDS)])
  arrays = inputs(ids=names)
  np.savez(tmp_path / "outputs.npz", keep=arrays.pop("members"), **arrays)
  np.testing.assert_array_equal(Signals.from_npz(tmp_path / "outputs.npz").ids, names)
  assert Signals.from_logits(**inputs()).ids is None
