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


def require(*packages: str) -> None:
  """Raise unless these optional packages are installed.

  Raises:
    ModuleNotFoundError: the message names a missing package and how to install it.

  >>> require("jinja2", "matplotlib")
  """
  for package in packages:
    if importlib.util.find_spec(package) is None:
      extra = _EXTRAS[package]
      raise ModuleNotFoundError(
        f"{package} is not installed: pip install 'mixdef[{extra}]'", name=package
      )
