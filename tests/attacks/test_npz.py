import numpy as np
import pytest

from mixdef.attacks import Signals


def arrays(models=3, records=12, queries=None, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  views = () if queries is None else (queries,)
  return {
    "logits": rng.normal(size=(models, records, *views, classes)).astype(np.float32),
    "keep": rng.random((models, records)) < 0.5,
    "labels": rng.integers(0, classes, records),
    "audited": np.arange(records) > 1,
    "population_logits": rng.normal(size=(models, 5, *views, classes)),
    "population_labels": rng.integers(0, classes, 5),
  }


def written(folder, **content):
  path = folder / "outputs.npz"
  np.savez_compressed(path, **content)
  return path


@pytest.mark.parametrize("queries", [None, 3])
def test_a_file_gives_the_signals_of_its_arrays(tmp_path, queries):
  content = arrays(queries=queries)
  signals = Signals.from_npz(written(tmp_path, **content))
  expected = Signals.from_logits(
    content["logits"],
    content["labels"],
    content["keep"],
    audited=content["audited"],
    population=(content["population_logits"], content["population_labels"]),
  )
  for name in ("phi", "hinge", "correct", "members", "labels", "audited", "log_probs"):
    np.testing.assert_array_equal(getattr(signals, name), getattr(expected, name))
  np.testing.assert_array_equal(signals.population.phi, expected.population.phi)
  assert signals.phi.shape == (3, 12, queries or 1)


def test_three_arrays_are_enough(tmp_path):
  content = {name: arrays()[name] for name in ("logits", "keep", "labels")}
  signals = Signals.from_npz(str(written(tmp_path, **content)))
  assert signals.audited.all()
  assert signals.population is None


@pytest.mark.parametrize(
  "name", ["logits", "keep", "labels", "population_logits", "population_labels"]
)
def test_a_missing_array_is_named(tmp_path, name):
  content = arrays()
  del content[name]
  with pytest.raises(ValueError, match=rf"outputs\.npz has no .*{name}"):
    Signals.from_npz(written(tmp_path, **content))


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (
      {"kepe": np.ones(3)},
      "has an unknown array 'kepe'; the optional arrays are audited",
    ),
    ({"keep": np.ones((3, 12))}, "keep has type float64; pass bool"),
    ({"keep": np.ones((3, 11), bool)}, r"keep has shape \(3, 11\)"),
    ({"labels": np.full(12, 4)}, r"outside 0\.\.3"),
    ({"logits": np.full((3, 12, 4), np.nan)}, "NaN"),
    ({"population_logits": np.zeros((2, 5, 4))}, "query the same models"),
  ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_name_of_the_file(
  tmp_path, wrong, message
):
  path = written(tmp_path, **{**arrays(), **wrong})
  with pytest.raises(ValueError, match=message) as raised:
    Signals.from_npz(path)
  assert str(raised.value).startswith(str(path))


def test_a_file_that_is_not_there_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none\.npz is missing; write it with"):
    Signals.from_npz(tmp_path / "none.npz")


def _text(path):
  path.write_text("logits")


def _empty(path):
  path.touch()


def _truncated(path):
  whole = written(path.parent, **arrays()).read_bytes()
  path.write_bytes(whole[: len(whole) // 2])


def _one_array(path):
  with path.open("wb") as file:
    np.save(file, np.ones(3))


def _objects(path):
  np.savez(path, **{**arrays(), "labels": np.array([{}] * 12, dtype=object)})


@pytest.mark.parametrize("write", [_text, _empty, _truncated, _one_array, _objects])
def test_a_file_that_is_no_npz_of_plain_arrays_is_refused(tmp_path, write):
  path = tmp_path / "broken.npz"
  write(path)
  with pytest.raises(
    ValueError, match=r"broken\.npz is not an npz of plain arrays"
  ) as e:
    Signals.from_npz(path)
  assert "\n" not in str(e.value)


def views(models=6, records=10, queries=3):
  content = arrays(models, records, queries)
  return Signals.from_logits(
    content["logits"],
    content["labels"],
    content["keep"],
    audited=content["audited"],
    population=(content["population_logits"], content["population_labels"]),
  )


def same(one, other):
  for name in ("phi", "hinge", "correct", "members", "labels", "audited", "log_probs"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  np.testing.assert_array_equal(one.loss, other.loss)


def test_the_first_models_are_those_of_signals_that_never_had_the_others():
  signals, content = views(), arrays(6, 10, 3)
  signals.loss  # noqa: B018  a cached one must not survive the cut
  part = signals.first_models(4)
  same(
    part,
    Signals.from_logits(
      content["logits"][:4],
      content["labels"],
      content["keep"][:4],
      audited=content["audited"],
    ),
  )
  np.testing.assert_array_equal(part.population.phi, signals.population.phi[:4])
  assert len(signals.members) == 6
  assert views().first_models(6).phi.shape == signals.phi.shape


def test_the_first_view_is_the_record_itself():
  signals, content = views(), arrays(6, 10, 3)
  signals.loss  # noqa: B018
  single = signals.first_view()
  same(
    single,
    Signals.from_logits(
      content["logits"][:, :, 0],
      content["labels"],
      content["keep"],
      audited=content["audited"],
    ),
  )
  np.testing.assert_array_equal(single.population.phi, signals.population.phi[:, :, :1])


def test_cuts_keep_what_is_missing_missing():
  signals = Signals.from_phi(np.zeros((4, 5, 2)), np.ones((4, 5), bool))
  for part in (signals.first_models(2), signals.first_view()):
    assert part.hinge is part.correct is part.log_probs is part.population is None
