"""Damage is noticed, the newest intact checkpoint is used, the damaged one kept aside; a failed write loses nothing."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
import time
import types

import chex
import jax
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import CheckpointError, ConfigError, StorageError, WorkdirError
from jpmhc_jax.runs import session
from jpmhc_jax.training import checkpoint, loop
from jpmhc_jax.training.checkpoint import Checkpoints, kept_steps

pytestmark = pytest.mark.usefixtures("compiled_once")


class _Evaluation:
  main_metric, higher_is_better = "exact_accuracy", True

  def __call__(self, state, step):
    return {"exact_accuracy": 0.5}


def _config(**changes):
  return tiny.config(checkpoint=schema.Checkpoint(every=2, keep=3), evaluation=schema.Evaluation(every=100), **changes)


def _run(workdir, config=None):
  config = config or _config()
  return loop.Run(tiny.setup(config), tiny.dataset(config), workdir, _Evaluation(), None)


@pytest.fixture(scope="module")
def finished(compiled_once, tmp_path_factory):
  """A workdir with checkpoints of steps 4, 6 and 8, and the state after step 8."""
  workdir = tmp_path_factory.mktemp("finished")
  state = loop.train(_run(workdir), ["train"])
  return workdir, jax.device_get(state)


@pytest.fixture
def workdir(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "run")
  return tmp_path / "run"


def _largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(folder):
  path = _largest(folder / "state")
  path.write_bytes(path.read_bytes()[:-100])


def _flip(folder):
  path = _largest(folder / "state")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 8
  path.write_bytes(content)


def _lose(folder):
  shutil.rmtree(folder / "bundle")


def _half_written(folder):
  """As when the power fails in the middle: no manifest, and a part of every file."""
  (folder / "manifest.json").unlink()
  for path in (folder / "state").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_truncate, _flip, _lose, _half_written])
def test_the_newest_intact_checkpoint_is_used_and_the_run_ends_the_same(damage, workdir, finished, capsys):
  damage(workdir / "checkpoints" / "8")
  damage(workdir / "checkpoints" / "6")
  state = loop.train(_run(workdir), ["train"])
  printed = capsys.readouterr().out
  for step in (8, 6):
    assert f"checkpoint {step} is damaged (" in printed
    assert (workdir / "damaged" / str(step)).is_dir()
  assert "resuming at step 4" in printed
  chex.assert_trees_all_equal(finished[1], jax.device_get(state))
  assert Checkpoints(workdir / "checkpoints").steps() == [4, 6, 8]


def test_a_score_goes_with_its_checkpoint_and_an_earlier_damaged_one_stays(workdir):
  """Step 8 is saved again after damage and killed before its evaluation: that is then made, not skipped."""
  (workdir / "damaged" / "8").mkdir(parents=True)
  _flip(workdir / "checkpoints" / "8")
  run = _run(workdir)
  checkpoints = Checkpoints(workdir / "checkpoints", best_metric="exact_accuracy")
  assert checkpoints.evaluated(8)
  restored = checkpoints.restore(run.setup, run.dataset)
  assert restored.step == 6 and restored.notes[0].endswith("damaged/8.1")
  assert {path.name for path in (workdir / "damaged").iterdir()} == {"8", "8.1"}
  checkpoints = Checkpoints(workdir / "checkpoints", best_metric="exact_accuracy")
  checkpoints.save(8, restored.state, config=run.config, dataset=run.dataset, clock=restored.clock)
  assert not Checkpoints(workdir / "checkpoints", best_metric="exact_accuracy").evaluated(8)


@pytest.mark.parametrize("name", ["environment.json", "checkpoints/scores.json", "goodput.json", "metrics.jsonl"])
def test_a_damaged_note_of_the_run_does_not_stop_a_restart(name, workdir, finished):
  (workdir / name).write_bytes(b'{"st\x00\xff')
  state = loop.train(_run(workdir), ["train"])
  chex.assert_trees_all_equal(finished[1], jax.device_get(state))


def test_a_save_that_is_under_way_survives_an_evaluation_of_the_run(workdir):
  """`jpmhc evaluate` beside a training run; the training run itself removes what a killed save left."""
  unfinished = workdir / "checkpoints" / "10.orbax-checkpoint-tmp"
  unfinished.mkdir()
  run = _run(workdir)
  assert session.restore(run.setup, run.dataset, workdir, None).step == 8
  assert unfinished.is_dir()
  owner = Checkpoints(workdir / "checkpoints")
  deadline = time.monotonic() + 10  # orbax removes it in a thread
  while unfinished.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  owner.close()
  assert not unfinished.exists()


def test_a_checkpoint_killed_before_its_manifest_is_as_good_as_any(workdir, capsys):
  (workdir / "checkpoints" / "8" / "manifest.json").unlink()
  run = _run(workdir)
  restored = Checkpoints(workdir / "checkpoints").restore(run.setup, run.dataset)
  assert (restored.step, restored.notes) == (8, ())


def test_where_none_is_intact_nothing_is_moved_and_each_is_named(workdir):
  for step in (4, 6, 8):
    _truncate(workdir / "checkpoints" / str(step))
  with pytest.raises(CheckpointError, match=r"no intact checkpoint \(8: state.*; 6: state.*; 4: state.*\). Restore"):
    loop.train(_run(workdir), ["train"])
  assert Checkpoints(workdir / "checkpoints").steps() == [4, 6, 8] and not (workdir / "damaged").exists()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("described", [True, False])
def test_a_checkpoint_that_may_not_be_read_is_not_damaged(number, described, workdir, monkeypatch):
  """Nothing is moved for want of a right or of a free descriptor, with a manifest and without."""

  def denied(*arguments, **named):
    raise OSError(number, os.strerror(number), "array")

  if described:
    monkeypatch.setattr(checkpoint.integrity, "_describe", denied)
  else:
    (workdir / "checkpoints" / "8" / "manifest.json").unlink()
    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "restore", denied)
  run = _run(workdir)
  with pytest.raises(StorageError, match=f"could not be read.*{os.strerror(number)}.*; (raise the limit|make it)"):
    Checkpoints(workdir / "checkpoints").restore(run.setup, run.dataset)
  assert not (workdir / "damaged").exists()


def test_an_asked_for_step_is_not_replaced_by_another(workdir):
  _flip(workdir / "checkpoints" / "6")
  run = _run(workdir)
  with pytest.raises(CheckpointError, match="6: .*content changed"):
    Checkpoints(workdir / "checkpoints").restore(run.setup, run.dataset, 6)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_state_of_another_shape_is_a_mistake_and_no_damage(manifest, workdir):
  if not manifest:
    (workdir / "checkpoints" / "8" / "manifest.json").unlink()
  config = _config(optimizer=schema.Optimizer(learning_rate=1e-2, warmup_steps=4, ema=0.0))
  run = _run(workdir, config)
  message = r"written by code or a config with another state \(\.ema\[.*: float32\[.*\] there, none now;.* more\)"
  with pytest.raises(CheckpointError, match=message):
    Checkpoints(workdir / "checkpoints").restore(run.setup, run.dataset)
  assert not (workdir / "damaged").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  "error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: No space left")]
)
def test_a_full_disk_keeps_the_earlier_checkpoints_and_the_run_resumes(error, tmp_path, finished, monkeypatch):
  write = checkpoint.integrity.write

  def full(folder):
    if folder.name == "6":
      shutil.rmtree(folder)
      raise error
    write(folder)

  monkeypatch.setattr(checkpoint.integrity, "write", full)
  with pytest.raises(StorageError, match=r"6: checkpoint not written \(.*No space left.*steps 2, 4 are intact; free"):
    loop.train(_run(tmp_path), ["train"])
  monkeypatch.undo()
  state = loop.train(_run(tmp_path), ["train"])
  chex.assert_trees_all_equal(finished[1], jax.device_get(state))


@pytest.mark.parametrize(
  "text",
  [
    "OUT_OF_RANGE: Error writing \"a/0.0\" in OCDBT database: File too large [os_error_code='27']",
    "PERMISSION_DENIED: HTTP response code: 403",
  ],
)
def test_what_tensorstore_says_of_a_full_disk_is_a_storage_fault(text, workdir, monkeypatch):
  with pytest.raises(StorageError, match="10: checkpoint not written .*steps 4, 6, 8 are intact"):
    _save_with(RuntimeError("a thread died"), ValueError(text), workdir, monkeypatch)


def test_another_error_in_a_save_keeps_its_own_words(workdir, monkeypatch):
  with pytest.raises(ValueError, match="^not a valid type$"):
    _save_with(ValueError("not a valid type"), None, workdir, monkeypatch)


def _save_with(error, cause, workdir, monkeypatch):
  run = _run(workdir)
  checkpoints = Checkpoints(workdir / "checkpoints", keep=3)

  def fails(*arguments, **named):
    raise error from cause

  monkeypatch.setattr(checkpoints._shelf.manager, "save", fails)
  checkpoints.save(10, run.setup.create(), config=run.config, dataset=run.dataset, clock={})


def test_what_threads_of_a_failed_save_still_say_is_kept_off_the_terminal(monkeypatch):
  """tensorstore reports to an event loop that orbax has closed, hundreds of lines around one sentence."""
  logger, said = logging.getLogger("absl"), []
  monkeypatch.setattr(logger, "filters", [])
  monkeypatch.setattr(sys, "unraisablehook", said.append)
  with checkpoint._quiet():
    pass
  assert sys.unraisablehook == said.append and not logger.filters
  with pytest.raises(OSError, match="full"), checkpoint._quiet():
    raise OSError("full")
  closed, other = (types.SimpleNamespace(exc_value=RuntimeError(t), object=None) for t in ("Event loop is closed", "x"))
  sys.unraisablehook(closed)
  sys.unraisablehook(other)
  assert said == [other]
  records = [logging.LogRecord("absl", 40, f"/site/{name}/a.py", 1, "text", (), None) for name in ("orbax", "jpmhc")]
  assert [bool(logger.filter(record)) for record in records] == [False, True]


def test_the_old_checkpoint_stays_until_the_new_one_is_on_disk(workdir, monkeypatch):
  """The only one that is kept: it goes after the last fsync of the new one's files and folders."""
  run, folder = _run(workdir), workdir / "checkpoints"
  (folder / "scores.json").unlink()
  checkpoints, synced = Checkpoints(folder, keep=1), set()

  def sync(descriptor):
    assert (folder / "8").is_dir()
    synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))

  monkeypatch.setattr(os, "fsync", sync)
  checkpoints.save(10, run.setup.create(), config=run.config, dataset=run.dataset, clock={})
  assert checkpoints.steps() == [10]
  there = {str(path) for path in (folder / "10").rglob("*")} - {str(folder / "10" / "manifest.json")}
  assert there <= synced and {str(folder), str(folder / "10")} <= synced


def test_a_process_that_cannot_read_takes_all_others_with_it(workdir, monkeypatch):
  """They decide together, here with another process that fails alone."""
  (workdir / "checkpoints" / "8" / "manifest.json").unlink()
  gather, theirs = checkpoint.distributed.gather, [["", "OSError: stale handle", None]]
  monkeypatch.setattr(
    checkpoint.distributed,
    "gather",
    lambda own: [own, theirs.pop()] if own == ["", "", None] and theirs else gather(own),
  )
  run, checkpoints = _run(workdir), Checkpoints(workdir / "checkpoints")
  restored = checkpoints.restore(run.setup, run.dataset)
  assert restored.step == 6 and "8 is damaged (process 1 of 2: OSError: stale handle)" in restored.notes[0]


@pytest.mark.parametrize(("metric", "best"), [("exact_accuracy", 2), ("loss", 4)])
def test_the_best_by_a_loss_is_the_lowest(metric, best, tmp_path):
  class Worsening(_Evaluation):
    def __call__(self, state, step):
      return {"exact_accuracy": 1.0 / step, "loss": abs(step - 4.0)}

  config = tiny.config(checkpoint=schema.Checkpoint(0, 1, metric), evaluation=schema.Evaluation(every=2))
  run = _run(tmp_path, config)
  loop.train(dataclasses.replace(run, evaluate=Worsening()), ["train"])
  assert Checkpoints(tmp_path / "checkpoints").steps() == [best, 8]


def test_a_best_metric_that_no_evaluation_has_is_refused_with_those_there_are(tmp_path):
  config = tiny.config(checkpoint=schema.Checkpoint(0, 1, "exact_acuracy"), evaluation=schema.Evaluation(every=2))
  with pytest.raises(ConfigError, match=r"best_metric='exact_acuracy': the evaluation has exact_accuracy\. Did you"):
    loop.train(_run(tmp_path, config), ["train"])
  assert Checkpoints(tmp_path / "checkpoints").steps() == [2]


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StorageError, match="config.json could not be written: .*choose another --workdir"):
    loop.train(_run(tmp_path / "file" / "run"), ["train"])


def test_a_start_that_was_overtaken_saves_nothing_more(tmp_path, monkeypatch):
  confirm = loop.lease.confirm

  def overtaken():
    if (tmp_path / "checkpoints" / "4").exists():
      (tmp_path / "running.json").write_text("{}")
    confirm()

  monkeypatch.setattr(loop.lease, "confirm", overtaken)
  with pytest.raises(WorkdirError, match="another process has taken over"):
    loop.train(_run(tmp_path), ["train"])
  assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]


def test_a_kept_line_that_was_cut_off_and_later_lines_are_dropped(workdir, finished):
  path = workdir / "metrics.jsonl"
  whole = path.read_text()
  shutil.rmtree(workdir / "checkpoints" / "8")
  path.write_text(whole + '{"step": 9, "train/loss": 1.0}\n{"step": 9, "tra')
  loop.train(_run(workdir), ["train"])
  losses = [[json.loads(line).get("train/loss") for line in text.splitlines()] for text in (whole, path.read_text())]
  assert [x for x in losses[0] if x] == [x for x in losses[1] if x]


def test_the_latest_and_the_best_are_kept():
  scores = {2: 0.5, 4: 0.9, 6: None, 8: 0.7, 3: 2.0}
  assert kept_steps([2, 4, 6, 8], scores, 1) == {4, 8}
  assert kept_steps([2, 4, 6, 8], {}, 2) == {6, 8}
  assert kept_steps([2, 4], {2: 1.0, 4: 1.0}, 1) == {4}


def test_scores_of_another_metric_do_not_count(workdir):
  """A resumed run may change checkpoint.best_metric: 3.2 nats are not better than 0.9 exact."""
  assert Checkpoints(workdir / "checkpoints", best_metric="exact_accuracy").evaluated(8)
  assert not Checkpoints(workdir / "checkpoints", best_metric="loss").evaluated(8)


def test_a_checkpoint_of_an_older_version_is_refused_and_says_what_it_lacks(workdir):
  folder = workdir / "checkpoints" / "8"
  (folder / "manifest.json").unlink()
  path = folder / "bundle" / "metadata"
  bundle = json.loads(path.read_text())
  path.write_text(json.dumps({name: value for name, value in bundle.items() if name != "data"}))
  with pytest.raises(CheckpointError, match=r"8: written by an older version \(without data\)"):
    loop.train(_run(workdir), ["train"])
  assert folder.is_dir()  # nothing was moved or deleted
