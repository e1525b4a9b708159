"""Model stacking: two networks and a combiner, each on its own third of the members."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.hooks import Data
from mixdef.core.learner import Learner, TrainState
from mixdef.core.randomness import fold_in_name
from mixdef.core.registry import learner
from mixdef.learners._parts import check_phases, part_of, phase_of, step_on
from mixdef.learners.classifier import classifier
from mixdef.models.adapters import adapt

_FIRST_LEVEL = ("first", "second")
_NETWORKS = (*_FIRST_LEVEL, "combiner")  # network i is trained on part i
_PHASES = 3  # of equal length; the last one trains the combiner
_VOTE = 4.0


class LogisticCombiner(nn.Module):
  """A logistic layer on two predictions, initialized to their sharpened average."""

  @nn.compact
  def __call__(self, x):
    """Return logits [B,K] for the two networks' probabilities x [B,2K]."""
    return nn.Dense(x.shape[-1] // 2, kernel_init=_equal_votes)(x)


def _equal_votes(key, shape, dtype=jnp.float32):
  del key
  return _VOTE * jnp.tile(jnp.eye(shape[1], dtype=dtype), (2, 1))


@learner
def model_stacking(models, optimizer, *, combiner=None) -> Learner:
  """Create the learner of ML-Leaks' model stacking.

  The members are split into three disjoint parts A, B and C:

  ```
  f_1 learns from A, f_2 from B       in the first two thirds of the epochs
  g learns from C: (f_1(x), f_2(x))   in the last third, f_1 and f_2 fixed
  output = log_softmax(g(softmax(f_1(x)), softmax(f_2(x))))
  ```

  The combiner therefore learns from predictions on records that neither f_1 nor f_2 was
  trained on. Each network trained in a step processes the whole batch, with weight 0
  for two thirds of it.

  Args:
    models: two different models, as for `classifier`.
    optimizer: optax `GradientTransformation`; each network has its own state, and its
      schedules count that network's steps.
    combiner: model from probabilities [B,2K] to logits [B,K]; defaults to a
      logistic layer.

  Returns:
    The `Learner`. Its metrics are those of the networks trained in the epoch. It does
    not accept a defense, because chains apply only to `classifier` in this version.

  Raises:
    ValueError: for anything but two different modules; at `init`, for fewer than 3
      epochs, or for anything that `classifier` rejects.

  Guarantee: none. Each record trains only one network, but A and B affect the combiner
    through the outputs of f_1 and f_2, and the released output.

  Deviation: the phases are our choice, because the paper does not state a common budget
    of epochs; if it were trained from the start, the inputs of the combiner would keep
    changing. A record's part is drawn from the model's key and the record's id, so the
    parts are thirds only on average. Both first-level models are networks trained by
    gradients. The combiner's initial logits are 4 (p_1 + p_2), which do not depend on
    data, because it is trained for few steps.

  Reference: Salem, Zhang, Humbert, Berrang, Fritz, Backes, ML-Leaks: Model and Data
    Independent Membership Inference Attacks and Defenses on Machine Learning Models,
    NDSS 2019, arXiv 1806.01246.

  >>> import optax
  >>> from mixdef.models import mlp
  >>> model_stacking((mlp(64), mlp(32, 32)), optax.adam(1e-3)).text[:35]
  'model_stacking(models=(MLP(widths=('
  """
  models = _two_models(models)
  adapted = [adapt(model) for model in models]
  texts = [network.text for network in adapted]
  if texts[0] == texts[1]:
    raise ValueError(
      f"model_stacking needs two different models, but got {texts[0]} twice: change "
      "the type or a width of one"
    )
  combiner = LogisticCombiner() if combiner is None else combiner
  learners = {
    name: classifier(module, optimizer)
    for name, module in zip(_NETWORKS, (*models, combiner), strict=True)
  }

  def outputs(networks, x):
    parts = [learners[name].predict(networks[name], x) for name in _FIRST_LEVEL]
    return jnp.exp(jnp.concatenate(parts, -1))

  def init(key, spec):
    check_phases("model_stacking", spec.epochs, _PHASES)
    pair = jnp.zeros((1, 2 * spec.num_classes))
    specs = {"combiner": spec._replace(example=pair)}
    networks = {
      name: learner.init(fold_in_name(key, name), specs.get(name, spec))
      for name, learner in learners.items()
    }
    return _joined(networks, key)

  def step(state, data, rows, ctx):
    part = part_of(state.key, rows.index, len(_NETWORKS))

    def train(name, network, data, rows):
      own = ctx._replace(key=fold_in_name(ctx.key, name))
      chosen = part == _NETWORKS.index(name)
      return step_on(learners[name], network, data, rows, chosen, own)

    def first_level(networks):
      trained = {name: train(name, networks[name], data, rows) for name in _FIRST_LEVEL}
      states = {name: state for name, (state, _) in trained.items()}
      metrics = [metrics for _, metrics in trained.values()]
      return {**networks, **states}, jax.tree.map(lambda a, b: (a + b) / 2, *metrics)

    def second_level(networks):
      here = [leaf[rows.index] for leaf in data]
      seen = Data(outputs(networks, here[0]), *here[1:])
      places = rows._replace(index=jnp.arange(len(rows.index)))
      state, metrics = train("combiner", networks["combiner"], seen, places)
      return {**networks, "combiner": state}, metrics

    networks, metrics = jax.lax.cond(
      phase_of(ctx, _PHASES) < _PHASES - 1, first_level, second_level, _networks(state)
    )
    return _joined(networks, state.key), metrics

  def predict(state, x, *, raw=False):
    del raw  # no hook changes the outputs
    networks = _networks(state)
    return learners["combiner"].predict(networks["combiner"], outputs(networks, x))

  combined = adapt(combiner).text
  text = f"model_stacking(models=({', '.join(texts)}), combiner={combined})"
  names = ", ".join(network.name for network in adapted)
  return Learner(
    *(init, step, None, None, predict),
    text=text,
    defense="model_stacking",
    network=names,
  )


def _two_models(models):
  models = tuple(models) if isinstance(models, tuple | list) else (models,)
  if len(models) != 2:
    raise ValueError(
      f"model_stacking needs two first-level models, not {len(models)}: pass for "
      "example models=(mlp(64), mlp(32, 32))"
    )
  return tuple(m if isinstance(m, nn.Module) else adapt(m) for m in models)


def _networks(state):
  """Return the state of each network by name."""
  return {
    name: TrainState(
      state.params[name],
      state.stats[name],
      state.opt[name] if state.opt else (),  # dropped after training
      {},
      fold_in_name(state.key, name),
    )
    for name in _NETWORKS
  }


def _joined(networks, key):
  params, stats, opt = (
    {name: getattr(network, field) for name, network in networks.items()}
    for field in ("params", "stats", "opt")
  )
  return TrainState(params, stats, opt, {}, key)
