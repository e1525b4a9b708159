"""Learners, trained by `fit` and `fit_many`: classifiers and generative models.

`CATALOGUE` contains, by canonical name, the learners of classifiers that train several
networks on disjoint members: `model_stacking` accepts two networks, `ban_mpr` one, and
the second argument of both is the optimizer. `GANS` contains the learners of
generative models, built from networks, or from the columns and classes of a table.
"""

from mixdef.core import registry
from mixdef.learners.born_again import ban_mpr
from mixdef.learners.classifier import classifier
from mixdef.learners.datalens import datalens
from mixdef.learners.gs_wgan import gs_wgan
from mixdef.learners.medgan import medgan
from mixdef.learners.priv_gan import priv_gan
from mixdef.learners.stacking import model_stacking
from mixdef.learners.wgan import mixup_gan, mlp_wgan_gp, par_gan, wgan_gp

CATALOGUE, GANS = registry.LEARNERS, registry.GAN_LEARNERS

__all__ = ["CATALOGUE", "GANS", "classifier", *CATALOGUE.registered, *GANS.registered]
