"""Images: scikit-learn's digits and .npz files; copies are moves of the image, and what is no image file is refused."""

import io
import os
import pathlib
import zipfile

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.data import image_archive
from jpmhc_jax.data.image_archive import ARRAYS


def _build(**options):
  config = schema.Data(kind="images", epochs_per_interval=1, images=schema.ImageData(**options))
  return data.build(config, batch_size=8, seed=0)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (12, 4, 6, 3), np.uint8)
  labels = np.arange(12) % 3
  return {"x_train": images[:9], "y_train": labels[:9], "x_test": images[9:], "y_test": labels[9:]}


@pytest.fixture
def file(tmp_path, arrays):
  def write(**changes):
    np.savez(
      tmp_path / "images.npz", **{name: value for name, value in (arrays | changes).items() if value is not None}
    )
    return str(tmp_path / "images.npz")

  return write


def test_the_digits_are_split_once_and_for_all():
  dataset = _build()
  assert (dataset.train.groups, dataset.evaluation.examples) == (1438, 359)
  assert (dataset.image.values, dataset.image.top, dataset.image.classes) == (64, 16, 10)
  seen = {dataset.train.encode(np.array([9 * k]))[0].tobytes() for k in range(1438)}
  held = dataset.evaluation.encode(np.arange(359))[0]
  assert not any(row.tobytes() in seen for row in held)  # no digit is on both sides
  assert _build().content == dataset.content != _build(shift=0).content


def test_batches_of_the_sources_of_version_0_1_have_its_dtype(file):
  """A checkpoint holds a batch: runs that began then go on."""
  for dataset, dtype in ((_build(), np.int32), (_build(file=file()), np.int32), (_build(builtin="shapes"), np.uint8)):
    assert dataset.element_spec["inputs"].dtype == dataset.batch(0)["inputs"].dtype == dtype


def test_copies_are_moves_and_mirror_images_of_the_image(file, arrays):
  dataset = _build(file=file(), shift=1, mirror=True)
  image = arrays["x_train"][4]
  pixels, labels = dataset.train.encode(np.arange(4 * 18, 5 * 18))
  assert np.all(labels == arrays["y_train"][4] + 1)
  np.testing.assert_array_equal(pixels[0].reshape(4, 6, 3), image)
  expected = set()
  for way in (image, image[:, ::-1]):
    padded = np.pad(way, ((1, 1), (1, 1), (0, 0)))
    expected |= {padded[r : r + 4, c : c + 6].tobytes() for r in range(3) for c in range(3)}
  assert len(expected) == 18 and {row.tobytes() for row in pixels} == expected


def test_an_epoch_visits_every_image_once_and_batches_hold_classes(file, arrays):
  dataset = _build(file=file())
  batch = dataset.batch(0)
  assert batch["inputs"].shape == (8, 72) and batch["labels"].shape == (8, 1)
  assert set(batch["labels"].ravel().tolist()) <= {1, 2, 3}
  assert np.unique(dataset.plan.examples(0) // 9).size == 8
  last = list(dataset.evaluation_batches(2))[-1]
  assert last["valid"].tolist() == [True, False] and last["labels"][1, 0] == -100
  np.testing.assert_array_equal(last["inputs"][0], arrays["x_test"][2].ravel())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"y_test": None}, "no array y_test"),
    ({"x_train": np.zeros((9, 4, 6, 3))}, "x_train is float64"),
    ({"x_test": np.zeros((3, 5, 6, 3), np.uint8)}, "one size"),
    ({"y_train": np.arange(8)}, "for each of the 9 images"),
    ({"y_train": np.array([])}, r"y_train is float64 of shape \(0,\)"),
    ({"y_train": np.array(["a"] * 9)}, "y_train is <U1"),
    ({"y_train": np.full(9, -1)}, "y_train holds -1 to -1; expected classes from 0 to 65535"),
    ({"y_test": np.full(3, 2**64 - 1, np.uint64)}, "y_test holds 18446744073709551615"),
    ({"x_train": np.zeros((9, 0, 6, 3), np.uint8)}, r"x_train is uint8 of shape \(9, 0, 6, 3\).*none of them 0"),
    ({"x_test": np.zeros((0, 4, 6, 3), np.uint8)}, r"x_test is uint8 of shape \(0, 4, 6, 3\)"),
    ({"x_train": np.zeros((9, 3, 8, 8), np.uint8)}, r"channels first as it seems.*numpy.moveaxis\(x_train, 1, 3\)"),
    ({"x_train": np.zeros((9, 1, 28, 28), np.uint8)}, "channels first"),
    (
      {"x_test": np.full((3, 4, 6, 3), 255, np.uint8), "x_train": np.full((9, 4, 6, 3), 16, np.uint8)},
      "x_test reaches 255, x_train 16, by which all pixels are scaled",
    ),
  ],
)
def test_a_file_that_is_not_as_described_is_refused(file, changes, message):
  with pytest.raises(DataError, match=message):
    _build(file=file(**changes))


def test_fields_and_paths_are_checked(tmp_path):
  with pytest.raises(ConfigError, match="data.images.shift=-1"):
    _build(shift=-1)
  with pytest.raises(DataError, match=r"none.npz': cannot be read \(No such file or directory\)$"):
    _build(file=str(tmp_path / "none.npz"))


def _rewritten(path, change):
  """The same archive with `change` applied to every (ZipInfo, content)."""
  with zipfile.ZipFile(path) as archive:
    members = [(info, archive.read(info)) for info in archive.infolist()]
  with zipfile.ZipFile(path, "w") as archive:
    for info, content in members:
      archive.writestr(*change(info, content))


def _asks_for(shape):
  def change(info, content):
    if info.filename != "x_train.npy":
      return info, content
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return info, header.getvalue() + content[-99:]

  return lambda path: _rewritten(path, change)


def _bomb(path):
  """16 MiB of zeros in 16 KiB."""
  images, labels = np.zeros((1 << 12, 64, 64), np.uint8), np.zeros(1 << 12, np.uint8)
  np.savez_compressed(path, x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])


def _with_bytes(at_local, at_central, value):
  """A byte of every member's local header and of its entry in the directory replaced, as other writers set them."""

  def damage(path):
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", at_local), (b"PK\1\2", at_central)):
      at = content.find(signature)
      while at >= 0:
        content[at + offset] = value
        at = content.find(signature, at + 4)
    path.write_bytes(bytes(content))

  return damage


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_asks_for((2**56, 1, 1)), r"arrays of 64.0 PiB, x_train is uint8 of shape .*; expected at most 1.0 MiB"),
    (_asks_for((2**40, 2**40, 2**40)), "arrays of 1099511627776.0 YiB"),
    (_asks_for((-1, 4, 6, 3)), "is no .npz file of numbers"),
    (_bomb, r"arrays of 16.0 MiB, x_train is uint8 of shape \(4096, 64, 64\)"),
    (_with_bytes(6, 8, 1), "x_train is encrypted; expected what numpy.savez or"),
    (_with_bytes(8, 10, 97), "x_train is compressed by method 97"),
    (lambda path: os.truncate(path, 2**30), r"images.npz: 1.0 GiB; expected at most 1.0 MiB"),
    (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "images.npz: is a character device"),
  ],
)
def test_what_would_not_fit_into_memory_or_cannot_be_unpacked_is_refused_before(file, damage, message, monkeypatch):
  monkeypatch.setattr(image_archive, "memory_limit", lambda: 2**20)
  path = pathlib.Path(file())
  _build(file=str(path))
  damage(path)
  monkeypatch.setattr(np.lib.format, "read_array", None)  # which would take the memory
  with pytest.raises(DataError, match=message):
    _build(file=str(path))


def _cut(path):
  path.write_bytes(path.read_bytes()[:300])


def _as_npy(path):
  with path.open("wb") as file:
    np.save(file, np.zeros(3))


@pytest.mark.parametrize(
  "damage",
  [
    lambda path: path.write_bytes(b"garbage"),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"PK\3\4 and no archive"),
    lambda path: np.savez(path, **dict.fromkeys(ARRAYS, np.array([1, "a"], object))),
    _cut,
    _as_npy,
  ],
)
def test_a_damaged_file_is_refused_without_advice_to_load_it_unsafely(file, damage):
  path = pathlib.Path(file())
  damage(path)
  with pytest.raises(
    DataError, match=r"is no .npz file of numbers, or is damaged; expected what numpy.savez"
  ) as caught:
    _build(file=str(path))
  assert "pickle" not in str(caught.value)
