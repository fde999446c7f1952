"""metrics.jsonl and TensorBoard over kills, rollbacks and full disks: every scalar of every step once."""

import contextlib
import json
import resource
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import StorageError
from jpmhc_jax.training.writers import Writers

CONFIG = schema.Config()


def _events(workdir):
  """The events of all files in the order in which TensorBoard reads them."""
  for path in sorted((workdir / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])  # length, its check sum, event, its check sum
      yield Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def _shown(workdir):
  """(step, name, value) that TensorBoard shows: a start purges what the one before wrote from its own step on."""
  shown = []
  for event in _events(workdir):
    if event.session_log.status == SessionLog.START:
      shown = [point for point in shown if point[0] < event.step]
    shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
  return shown


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("saved", [0, 2])
def test_a_start_after_a_kill_leaves_every_step_once(saved, tmp_path):
  """The first start ends without `close`: what it wrote is in the files all the same."""
  killed = Writers(tmp_path, CONFIG, 0)
  for step in range(1, 5):
    killed.write(step, {"train/loss": 10.0 + step, "gradient_norm/blocks.features[3]": 1.0})
  assert [step for step, name, _ in _shown(tmp_path) if name == "train/loss"] == [1, 2, 3, 4]
  again = Writers(tmp_path, CONFIG, saved)
  for step in range(saved + 1, 6):
    again.write(step, {"train/loss": 10.0 + step, "gradient_norm/blocks.features[3]": 1.0})
  for writers in (killed, again):
    writers.close()
  assert [point for point in _shown(tmp_path) if point[1] == "train/loss"] == [
    (step, "train/loss", 10.0 + step) for step in range(1, 6)
  ]
  assert {name for _, name, _ in _shown(tmp_path)} == {"train/loss", "gradient_norm/blocks.features[3]"}
  assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_an_evaluation_that_was_cut_off_behind_its_line_is_not_written_twice(tmp_path):
  killed = Writers(tmp_path, CONFIG, 0)
  killed.write(4, {"train/loss": 1.0})
  killed.write(4, {"evaluation/exact_accuracy": 0.5})
  again = Writers(tmp_path, CONFIG, 4)
  again.write(4, {"evaluation/exact_accuracy": 0.5})
  again.write(4, {"evaluation/exact_accuracy": 0.5, "mixer/gain": 1.0})
  again.write(5, {"train/loss": 2.0})
  for writers in (killed, again):
    writers.close()
  points = [(step, name) for step, name, _ in _shown(tmp_path)]
  expected = [(4, "train/loss"), (4, "evaluation/exact_accuracy"), (4, "mixer/gain"), (5, "train/loss")]
  assert points == expected == [(line["step"], name) for line in _lines(tmp_path) for name in line if name != "step"]


def test_a_damaged_line_is_dropped_and_the_run_goes_on(tmp_path):
  """A machine that loses power may leave zeros, or half a page of something else."""
  damaged = b'{"step": 2, "train/lo\x00\x00\n\xff\xfe\n[1]\n{"step": null}\n'
  damaged += b"[" * 10_000 + b"\n"
  (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damaged + b'{"step": 3}\n')
  Writers(tmp_path, CONFIG, 3).close()
  assert _lines(tmp_path) == [{"step": 1}, {"step": 3}]


@contextlib.contextmanager
def _no_file_beyond(size):
  earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def test_event_files_on_a_full_disk_stop_the_run_with_a_reason(tmp_path):
  writers = Writers(tmp_path, CONFIG, 0)
  scalars = {f"mixer/{k}": 1.0 for k in range(100)}
  with _no_file_beyond(8192), pytest.raises(StorageError, match="metrics in .* could not be written: .*free space"):
    for step in range(1, 100):
      writers.write(step, {} if step % 2 else scalars)
  (file,) = (tmp_path / "tensorboard").iterdir()
  assert 0 < file.stat().st_size <= 8192
  with contextlib.suppress(StorageError):  # what is left in the file's buffer
    writers.close()


def test_two_starts_within_a_second_have_two_event_files(tmp_path):
  for _ in range(2):
    Writers(tmp_path, CONFIG, 0).close()
  assert len(list((tmp_path / "tensorboard").iterdir())) == 2
