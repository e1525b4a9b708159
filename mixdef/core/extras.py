"""Optional packages: which extra of mixdef installs them."""

import importlib.util

_EXTRAS = {
  "PIL": "images",
  "datasets": "huggingface",
  "gcsfs": "gcs",
  "jinja2": "report",
  "matplotlib": "report",
  "s3fs": "s3",
  "safetensors": "weights",
}


class MissingPackage(ModuleNotFoundError):
  """An optional package is not installed; the message says how to install it."""


def require(*packages: str) -> None:
  """Raise unless these optional packages are installed.

  Raises:
    MissingPackage: the message names the package and how to install it.

  >>> require("jinja2", "matplotlib")
  """
  for package in packages:
    if importlib.util.find_spec(package) is None:
      extra = _EXTRAS[package]
      raise MissingPackage(
        f"{package} is not installed: pip install 'mixdef[{extra}]'", name=package
      )
