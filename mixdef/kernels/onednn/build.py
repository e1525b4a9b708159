"""Builds the library of oneDNN convolutions on first use."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import tempfile

import jax

from mixdef.core import caches
from mixdef.core.platform import platform

TARGETS = ("mixdef_convolution", "mixdef_input_gradient", "mixdef_kernel_gradient")

_SOURCE = pathlib.Path(__file__).with_name("convolution.cc")
_OTHERWISE = "or use lowering='auto'"


@functools.cache
def library() -> pathlib.Path:
  """Return the compiled library from the user's cache folder, building it if needed.

  Raises:
    ValueError: if oneDNN or a C++ compiler is missing, or the compiler fails.
  """
  dnnl = _installed("onednn-cpu-gomp", "libdnnl.so")
  include = _installed("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp").parents[2]
  # Treated as system headers, to suppress their warnings.
  headers = [f"-isystem{folder}" for folder in (include, jax.ffi.include_dir())]
  options = ["-O2", "-std=c++17", "-shared", "-fPIC", *headers, str(_SOURCE)]
  options += [str(dnnl), f"-Wl,-rpath,{dnnl.parent}"]
  made_of = [jax.__version__, importlib.metadata.version("onednn-cpu-gomp"), *options]
  text = "\n".join([*made_of, _SOURCE.read_text(encoding="utf-8")])
  folder = caches.folder("onednn") or pathlib.Path(tempfile.mkdtemp())
  built = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
  if not built.exists():
    _compile(options, built)
  return built


def register() -> None:
  """Register the library's functions with XLA as `TARGETS`.

  Raises:
    ValueError: if the program is not for a CPU, and as in `library`.
  """
  if platform() != "cpu":
    raise ValueError(
      f"lowering='onednn' is for CPUs, but the program is for {platform()!r}: use "
      "lowering='auto'"
    )
  _register()


@functools.cache
def _register():
  functions = ctypes.CDLL(str(library()))
  for name in TARGETS:
    capsule = jax.ffi.pycapsule(getattr(functions, name))
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _installed(wheel: str, ending: str) -> pathlib.Path:
  """Return the path of an installed file of a wheel."""
  try:
    files = importlib.metadata.files(wheel) or ()
  except importlib.metadata.PackageNotFoundError:
    files = ()
  for file in files:
    if file.as_posix().endswith(f"/{ending}"):
      return pathlib.Path(str(file.locate())).resolve()
  raise ValueError(
    f"lowering='onednn' needs {wheel}, which is not installed: "
    f"pip install 'mixdef[onednn]' (Linux on x86_64), {_OTHERWISE}"
  )


def _compile(options: list[str], built: pathlib.Path) -> None:
  compiler = shutil.which("c++")
  if compiler is None:
    raise ValueError(
      "lowering='onednn' needs a C++ compiler, but there is no c++ on the path: "
      f"install g++ or clang, {_OTHERWISE}"
    )
  built.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=built.parent) as folder:
    fresh = pathlib.Path(folder) / built.name
    done = subprocess.run(
      [compiler, *options, "-o", str(fresh)], capture_output=True, text=True
    )
    if done.returncode:
      lines = [line for line in done.stderr.splitlines() if "error" in line]
      raise ValueError(
        f"{compiler} cannot build lowering='onednn' "
        f"({lines[0] if lines else f'exit code {done.returncode}'}): use another "
        f"compiler, {_OTHERWISE}"
      )
    # Concurrent builds are safe: each atomically replaces the file by an equal one.
    os.replace(fresh, built)
