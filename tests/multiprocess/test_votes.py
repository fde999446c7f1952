"""ARC votes of an evaluation that is split over processes are those of one process, pooled ones included."""

import gzip
import json
import shutil

import pytest
import tiny

from experiments.faults.launch import Layout, Start
from jpmhc_jax.config import schema


def _start(layout, workdir, arguments, cache):
  with Start(Layout.parse(layout), workdir, [*arguments, f"--workdir={workdir}"], cache) as start:
    assert start.finish() == [0] * start.layout.processes, start.output()


def _results(workdir, step):
  folder = workdir / "evaluation"
  votes = json.loads(gzip.decompress((folder / f"votes_{step}.json.gz").read_bytes()))
  return json.loads((folder / f"step_{step}.json").read_text()), votes


@pytest.mark.slow
def test_two_processes_vote_as_one_does_and_pool_with_what_one_left(tmp_path):
  arc = schema.ArcData(
    canvas=5, max_side=5, max_tasks=6, test_subset="training", subsets="training", augmentations=4,
    evaluation_augmentations=4, translate=False,
  )  # fmt: skip
  config = tiny.config(
    steps=4, data=schema.Data(kind="arc", prefetch=0, arc=arc), mesh=schema.Mesh(data=-1),
    evaluation=schema.Evaluation(every=2, batch_size=8), checkpoint=schema.Checkpoint(every=2, keep=2),
  )  # fmt: skip
  source, cache = tiny.write_config(tmp_path / "config.py", config), tmp_path / "cache"
  one, two = tmp_path / "one", tmp_path / "two"
  _start("1x2", one, ["train", f"--config={source}"], cache)
  shutil.copytree(one, two)
  for name in ("step_4.json", "votes_4.json.gz", "submission_4.json"):
    (two / "evaluation" / name).unlink()
  _start("2x1", two, ["evaluate", "--step=4"], cache)
  (expected, votes), (found, other) = _results(one, 4), _results(two, 4)
  assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
  assert {name for name in expected["metrics"] if "pass@" in name} <= set(found["metrics"])
  assert expected["metrics"]["pooled/augmentations_voted"] == 2 * expected["metrics"]["augmentations_voted"] > 4
  for task, ballots in votes["tasks"].items():
    for (question, plain, answers), (q2, plain2, answers2) in zip(ballots, other["tasks"][task], strict=True):
      assert (question, plain) == (q2, plain2)
      assert [a[:2] for a in answers] == [a[:2] for a in answers2]  # the same grids, votes and order
      assert [a[2] for a in answers] == pytest.approx([a[2] for a in answers2], rel=1e-5)
