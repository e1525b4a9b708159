"""Network operations with implementations chosen for the hardware."""

from mixdef.kernels.convolution import convolution
from mixdef.kernels.pooling import max_pool

__all__ = ["convolution", "max_pool"]
