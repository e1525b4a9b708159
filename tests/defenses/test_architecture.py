"""Defenses that set a field of the network, and per-example clipping with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from per_example_cases import (
  CLIP,
  CTX,
  K,
  assert_close,
  clipped,
  cross_entropy,
  make_batch,
)

from mixdef import models
from mixdef.core import chain
from mixdef.core.hooks import Spec
from mixdef.defenses import group_norm, weight_standardization
from mixdef.defenses.per_example import ghost, microbatch
from mixdef.learners import classifier

# Compiling takes longest here: XLA's own convolution and no optimisation shorten it.
QUICK = {"xla_backend_optimization_level": 0}
FIELDS = {"weight_standardization": True, "lowering": "native"}
NETWORKS = {
  "cnn": models.cnn(K, **FIELDS),
  "resnet": models.resnet(8, num_classes=K, **FIELDS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_ghost_clipping_is_exact_with_standardized_kernels(name, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda *args: said.append(args))
  model, batch = NETWORKS[name], make_batch([1, 1, 0, 1, 1, 1])
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch.x)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype("f") / 5, shapes)
  losses_fn = cross_entropy(model)

  def run(estimator):
    at = jax.jit(
      lambda clip: clipped(estimator, losses_fn, clip=clip, denominator=4.0)(
        params, batch, None, CTX
      ),
      compiler_options=QUICK,
    )
    return at(CLIP), at(1e9)

  (ghosts, free), (ones, _) = run(ghost), run(microbatch)
  assert not said, "ghost clipping handed over to microbatches"
  assert_close(ghosts[1], ones[1])
  np.testing.assert_allclose(ghosts[0][1][0], ones[0][1][0], rtol=1e-4)
  # The control: the clip binds.
  assert optax.tree.norm(ghosts[1]) < 0.9 * optax.tree.norm(free[1])


def test_the_parts_set_the_fields_of_the_networks():
  both = chain(group_norm(), weight_standardization())
  text = classifier(models.resnet(8, norm="batch"), optax.sgd(0.1), both).text
  assert "norm='group'" in text
  assert "weight_standardization=True" in text


def test_a_network_of_the_catalogue_is_told_its_option():
  learner = classifier(models.resnet(8, norm="batch"), optax.sgd(0.1), "dp_sgd(1.0)")
  spec = Spec(jnp.zeros((1, 8, 8, 3)), None, None, 10, 8, 10, 4, 2, 1)
  with pytest.raises(ValueError, match=r"keeps batch_stats.*: use norm='group', or"):
    jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))


@pytest.mark.parametrize(
  ("part", "model", "field"),
  [
    (group_norm(), models.cnn(), "'norm', which CNN lacks"),
    (weight_standardization(), models.mlp(), "'weight_standardization', which MLP"),
  ],
)
def test_a_network_without_the_field_is_refused(part, model, field):
  with pytest.raises(ValueError, match=field):
    classifier(model, optax.sgd(0.1), part)
