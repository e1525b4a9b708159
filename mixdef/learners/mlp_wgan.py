"""`mlp_wgan_gp`: the WGAN-GP with dense networks, for tables."""

import optax

from mixdef.core.hooks import Defense
from mixdef.core.learner import Learner
from mixdef.core.registry import learner
from mixdef.learners.wgan import ADAM, wgan_gp
from mixdef.models import table_networks


@learner(of="generators")
def mlp_wgan_gp(
  num_features: int,
  num_classes: int,
  optimizer: optax.GradientTransformation = ADAM,
  defense: Defense | None = None,
  *,
  hidden: int = 256,
  latent: int = 128,
  conditional: bool = False,
  **options,
) -> Learner:
  """Create the learner of a WGAN-GP with two dense networks, for tables.

  Args:
    num_features: D, the number of columns of the table, with values in [0,1].
    num_classes: K of the data.
    optimizer: optax optimizer of both networks.
    defense: a defense or chain; None means undefended.
    hidden: width of the hidden layers.
    latent: dimension of z.
    conditional: whether both networks see the condition.
    **options: options of `wgan_gp`.

  Returns:
    The `Learner`: `wgan_gp` applied to `table_networks`.

  Guarantee: that of `wgan_gp`.

  >>> mlp_wgan_gp(736, 100, critic_steps=2).latent
  128
  """
  networks = table_networks(
    *(num_features, num_classes),
    hidden=hidden,
    latent=latent,
    conditional=conditional,
  )
  return wgan_gp(networks, optimizer, defense, **options)
