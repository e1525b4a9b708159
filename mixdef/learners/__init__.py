"""Learners: what `fit` and `fit_many` train, classifiers and generative models alike.

`CATALOGUE` has the learners of classifiers that train several networks on disjoint
members, by canonical name: `model_stacking` takes two networks, `ban_mpr` one, and both
take the optimizer next. `GANS` has the learners of generative models, made of networks,
or of the columns and classes of a table.
"""

from mixdef.core import registry
from mixdef.learners.born_again import ban_mpr
from mixdef.learners.classifier import classifier
from mixdef.learners.datalens import datalens
from mixdef.learners.gs_wgan import gs_wgan
from mixdef.learners.medgan import medgan
from mixdef.learners.mlp_wgan import mlp_wgan_gp
from mixdef.learners.priv_gan import priv_gan
from mixdef.learners.stacking import model_stacking
from mixdef.learners.wgan import mixup_gan, par_gan, wgan_gp

CATALOGUE, GANS = registry.LEARNERS, registry.GAN_LEARNERS

__all__ = ["CATALOGUE", "GANS", "classifier", *CATALOGUE, *GANS]
