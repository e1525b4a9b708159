"""Flags of XLA that halve the time of compiling, where the installed XLA has them."""

import os
import subprocess
import sys

_QUICK = (
  "--xla_backend_optimization_level=0",
  # A program of one operation compiles in half the time; gone from jax 0.12.
  "--xla_cpu_use_fusion_emitters=false",
)
# The smallest program that makes XLA read its flags.
_READ_FLAGS = """
from jaxlib import _jax
_jax.CompileOptions().executable_build_options.debug_options
"""


def known(flag: str) -> bool:
  """Tell whether the installed XLA accepts a flag: it ends the process on others."""
  tried = subprocess.run(
    [sys.executable, "-c", _READ_FLAGS],
    env={**os.environ, "XLA_FLAGS": flag},
    capture_output=True,
    check=False,
  )
  return tried.returncode == 0


def quick_compile(flags: str) -> str:
  """Return `flags` with those added that compile quickly and that XLA knows."""
  given = {flag.split("=")[0] for flag in flags.split()}
  missing = [flag for flag in _QUICK if flag.split("=")[0] not in given]
  return " ".join([*flags.split(), *(flag for flag in missing if known(flag))])
