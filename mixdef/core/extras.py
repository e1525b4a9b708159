"""Optional packages: which extra of mixdef installs them."""

import importlib.util

_EXTRAS = {
  "PIL": "images",
  "jinja2": "report",
  "matplotlib": "report",
  "s3fs": "s3",
  "gcsfs": "gcs",
}


def require(*packages: str) -> None:
  """Raise unless these optional packages are installed.

  Raises:
    ModuleNotFoundError: naming a missing package and the command that installs it.

  >>> require("jinja2", "matplotlib")
  """
  for package in packages:
    if importlib.util.find_spec(package) is None:
      extra = _EXTRAS[package]
      raise ModuleNotFoundError(
        f"{package} is not installed: pip install 'mixdef[{extra}]'", name=package
      )
