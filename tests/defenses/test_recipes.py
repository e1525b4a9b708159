"""Published combinations: their parts, their text, and a step of each."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import DATA, SPEC, ctx_at, rows_at
from defense_harness import Net as TableNet

import mixdef
from mixdef.core.parsing import parse
from mixdef.core.randomness import fold_in_name
from mixdef.defenses import RECIPES, de_et_al, hamp
from mixdef.learners.classifier import classifier

K, SIDE = 3, 6


class Net(nn.Module):
  """A small convolution network with GroupNorm, as the recipe for pictures asks."""

  norm: str = "none"
  weight_standardization: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3))(x)
    if self.norm == "group":
      x = nn.GroupNorm(2)(x)
    return nn.Dense(K)(nn.tanh(x).mean((1, 2)))


PICTURES = DATA._replace(
  x=jax.random.uniform(jax.random.key(0), (len(DATA.x), SIDE, SIDE, 1))
)


def learner_of(defense, net=None):
  return classifier(net or Net(), optax.sgd(1.0), defense)


def init(learner, data=PICTURES):
  return learner.init(jax.random.key(0), SPEC._replace(example=data.x[:1]))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_text_is_that_of_the_parts_and_is_read_back(name):
  made = RECIPES[name]()
  assert name not in str(made).split("|")
  assert str(parse(name)) == str(made) == str(parse(str(made)))
  assert getattr(mixdef, name) is RECIPES[name]


@pytest.mark.parametrize(
  ("text", "parts"),
  [
    (
      "hamp(gamma=0.5, coefficient=0.005)",
      [
        "hamp_label(gamma=0.5)",
        "hamp_entropy(coefficient=0.005, official_scale=True)",
        "hamp_output",
      ],
    ),
    (
      "de_et_al(epsilon=8.0)|weight_decay",
      [
        "random_crop(fill='reflect')",
        "random_flip",
        "group_norm",
        "weight_standardization",
        "dp_sgd(epsilon=8.0, multiplicity=16)",
        "ema",
        "weight_decay",
      ],
    ),
    (
      "de_et_al(2.0, 0.5, delta=1e-6, multiplicity=1)",
      [
        "random_crop(fill='reflect')",
        "random_flip",
        "group_norm",
        "weight_standardization",
        "dp_sgd(noise_multiplier=2.0, clip=0.5, delta=1e-06)",
        "ema",
      ],
    ),
  ],
)
def test_arguments_reach_the_parts(text, parts):
  assert str(parse(text)).split("|") == parts


@pytest.mark.slow
def test_hamp_is_its_three_parts_and_keeps_the_labels():
  learner = learner_of(hamp(0.9), TableNet())
  state = init(learner, DATA)
  for i in range(4):
    state, _ = jax.jit(learner.step)(state, DATA, rows_at(i), ctx_at(i))
  state = learner.finish(state, DATA, jnp.arange(len(DATA.x)) < 8, ctx_at(7))
  raw, released = (learner.predict(state, DATA.x, raw=raw) for raw in (True, False))
  np.testing.assert_array_equal(released.argmax(1), raw.argmax(1))
  assert not np.allclose(released, raw)
  answers = np.sort(released)[:, None]
  pool = np.sort(state.defense["hamp_output"])[None]
  assert (np.abs(answers - pool).max(-1).min(1) < 1e-6).all(), "the model's own answers"


@pytest.mark.slow
def test_a_step_of_de_et_al_is_that_of_a_loop_over_records_and_views():
  """Cropped and flipped views, group norm, one clipping norm a record, no noise."""
  clip, views = 0.05, 3
  defense = de_et_al(0.0, clip, multiplicity=views)
  learner = learner_of(defense)
  state, ctx, rows = init(learner), ctx_at(5), rows_at(5)
  after, _ = jax.jit(learner.step)(state, PICTURES, rows, ctx)
  net = Net(norm="group", weight_standardization=True)
  assert "GroupNorm_0" in state.params

  def view_key(part, record, view):
    key = fold_in_name(ctx.key, "batch", part)
    key = jax.random.fold_in(key, record)
    return jax.random.fold_in(fold_in_name(key, "view"), view) if view else key

  def picture(record, view):
    padded = np.pad(PICTURES.x[record], ((4, 4), (4, 4), (0, 0)), "reflect")
    u, v = jax.random.randint(view_key("random_crop", record, view), (2,), 0, 9)
    x = padded[u : u + SIDE, v : v + SIDE]
    flipped = jax.random.bernoulli(view_key("random_flip", record, view))
    return x[:, ::-1] if flipped else x

  @jax.jit
  def gradient(x, y):
    def loss(params):
      return -jax.nn.log_softmax(net.apply({"params": params}, x[None])[0])[y]

    return jax.grad(loss)(state.params)

  def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

  seen, expected = set(), 0
  for record, weight in zip(np.array(rows.index), np.array(rows.weight), strict=True):
    pictures = [picture(record, view) for view in range(views)]
    seen |= {x.tobytes() for x in pictures}
    each = [flat(gradient(x, PICTURES.y[record])) for x in pictures]
    g = sum(each) / views
    expected -= weight * g * min(1, clip / np.linalg.norm(g)) / SPEC.batch_size
  assert len(seen) > 8, "views differ"
  np.testing.assert_allclose(
    flat(after.params) - flat(state.params), expected, atol=2e-6
  )


def test_de_et_al_is_for_pictures_and_networks_with_the_fields():
  with pytest.raises(ValueError, match="sets the field 'norm'"):
    learner_of(de_et_al(), nn.Dense(K))

  class Flat(Net):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(K)(x)

  learner = learner_of(de_et_al(0.0), Flat())
  with pytest.raises(ValueError, match="random_crop augments images"):
    learner.step(init(learner, DATA), DATA, rows_at(0), ctx_at(0))
