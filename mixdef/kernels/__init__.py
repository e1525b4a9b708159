"""Operations of networks that are lowered for the machine they run on."""

from mixdef.kernels.convolution import convolution
from mixdef.kernels.pooling import max_pool

__all__ = ["convolution", "max_pool"]
