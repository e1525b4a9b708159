"""Know the files that desktops leave in folders."""

import os
import pathlib

_NAMES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r")


def is_clutter(path: str | os.PathLike[str]) -> bool:
  """Tell whether a desktop made this file or folder: it is nobody's data.

  Args:
    path: of a file or folder; only its name counts.

  Returns:
    True for hidden files, such as macOS's `.DS_Store` and `._name`, for its folder
    `__MACOSX`, and for Windows' `Thumbs.db` and `desktop.ini`.

  >>> [name for name in ("._1.jpg", "Thumbs.db", "1.jpg") if not is_clutter(name)]
  ['1.jpg']
  """
  name = pathlib.PurePath(path).name
  return name.startswith(".") or name.lower() in _NAMES
