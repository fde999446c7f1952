"""Checkpoints stay in their own folder, whatever its name, and come back out of it from any path."""

import os
import pathlib

import pytest
import tiny

from jpmhc_jax.core import places
from jpmhc_jax.training.checkpoint import Checkpoints
from jpmhc_jax.training.integrity import fingerprint

CLOCK = {"seconds": 1.0, "offset": 0, "window": []}


@pytest.fixture(scope="module")
def run():
  """(setup, data, state) of the tiny run at its start."""
  config = tiny.config()
  setup = tiny.setup(config)
  return setup, tiny.dataset(config), setup.create()


@pytest.mark.parametrize(
  "name", ["with space", "[red]x", "a?b", "run*", "p%41#", "back\\slash", ":smile:", "größe", os.fsdecode(b"byte\xff")]
)
def test_a_folder_of_any_name_keeps_its_checkpoints(run, tmp_path, monkeypatch, name):
  setup, dataset, state = run
  for sibling in ("r", "acb", "run1", "pA#"):  # what the name means as a pattern or an escape
    (tmp_path / sibling).mkdir()
  before = set(os.listdir(tmp_path))
  monkeypatch.chdir(tmp_path)
  pathlib.Path(name).mkdir()
  writing = Checkpoints(pathlib.Path(name, "checkpoints"))  # a relative path, as a program may give it
  writing.save(1, state, config=setup.config, dataset=dataset, clock=CLOCK)
  writing.close()
  monkeypatch.chdir("/")
  reading = Checkpoints(tmp_path / name / "checkpoints", owner=False)
  restored = reading.restore(setup, dataset)
  reading.close()
  assert restored.step == 1 and not restored.notes and fingerprint(restored.state) == fingerprint(state)
  assert set(os.listdir(tmp_path)) == before | {name} and os.listdir(tmp_path / name) == ["checkpoints"]
  assert not any(os.listdir(tmp_path / sibling) for sibling in before)


def test_where_folders_have_no_number_such_a_name_is_refused(run, tmp_path, monkeypatch):
  monkeypatch.setattr(places, "_NUMBERED", str(tmp_path / "none"))
  (tmp_path / "[x]").mkdir()
  with pytest.raises(
    places.WorkdirError, match=r"expected a path in UTF-8 without .* rename it, or name a symbolic link"
  ):
    Checkpoints(tmp_path / "[x]" / "checkpoints")
