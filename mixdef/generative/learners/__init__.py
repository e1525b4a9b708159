"""Learners of generative models; `fit` and `fit_many` train them as any other."""

from mixdef.generative.learners.wgan import mixup_gan, par_gan, wgan_gp

__all__ = ["mixup_gan", "par_gan", "wgan_gp"]
