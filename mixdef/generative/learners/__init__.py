"""Learners of generative models; `fit` and `fit_many` train them as any other."""

from mixdef.generative.learners.datalens import datalens
from mixdef.generative.learners.gs_wgan import gs_wgan
from mixdef.generative.learners.medgan import medgan
from mixdef.generative.learners.mlp_wgan import mlp_wgan_gp
from mixdef.generative.learners.priv_gan import priv_gan
from mixdef.generative.learners.wgan import mixup_gan, par_gan, wgan_gp

CATALOGUE = {
  make.__name__: make
  for make in (
    *(datalens, gs_wgan, medgan, mixup_gan),
    *(mlp_wgan_gp, par_gan, priv_gan, wgan_gp),
  )
}
"""Learners by name, made of networks, or of the columns and classes of a table."""

__all__ = [
  "CATALOGUE",
  "datalens",
  "gs_wgan",
  "medgan",
  "mixup_gan",
  "mlp_wgan_gp",
  "par_gan",
  "priv_gan",
  "wgan_gp",
]
