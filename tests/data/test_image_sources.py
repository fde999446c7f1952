"""Images from elsewhere: CIFAR's files, folders of pictures, drawn shapes; what is damaged is named."""

import dataclasses
import pickle

import numpy as np
from PIL import Image
import pytest

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.data.loading import load
from jpmhc_jax.data.shapes import draw, NAMES


def _build(batch_size=4, seed=0, **options):
  config = schema.Data(kind="images", epochs_per_interval=2, images=schema.ImageData(shift=0, **options))
  return data.build(config, batch_size=batch_size, seed=seed)


def _pictures(rng, count):
  return rng.integers(0, 256, (count, 32, 32, 3), np.uint8)


def _planes(pictures):
  """As the files of CIFAR hold them: red, green and blue one after the other."""
  return pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)


class _Pickle(pickle._Pickler):
  """Writes arrays as NumPy under Python 2 did."""

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, np.ndarray):
      name, content = obj.dtype.str[1:].encode(), obj.tobytes()
      self.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01")
      super().save(obj.shape)
      self.write(b"cnumpy\ndtype\n(U" + bytes([len(name)]) + name + b"K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff")
      self.write(b"J\xff\xff\xff\xffK\x00tb\x89T" + len(content).to_bytes(4, "little") + content + b"tb")
    elif isinstance(obj, bytes):
      self.write(b"U" + bytes([len(obj)]) + obj)
    else:
      super().save(obj, save_persistent_id)


def _pickled(path, batch):
  with path.open("wb") as file:
    _Pickle(file, 2).dump(batch)


@pytest.fixture
def cifar(tmp_path):
  """Writes the same images in one of the four versions; returns (images, labels) of training and test."""
  rng = np.random.default_rng(0)

  def write(classes, binary):
    files = [[f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]] if classes == 10 else [["train"], ["test"]]
    sides = []
    for names in files:
      images, labels = _pictures(rng, 2 * len(names)), rng.integers(0, classes, 2 * len(names))
      for k, name in enumerate(names):
        own, numbers = _planes(images[2 * k : 2 * k + 2]), labels[2 * k : 2 * k + 2]
        if binary:
          leading = numbers[:, None] if classes == 10 else np.stack([0 * numbers, numbers], axis=1)
          (tmp_path / f"{name}.bin").write_bytes(np.concatenate([leading.astype(np.uint8), own], axis=1).tobytes())
        else:
          key = b"labels" if classes == 10 else b"fine_labels"
          _pickled(tmp_path / name, {b"batch_label": b"one", key: numbers.tolist(), b"data": own})
      sides.append((images, labels))
    return sides

  return write


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("classes", [10, 100])
def test_all_versions_of_cifar_are_read(cifar, tmp_path, classes, binary):
  (images, labels), (held, answers) = cifar(classes, binary)
  dataset = _build(folder=str(tmp_path), batch_size=2)
  pixels, numbers = dataset.train.encode(np.arange(len(images)))
  np.testing.assert_array_equal(pixels.reshape(images.shape), images)
  np.testing.assert_array_equal(numbers[:, 0], labels + 1)
  batch = dataset.evaluation_batches(2)[0]
  np.testing.assert_array_equal(batch["inputs"].reshape(held.shape), held)
  np.testing.assert_array_equal(batch["labels"][:, 0], answers + 1)
  assert batch["inputs"].dtype == np.uint8 and dataset.element_spec["inputs"].dtype == np.uint8


class _Command:
  def __reduce__(self):
    return print, ("run",)


@pytest.mark.parametrize(
  ("batch", "message"),
  [
    ({b"data": _Command(), b"labels": [1, 2]}, "names .*print; expected the file as it is published"),
    ({b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]}, "names an array of 'f4'"),
    ({b"data": np.zeros((2, 3072), np.uint8)}, "is no batch of CIFAR-10 for Python"),
    ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}, "expected one from 0 to 9 each"),
    ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "1 labels of 2 images"),
    ([1, 2], "is no batch of CIFAR-10"),
  ],
)
def test_a_pickle_that_is_no_batch_is_refused_and_nothing_of_it_is_run(cifar, tmp_path, capsys, batch, message):
  cifar(10, False)
  _pickled(tmp_path / "data_batch_3", batch)
  with pytest.raises(DataError, match=f"data_batch_3: .*{message}"):
    _build(folder=str(tmp_path))
  assert capsys.readouterr().out == ""


def test_a_file_of_cifar_that_is_cut_or_missing_is_named(cifar, tmp_path):
  cifar(10, True)
  (tmp_path / "data_batch_2.bin").write_bytes(bytes(3000))
  with pytest.raises(DataError, match=r"data_batch_2.bin: 3,000 bytes; expected a multiple of 3,073"):
    _build(folder=str(tmp_path))
  (tmp_path / "data_batch_2.bin").unlink()
  with pytest.raises(DataError, match=r"data_batch_2.bin: cannot be read \(No such file"):
    _build(folder=str(tmp_path))


@pytest.fixture
def folder(tmp_path):
  """Two classes, six pictures to train on and two held out: a red and a blue half, PNG and JPEG, two sizes."""
  for side, count in (("train", 3), ("val", 1)):
    for number, name in enumerate(("cat", "dog")):
      (tmp_path / side / name).mkdir(parents=True)
      for k in range(count):
        pixels = np.zeros((20 + 4 * k, 30, 3), np.uint8)
        pixels[:, :15, 0] = pixels[:, 15:, 2] = 100 + 100 * number
        Image.fromarray(pixels).save(tmp_path / side / name / f"{k}{'.png' if k % 2 else '.JPEG'}", quality=95)
  (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
  return tmp_path


def test_a_folder_of_pictures_is_decoded_and_named(folder):
  dataset = _build(folder=str(folder), size=8, mirror=True)
  assert (dataset.train.groups, dataset.evaluation.examples, tuple(dataset.classes)) == (6, 2, ("cat", "dog"))
  held = dataset.evaluation_batches(2)[0]
  dog = held["inputs"][1].reshape(8, 8, 3).astype(int)
  np.testing.assert_allclose(dog[:, [0, -1]][..., [0, 2]], np.broadcast_to([[200, 0], [0, 200]], (8, 2, 2)), atol=6)
  shown = dataset.example(held, {"predictions": np.array([[1], [1]]), "accuracy": np.array([0, 1])}, 0)
  assert (shown["task"], shown["truth"], shown["predictions"][0]["class"]) == ("cat/0.JPEG", "cat", "dog")
  edges = [dataset.batch(step)["inputs"].reshape(4, 8, 8, 3)[:, 4, [0, -1]].astype(int) for step in range(6)]
  mirrored = [left[2] > left[0] and right[0] > right[2] for batch in edges for left, right in batch]
  assert 0 < sum(mirrored) < 24


def test_crops_are_functions_of_seed_and_step_whoever_reads_them(folder):
  dataset = _build(folder=str(folder), size=8)
  whole = dataset.batch(5)
  for rows in (slice(1, 3), np.array([0, 3])):
    part = dataset.batch(5, rows)
    np.testing.assert_array_equal(part["inputs"], whole["inputs"][rows])
    np.testing.assert_array_equal(part["labels"], whole["labels"][rows])
  assert np.any(dataset.batch(5)["inputs"] != _build(folder=str(folder), size=8, seed=1).batch(5)["inputs"])
  centred = _build(folder=str(folder), size=8, area=0.0)
  np.testing.assert_array_equal(
    centred.batch(0)["inputs"], centred.train.encode(centred.plan.examples(0))[0]
  )  # without crops a picture always looks the same


def test_a_damaged_picture_is_named_and_none_is_left_out(folder):
  (folder / "train" / "dog" / "0.JPEG").write_bytes((folder / "train" / "dog" / "0.JPEG").read_bytes()[:200])
  (folder / "val" / "cat" / "0.JPEG").write_bytes(b"no picture")
  dataset = _build(folder=str(folder), size=8, batch_size=6)
  with pytest.raises(DataError, match=r"train/dog/0.JPEG: cannot be decoded \(.*; repair or remove the picture"):
    dataset.batch(0)
  with pytest.raises(DataError, match=r"verify: 2 pictures are damaged\n.*dog/0.JPEG.*\n.*val/cat/0.JPEG: cannot"):
    _build(folder=str(folder), size=8, verify=True)


def test_a_folder_that_is_not_as_described_is_refused(folder, tmp_path):
  with pytest.raises(ConfigError, match="data.images.folder=.*: expected '' beside data.images.file"):
    _build(folder=str(folder), file="x.npz")
  (folder / "val" / "bird").mkdir()
  with pytest.raises(DataError, match="class 'bird', of which there is nothing to train on"):
    _build(folder=str(folder))
  (folder / "train" / "bird").mkdir()
  with pytest.raises(DataError, match="train/bird: holds no picture"):
    _build(folder=str(folder))
  (folder / "empty").mkdir()
  with pytest.raises(DataError, match="expected train and val or validation or test"):
    _build(folder=str(folder / "empty"))


@pytest.mark.slow
def test_processes_read_the_same_stream_and_name_what_is_damaged(folder):
  dataset = _build(folder=str(folder), size=8)
  expected = [dataset.batch(step, slice(0, 2)) for step in range(2, 6)]
  stream = load(dataset, 2, slice(0, 2), prefetch=1, workers=2)
  for step, (number, batch) in zip(range(2, 6), stream, strict=False):
    assert number == step
    for name, values in expected[step - 2].items():
      np.testing.assert_array_equal(batch[name], values)
  stream.close()
  for picture in (folder / "train" / "cat").glob("?.*"):
    picture.write_bytes(b"no picture")
  with pytest.raises(DataError, match="train/cat/.*: cannot be decoded"):
    for _ in zip(range(3), load(dataset, prefetch=1, workers=1), strict=False):
      pass


def test_drawn_shapes_are_functions_of_the_seed_and_all_there():
  pictures, labels = draw(40, seed=3)
  again, same = draw(40, seed=3)
  np.testing.assert_array_equal(pictures, again)
  np.testing.assert_array_equal(labels, same)
  assert np.bincount(labels).tolist() == [4] * len(NAMES)
  assert np.any(draw(40, seed=4)[0] != pictures)
  dataset = _build(builtin="shapes", shapes=20)
  assert (dataset.train.examples, dataset.evaluation.examples, dataset.image.classes) == (20, 5, 10)
  assert dataset.name_of(0) == "disc" and dataset.describe()["classes"] == list(NAMES)


def test_noise_stands_in_for_pictures_that_are_not_there_yet():
  dataset = _build(builtin="noise", size=6, classes=3)
  batch = dataset.batch(0)
  assert batch["inputs"].shape == (4, 108) and set(batch["labels"].ravel()) <= {1, 2, 3}
  np.testing.assert_array_equal(batch["inputs"], dataset.batch(0)["inputs"])
  assert dataclasses.asdict(dataset.image)["top"] == 255
