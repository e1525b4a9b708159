"""How far one record moves a noiseless step of DP-SGD, in units of C / B.

The claim of `dp_sgd` is that this is at most 1, whatever the chain, the network and the
other records are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.hooks import Ctx, Data, Rows, Spec

B, K, WIDTH, EPOCHS = 4, 3, 5, 3
CLIP = 0.1
SPEC = Spec(
  example=jnp.zeros((1, WIDTH)),
  variables=None,
  table=None,
  num_records=B,
  num_members=B,
  num_classes=K,
  batch_size=B,
  steps_per_epoch=1,
  epochs=EPOCHS,
)


def sensitivity(learner, params=lambda state: state.params, *, scales=(1.0, 30.0)):
  """Remove every record in turn, in two ways, at several scales of the records.

  Args:
    learner: one that descends with rate 1 and no noise.
    params: which parameters the records reach.
    scales: of the records.

  Returns:
    The largest distance of two steps that differ in one record, over C / B.
  """
  rng = np.random.default_rng(0)
  everyone = (np.arange(B), np.ones(B))
  cases = [everyone]
  for out in range(B):
    others = np.delete(np.arange(B), out)
    cases.append((np.arange(B), np.arange(B) != out))  # its place becomes padding
    padded = np.append(others, others[0])  # or those behind it move up
    cases.append((padded, np.arange(B) < B - 1))
  index, weight = (jnp.asarray(np.stack(column)) for column in zip(*cases, strict=True))
  state = jax.jit(lambda: learner.init(jax.random.key(0), SPEC))()

  def step(x, y, index, weight, epoch):
    data = Data(x, y, jnp.zeros(B, bool))
    rows = Rows(index, weight.astype(jnp.float32), jnp.zeros(B))
    ctx = Ctx(jax.random.key(7), epoch, epoch, EPOCHS, 1, B)
    after = params(learner.step(state, data, rows, ctx)[0])
    leaves = zip(jax.tree.leaves(after), jax.tree.leaves(params(state)), strict=True)
    return jnp.concatenate([(a - b).ravel() for a, b in leaves])

  run = jax.jit(jax.vmap(step, (None, None, 0, 0, None)))
  worst = 0.0
  for scale in scales:
    x = jnp.asarray(scale * rng.normal(size=(B, WIDTH)), jnp.float32)
    y = jnp.asarray(rng.integers(0, K, B))
    for epoch in (0, EPOCHS - 1):
      moves = np.asarray(run(x, y, index, weight, jnp.int32(epoch)), np.float64)
      worst = max(worst, np.linalg.norm(moves[1:] - moves[0], axis=1).max())
  return worst * B / CLIP
