"""One workdir and several processes: a second start is refused, and what one process cannot read none goes on with."""

import time

import pytest
import tiny

from experiments.faults.launch import checkpoints, Layout, Start
from jpmhc_jax.config import schema

# The newest checkpoint is without a manifest, and process 1 alone cannot read it.
FAILS_ALONE = """
import os, sys
import orbax.checkpoint as ocp
from jpmhc_jax.main import main
read = ocp.Checkpointer.restore
def fails(self, directory, *arguments, **named):
  if os.environ["JAX_PROCESS_ID"] == "1" and os.path.basename(str(directory)) == "4":
    raise OSError("stale file handle")
  return read(self, directory, *arguments, **named)
ocp.Checkpointer.restore = fails
sys.exit(main(sys.argv[1:]))
"""


# Process 1 is started with one more argument.
DIFFERS = """
import os, sys
from jpmhc_jax.main import main
if os.environ["JAX_PROCESS_ID"] == "1":
  sys.argv.append("{}")
sys.exit(main())
"""


def _arguments(folder, steps):
  """Trains in `folder`/run, with a checkpoint every other step."""
  config = tiny.config(
    steps=steps,
    mesh=schema.Mesh(data=-1),
    checkpoint=schema.Checkpoint(every=2),
    evaluation=schema.Evaluation(every=0),
  )
  source = tiny.write_config(folder / "config.py", config)
  return ["train", f"--config={source}", f"--workdir={folder / 'run'}"]


@pytest.mark.slow
def test_a_second_start_is_refused_and_one_after_a_kill_begins_at_once(tmp_path):
  workdir, cache = tmp_path / "run", tmp_path / "cache"
  arguments = _arguments(tmp_path, 100_000)
  with Start(Layout.parse("1x2"), workdir, arguments, cache, name="first") as first:
    assert first.wait_for(lambda: bool(checkpoints(workdir))), first.output()
    with Start(Layout.parse("2x1"), workdir, arguments, cache, name="second") as second:
      assert second.finish() == [2, 2], second.output()
      assert second.output().count(f"in use: process {first.processes[0].pid} on ") == 2
      assert "Traceback" not in second.output()
    assert first.running()
    first.processes[0].kill()
    first.finish()
  with Start(Layout.parse("2x1"), workdir, arguments, cache, name="third") as third:
    line = (workdir / "metrics.jsonl").stat().st_mtime_ns
    assert third.wait_for(lambda: (workdir / "metrics.jsonl").stat().st_mtime_ns != line), third.output()
    assert "may be training" not in third.output() and time.monotonic() - third.began < 60


@pytest.mark.slow
@pytest.mark.parametrize(
  ("argument", "sentence"),
  [
    ("--config.checkpoint.every=3", "checkpoint.every is 2 on process 0, 3 on process 1: expected the same"),
    ("--config.checkpoint.evry=3", "no field 'checkpoint.evry'. Did you mean 'checkpoint.every'?"),  # before it joins
  ],
)
def test_a_process_that_refuses_ends_the_others_with_its_sentence_and_code(argument, sentence, tmp_path):
  program = ("-c", DIFFERS.format(argument))
  arguments = _arguments(tmp_path, 4)
  with Start(Layout.parse("2x1"), tmp_path / "run", arguments, tmp_path / "cache", program=program) as start:
    assert start.finish() == [2, 2], start.output()
    assert start.output().count(sentence) == 2 and "Traceback" not in start.output()


@pytest.mark.slow
def test_a_process_that_nobody_joins_says_so(tmp_path):
  arguments = [*_arguments(tmp_path, 4), "--config.processes.start_timeout_s=4"]
  with Start(Layout.parse("2x1"), tmp_path / "run", arguments, tmp_path / "cache") as start:
    start.processes[1].kill()
    assert start.finish() == [2, -9], start.output()
    assert "could not join 2 processes at 127.0.0.1:" in start.output() and "start all of them" in start.output()


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_used_by_none(tmp_path):
  workdir, cache, arguments = tmp_path / "run", tmp_path / "cache", _arguments(tmp_path, 4)
  with Start(Layout.parse("1x2"), workdir, arguments, cache) as start:
    assert start.finish() == [0], start.output()
  (workdir / "checkpoints" / "4" / "manifest.json").unlink()
  with Start(Layout.parse("2x1"), workdir, arguments, cache, program=("-c", FAILS_ALONE)) as start:
    assert start.finish() == [0, 0], start.output()
  assert "checkpoint 4 is damaged (process 1 of 2: stale file handle)" in start.output()
  assert checkpoints(workdir) == [2, 4] and (workdir / "damaged" / "4").is_dir()
