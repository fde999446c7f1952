"""Data that goes away: while a run reads it, while it is evaluated, and between two starts."""

import dataclasses
import shutil

import chex
import pytest
import tiny

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import CheckpointError, ConfigError, DataError
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.training import loop
from jpmhc_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("compiled_once")
GONE = "cannot be read any more .No such file or directory.; bring it back and run the same command to resume"


class _Accuracy:
  main_metric, higher_is_better = "exact_accuracy", True

  def __call__(self, state, step):
    return {"exact_accuracy": 0.5}


@pytest.fixture(scope="module")
def config():
  # Threads read ahead, as in a real run: the error has to come over from one of them.
  base = tiny.config(checkpoint=schema.Checkpoint(every=2), evaluation=schema.Evaluation(every=100))
  return dataclasses.replace(base, data=dataclasses.replace(base.data, prefetch=1))


@pytest.fixture(scope="module")
def setup(config, compiled_once):
  return tiny.setup(config)


def _reading(split, path):
  """The split, but every row is asked of a file first, as a source that is not held in memory does."""

  def encode(examples):
    path.read_bytes()
    return split.encode(examples)

  return dataclasses.replace(split, encode=encode)


@pytest.mark.slow
def test_a_file_that_vanishes_during_a_run_ends_it_and_the_run_goes_on_when_it_is_back(config, setup, tmp_path):
  dataset, path = tiny.dataset(config), tmp_path / "examples.bin"
  path.touch()
  whole = loop.train(loop.Run(setup, dataset, tmp_path / "whole", _Accuracy(), None), ["train"])
  file_backed = dataclasses.replace(dataset, train=_reading(dataset.train, path))

  def vanish(state):  # at step 4, behind its checkpoint
    if int(state.step) == 4:
      path.unlink()
    return {}

  logging = dataclasses.replace(config.logging, diagnostics_every=2)
  watched = dataclasses.replace(setup, config=dataclasses.replace(config, logging=logging))
  with pytest.raises(DataError, match=f"examples.bin: {GONE}"):
    loop.train(loop.Run(watched, file_backed, tmp_path / "broken", _Accuracy(), vanish), ["train"])
  assert max(Checkpoints(tmp_path / "broken" / "checkpoints").steps()) in (4, 6)  # what was read ahead is trained on
  path.touch()
  resumed = loop.train(loop.Run(watched, file_backed, tmp_path / "broken", _Accuracy(), None), ["train"])
  chex.assert_trees_all_equal(whole, resumed)


def test_a_file_that_vanishes_before_an_evaluation_is_named(config, setup, tmp_path):
  dataset = tiny.dataset(config)
  gone = dataclasses.replace(dataset, evaluation=_reading(dataset.evaluation, tmp_path / "held_out.bin"))
  with pytest.raises(DataError, match=f"held_out.bin: {GONE}"):
    Evaluator(setup, gone, tmp_path)(setup.create(), 4)


def test_data_that_is_gone_or_has_changed_before_a_resume_is_refused(config, setup, tmp_path):
  folder = tmp_path / "sources"
  folder.mkdir()
  for i in range(12):
    (folder / f"module{i}.py").write_text(f"x = {i}\n" * 20)
  text = schema.Data(kind="text", epochs_per_interval=1, text=schema.TextData(str(folder), window=16, held_out=4))
  before = data.build(text, batch_size=4, seed=0)
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  state, clock = setup.create(), {"seconds": 0.0, "offset": 0, "window": []}
  same = dataclasses.replace(tiny.dataset(config), content=before.fingerprint())
  checkpoints.save(2, state, config=config, dataset=same, clock=clock)
  assert checkpoints.restore(setup, same).step == 2
  (folder / "module3.py").unlink()
  after = data.build(text, batch_size=4, seed=0)
  with pytest.raises(CheckpointError, match="other examples"):
    checkpoints.restore(setup, dataclasses.replace(same, content=after.fingerprint()))
  shutil.rmtree(folder)
  with pytest.raises(ConfigError, match="data.text.folder=.*sources.*: expected a folder that is there"):
    data.build(text, batch_size=4, seed=0)
  checkpoints.close()
