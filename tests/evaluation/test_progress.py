"""An evaluation that is broken off goes on where it was, to the same result."""

import dataclasses
import functools
import gzip

import jax
import jax.numpy as jnp
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.accumulator import EvalProgress
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.training import interrupts

BATCHES = 5  # 20 puzzles in batches of 4


@functools.cache
def _parts(kind="sudoku"):
  data = tiny.config().data
  if kind == "arc":
    arc = schema.ArcData(
      canvas=5, max_side=5, max_tasks=4, test_subset="training", subsets="training", augmentations=4,
      evaluation_augmentations=4, translate=False,
    )  # fmt: skip
    data = schema.Data(kind="arc", prefetch=0, arc=arc)
  config = tiny.config(data=data, evaluation=schema.Evaluation(batch_size=4, save_every=1, pooled=False))
  setup = tiny.setup(config)
  return setup, tiny.dataset(config), setup.create()


class _Died(Exception):
  pass


def _evaluator(folder, calls, die_at=None, kind="sudoku"):
  setup, dataset, _ = _parts(kind)
  evaluator = Evaluator(setup, dataset, folder)
  rollout = evaluator.rollout

  def counted(*arguments):
    calls.append(1)
    if len(calls) == die_at:
      raise _Died
    return rollout(*arguments)

  evaluator.rollout = counted
  return evaluator


@pytest.mark.parametrize("kind", ["sudoku", pytest.param("arc", marks=pytest.mark.slow)])
def test_a_killed_evaluation_goes_on_and_ends_the_same(kind, tmp_path):
  state = _parts(kind)[2]
  calls = []
  whole = _evaluator(tmp_path / "whole", calls, kind=kind)(state, 7)
  batches = len(calls)
  with pytest.raises(_Died):
    _evaluator(tmp_path / "broken", [], die_at=4, kind=kind)(state, 7)
  calls = []
  assert _evaluator(tmp_path / "broken", calls, kind=kind)(state, 7) == whole
  assert len(calls) == batches - 2  # the third was in flight when the fourth was dispatched
  ends = [(tmp_path / name / "evaluation" / "step_7.json").read_text() for name in ("whole", "broken")]
  assert ends[0] == ends[1]
  assert not list((tmp_path / "broken" / "evaluation").glob("partial_*"))


def test_what_was_counted_of_another_state_is_not_used(tmp_path):
  state = _parts()[2]
  with pytest.raises(_Died):
    _evaluator(tmp_path, [], die_at=4)(state, 7)
  other = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + jnp.ones_like(x), state.ema))
  calls = []
  _evaluator(tmp_path, calls)(other, 7)
  assert len(calls) == BATCHES


def test_a_damaged_partial_falls_back_to_the_one_before(tmp_path):
  state = _parts()[2]
  with pytest.raises(_Died):
    _evaluator(tmp_path, [], die_at=5)(state, 7)
  newest = sorted((tmp_path / "evaluation").glob("partial_*"))[-1]
  newest.write_bytes(newest.read_bytes()[:-10])
  calls = []
  _evaluator(tmp_path, calls)(state, 7)
  assert len(calls) == BATCHES - 2


@pytest.mark.parametrize(
  "damage",
  [
    lambda content: b"",
    lambda content: content[:-10],
    lambda content: content[:12] + bytes(255 - byte for byte in content[12:16]) + content[16:],
    lambda content: gzip.compress(b"[]"),
    lambda content: gzip.compress(b"{}"),
    lambda content: gzip.compress(b"\xff"),
  ],
)
def test_no_damage_of_a_partial_ends_the_evaluation(damage, tmp_path):
  partial = EvalProgress(tmp_path, "7", lambda: "the same", 0)
  for batches in (2, 4):
    partial.save(batches, lambda: {"count": 3})
  assert partial.load() == (4, {"count": 3})
  path = tmp_path / "partial_7.0.4.json.gz"
  path.write_bytes(damage(path.read_bytes()))
  assert partial.load() == (2, {"count": 3})


def test_what_more_processes_left_of_a_pass_goes_with_it(tmp_path):
  """Four were killed in the middle, fewer finish it; another pass's files stay."""
  folder = tmp_path / "evaluation"
  folder.mkdir()
  for name in ("7.3.2", "7.0.2", "17.3.2"):
    (folder / f"partial_{name}.json.gz").write_bytes(b"")
  _evaluator(tmp_path, [])(_parts()[2], 7)
  assert [path.name for path in folder.glob("partial_*")] == ["partial_17.3.2.json.gz"]


def test_a_request_to_stop_saves_what_was_counted(tmp_path, monkeypatch):
  asked = iter([False, False, True])
  monkeypatch.setattr(interrupts, "stop_requested", lambda: next(asked))
  state = _parts()[2]
  with pytest.raises(interrupts.Interrupted, match="after 3 of 5 batches: saved"):
    _evaluator(tmp_path, [])(state, 7)
  monkeypatch.undo()
  calls = []
  _evaluator(tmp_path, calls)(state, 7)
  assert len(calls) == 2
