import re

import pytest

from mixdef.data import CATALOGUE, load

# Sets that are read from files; without a file, nothing is downloaded here.
FILES = sorted(n for n, reader in CATALOGUE.items() if reader.files and n != "lfw")


@pytest.mark.parametrize(
  ("name", "close"),
  [
    ("CIFAR-10", "cifar10"),
    ("cifar 100", "cifar100"),
    ("Fashion-MNIST", "fashion_mnist"),
    ("fashionmnist", "fashion_mnist"),
    ("MNIST ", "mnist"),
    ("purchase", "purchase100"),
    ("texas", "texas100"),
    ("location", "location30"),
    ("mimic", "mimic3"),
    ("HAM", "ham10000"),
    ("CelebA", "celeba"),
    ("memorize", "synthetic_memorize"),
    ("", "digits"),
  ],
)
def test_a_misspelled_name_gets_the_close_ones(name, close):
  with pytest.raises(
    ValueError, match=rf"^unknown data set {name!r}; similar: .*{close}\b"
  ):
    load(name)


@pytest.mark.parametrize("name", [None, 3, ["mnist"], b"mnist"])
def test_a_name_is_text(name):
  with pytest.raises(TypeError, match=f"^name is {type(name).__name__}; pass the name"):
    load(name)


@pytest.mark.parametrize("data_dir", [3, ["data"], b"data", True])
def test_a_folder_is_a_path(data_dir):
  with pytest.raises(TypeError, match=rf"^data_dir={re.escape(repr(data_dir))} must"):
    load("digits", data_dir=data_dir)


def test_a_folder_that_is_none_is_told(tmp_path, monkeypatch):
  file = tmp_path / "mnist.gz"
  file.write_text("")
  with pytest.raises(ValueError, match=f"^data_dir={file} is a file; pass the folder"):
    load("mnist", data_dir=file)
  with pytest.raises(ValueError, match=r"^data_dir is empty: pass the path of a fi"):
    load("mnist", data_dir="")
  monkeypatch.setenv("MIXDEF_DATA", str(file))
  with pytest.raises(ValueError, match=f"^MIXDEF_DATA={file} is a file; pass the"):
    load("mnist")


@pytest.mark.parametrize("data_dir", ["~nobody_of_this_name/data", "a\0b", "a" * 5000])
def test_a_folder_that_cannot_be_is_one_line(data_dir):
  with pytest.raises(ValueError, match=r"^data_dir='.*': .*") as caught:
    load("mnist", data_dir=data_dir)
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", FILES)
def test_a_missing_set_says_what_is_there(tmp_path, name):
  folder = tmp_path / "nowhere"
  with pytest.raises(FileNotFoundError, match=f"^{name}: .*no such folder") as caught:
    load(name, data_dir=folder)
  assert "\n" not in str(caught.value)
  folder.mkdir()
  (folder / "notes.txt").write_text("")
  (folder / ".DS_Store").write_text("")
  with pytest.raises(FileNotFoundError, match=r"it contains notes.txt\)"):
    load(name, data_dir=folder)
