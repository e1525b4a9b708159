import numpy as np
import PIL.Image
import pytest

from mixdef.data import ham10000, image_folder, load


def save(path, level, *, size=(90, 90), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.new("L", size, level).convert(mode).save(path, quality=95)


def levels(x):
  assert (x.shape[1:], x.dtype) == ((64, 64, 3), np.uint8)
  assert (np.ptp(x.astype(int), axis=(1, 2, 3)) <= 2).all()
  return np.round(x.mean((1, 2, 3))).astype(int).tolist()


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_square_is_the_largest_one_in_the_centre(shape):
  pixels = np.full((*shape, 3), 255, np.uint8)
  centre = pixels[:, 32:128] if shape[0] < shape[1] else pixels[32:128]
  centre[:] = 7
  assert (image_folder.square(pixels) == 7).all()
  assert (image_folder.square(np.full((*shape, 3), 9, np.uint8), crop=20) == 9).all()


def test_square_keeps_the_pixels_of_its_own_size():
  pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
  np.testing.assert_array_equal(image_folder.square(pixels), pixels[:, 8:72])


def write_faces(folder, people=(("0000100", 100), ("0000045", 101), ("0000099", 99))):
  for person, (identity, count) in enumerate(people):
    for i in range(count):
      mode = "L" if i % 7 == 0 else "RGB"
      save(folder / identity / f"{i:03d}.jpg", 100 * person + i % 3, mode=mode)
  (folder / "readme.txt").write_text("")


@pytest.mark.parametrize("folder", ["casia_face", "CASIA-WebFace"])
def test_casia_has_the_identities_with_a_hundred_images(tmp_path, folder):
  write_faces(tmp_path / folder)
  data = load("casia_face", data_dir=tmp_path)
  assert (data.name, data.num_classes, data.test) == ("casia_face", 2, None)
  # Sorted by name, 0000045 comes before 0000100, and 0000099 is too small.
  assert np.bincount(data.y).tolist() == [101, 100]
  wanted = [100 + i % 3 for i in range(101)] + [i % 3 for i in range(100)]
  assert np.abs(np.subtract(levels(data.x), wanted)).max() <= 1


def test_a_wrong_casia_is_named(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    load("casia_face", data_dir=tmp_path)
  for part in (
    f"casia_face: {tmp_path}/casia_face needs <class>/*.jpg",
    "under a signed agree",
  ):
    assert part in str(caught.value)
  write_faces(tmp_path / "casia_face", (("a", 100), ("b", 99), ("c", 3)))
  with pytest.raises(
    ValueError, match=r"casia_face: 1 of its 3 subfolders hold at least 1"
  ):
    load("casia_face", data_dir=tmp_path)
  save(tmp_path / "casia_face" / "b" / "999.jpg", 3)
  (tmp_path / "casia_face" / "b" / "050.jpg").write_text("<html>")
  with pytest.raises(
    ValueError, match=rf"^{tmp_path}/casia_face/b/050.jpg is damaged: can"
  ):
    load("casia_face", data_dir=tmp_path)


HAM = [("ISIC_3", "nv"), ("ISIC_1", "akiec"), ("ISIC_2", "vasc"), ("ISIC_7", "mel")]


def write_ham(folder, rows=HAM, *, folders=("HAM10000_images_part_1", "images")):
  folder.mkdir(exist_ok=True)
  for i, (image, _) in enumerate(rows):
    save(folder / folders[i % 2] / f"{image}.jpg", 30 * i, size=(120, 90))
  lines = ["lesion_id,image_id,dx,dx_type,age"]
  lines += [
    f"HAM_{i // 2},{image},{dx},histo,80.0" for i, (image, dx) in enumerate(rows)
  ]
  (folder / "HAM10000_metadata.csv").write_text("\r\n".join(lines) + "\r\n")


@pytest.mark.parametrize("folder", ["ham10000", "."])
@pytest.mark.parametrize(
  "folders",
  [("HAM10000_images_part_1", "HAM10000_images_part_2"), ("images", "images")],
)
def test_ham10000_comes_in_the_order_of_the_metadata(tmp_path, folder, folders):
  write_ham(tmp_path / folder, folders=folders)
  data = ham10000.read(tmp_path, num_images=4)
  assert (data.name, data.num_classes, data.test) == ("ham10000", 7, None)
  assert (levels(data.x), data.y.tolist()) == ([0, 30, 60, 90], [5, 0, 6, 4])


def test_a_wrong_ham10000_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"ham10000 needs HAM10000_meta.*DBW86T"):
    load("ham10000", data_dir=tmp_path)
  write_ham(tmp_path)
  with pytest.raises(ValueError, match="is not HAM10000's: it lists 4 images, not 100"):
    load("ham10000", data_dir=tmp_path)
  path = tmp_path / "HAM10000_images_part_1" / "ISIC_3.jpg"
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match=rf"^{path} is damaged: "):
    ham10000.read(tmp_path, num_images=4)
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks 1 of 4 images, .* ISIC_3.jpg; p"):
    ham10000.read(tmp_path, num_images=4)
  write_ham(tmp_path, [*HAM[:3], ("ISIC_7", "melanoma")])
  with pytest.raises(ValueError, match=r"metadata.csv .* ISIC_7 has dx 'melanoma'"):
    ham10000.read(tmp_path, num_images=4)
  (tmp_path / "HAM10000_metadata.csv").write_text("image_id,dx\nISIC_3\n")
  with pytest.raises(ValueError, match=r"metadata.csv .* line 2 has 1 fields, not 2"):
    ham10000.read(tmp_path, num_images=4)
  (tmp_path / "HAM10000_metadata.csv").write_text("image,dx\nISIC_3,nv\n")
  with pytest.raises(ValueError, match=r"metadata.csv .* no column image_id"):
    ham10000.read(tmp_path, num_images=4)
