"""The platform that a program is traced for, on which the form of some layers depends.

A program of a training is traced for the platform of its plan, which need not be that
of this machine: so it can be lowered for a TPU on any machine. Code outside of such a
program runs on JAX's default backend.
"""

import contextvars
import functools
from collections.abc import Callable

import jax

_OF_THE_PLAN: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  "platform", default=None
)


def platform() -> str:
  """Return the platform being traced for, "cpu", "gpu" or "tpu".

  It is no part of the keys of JAX's caches. A function that is traced once for all
  programs, such as a `jax.jit` at the top of a module, must therefore not ask for it.
  """
  return _OF_THE_PLAN.get() or jax.default_backend()


def traced_for(name: str, function: Callable) -> Callable:
  """Return the function, inside which `platform()` is `name`.

  >>> traced_for("tpu", platform)()
  'tpu'
  """

  @functools.wraps(function)
  def traced(*args, **kwargs):
    token = _OF_THE_PLAN.set(name)
    try:
      return function(*args, **kwargs)
    finally:
      _OF_THE_PLAN.reset(token)

  return traced
