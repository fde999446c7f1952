"""ARC tasks given to a run: rows by name, new ones fitted, votes, attempts; and `jpmhc predict` on them."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import tiny

import jpmhc_jax as jp
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.data.arc_given import given_dataset
from jpmhc_jax.data.arc_tasks import parse_task
from jpmhc_jax.evaluation.arc import ArcVotes, STATE_FORMAT
from jpmhc_jax.main import main
from jpmhc_jax.runs import answers
from jpmhc_jax.training import fitting, inherit, loop
from jpmhc_jax.training.checkpoint import Checkpoints

NEW = {
  "train": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3, 4]], "output": [[4, 3]]}],
  "test": [{"input": [[5, 6]]}, {"input": [[7, 8]], "output": [[8, 7]]}],
}
ARC = schema.ArcData(
  canvas=3, max_side=3, max_tasks=3, test_subset="training", subsets="training", augmentations=2,
  evaluation_augmentations=2, translate=False,
)  # fmt: skip
CONFIG = tiny.config(
  data=schema.Data(kind="arc", prefetch=0, arc=ARC),
  model=dataclasses.replace(tiny.config().model, recursion=schema.Recursion(outer=1, inner=1, max_steps=2)),
  connection=schema.Connection(streams=1),
  optimizer=schema.Optimizer(ema=0.9, puzzle=schema.PuzzleOptimizer(learning_rate=0.05)),
)


@pytest.fixture(scope="module")
def trained():
  """A run of three tasks with drawn rows in its table."""
  setup, dataset = tiny.setup(CONFIG), tiny.dataset(CONFIG)
  state = jax.device_get(setup.create())
  rows = np.random.default_rng(0).normal(size=state.table.shape).astype(np.float32)
  return answers.Trained(setup, dataclasses.replace(state, table=rows), dataset.identifiers)


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
  """The run as its trainer leaves it."""
  folder = tmp_path_factory.mktemp("runs") / "arc"
  state = inherit.with_arrays(
    trained.setup, trained.setup.create(), trained.state.params, trained.state.buffers, trained.state.table
  )
  with loop.claimed(CONFIG, folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(0, state, config=CONFIG, dataset=tiny.dataset(CONFIG), clock=loop.fresh_clock())
    checkpoints.close()
  return folder


def test_known_tasks_keep_their_copies_and_new_ones_start_at_the_mean_row(trained):
  known = next(name for name in trained.identifiers[1:] if "|" not in name)
  copies = [name for name in trained.identifiers if name.split("|")[0] == known]
  tasks = [parse_task(name, NEW, "given") for name in ("new", known)]
  dataset = given_dataset(tasks, CONFIG.data, trained.identifiers, batch_size=16, seed=0)
  assert [name for name in dataset.identifiers if name.split("|")[0] == known] == copies
  assert sum(name.split("|")[0] == "new" for name in dataset.identifiers) == 3
  assert (dataset.train.examples, dataset.evaluation.examples) == (2 * 3 * 2, 2 * 3 * 2)
  table = np.asarray(answers.placed(trained.setup, dataset, trained).table)
  theirs = dict(zip(trained.identifiers, trained.state.table, strict=False))
  mean = trained.state.table[1 : len(trained.identifiers)].mean(axis=0)
  for row, name in enumerate(dataset.identifiers):
    np.testing.assert_allclose(table[row], theirs.get(name, mean), rtol=1e-6)


def test_fitting_rows_lowers_the_loss_and_leaves_all_else(trained):
  config = fitting.fit_config(CONFIG, 30)
  dataset = given_dataset([parse_task("new", NEW, "given")], config.data, trained.identifiers, batch_size=16, seed=0)
  setup = answers.prepare(config, dataset, trained.setup.mesh)
  start = answers.placed(setup, dataset, trained)
  before, losses = jax.device_get(start), []
  after = fitting.fit(setup, dataset, start, 30, False, lambda step, loss: losses.append(loss))
  assert losses[-1] < losses[0] and int(after.step) == 30
  jax.tree.map(np.testing.assert_array_equal, (after.params, after.buffers), (before.params, before.buffers))
  moved = (np.asarray(after.table) != before.table).any(axis=1)
  assert moved.tolist() == [name.startswith("new") for name in dataset.identifiers] + [False] * (len(moved) - 4)


def test_examples_show_the_attempts_of_the_submission_without_empty_answers():
  ballot = ["56", None, [["", 3, 1.0], ["65", 2, 1.0], ["11", 1, 0.5]]]
  votes = ArcVotes.from_state(["<blank>", "t"], {"format": STATE_FORMAT, "canvas": 3, "tasks": {"t": [ballot]}})
  tasks = {"t": {"train": NEW["train"], "test": [{"input": [[5, 6]], "output": [[6, 5]]}]}}
  found = answers.Answers(tasks, votes, 0, (), 1.0)
  (example,) = found.examples()
  assert [answer["grid"] for answer in example["predictions"]] == [[[6, 5]], [[1, 1]]] and example["solved_at"] == 1
  assert list(found.submission()["t"][0].values()) == [[[6, 5]], [[1, 1]]]
  assert (found.scores()["pass@1"], found.scores()["outputs/pass@1"]) == (0.0, 1.0)
  assert [list(entry) for entry in found.submission(3)["t"]] == [["attempt_1", "attempt_2", "attempt_3"]]


@pytest.mark.slow
def test_predict_answers_a_folder_fits_what_is_new_and_writes_submission_and_page(workdir, tmp_path, capsys):
  (tmp_path / "tasks").mkdir()
  (tmp_path / "tasks" / "new.JSON").write_text(json.dumps(NEW))
  (tmp_path / "tasks" / "._new.json").write_bytes(b"\0")
  out, page = tmp_path / "answers" / "submission.json", tmp_path / "page.html"
  command = ["predict", str(tmp_path / "tasks"), f"--workdir={workdir}", "--fit=2", f"--out={out}", f"--page={page}"]
  assert main([*command, "--attempts=3"]) == 0
  printed = capsys.readouterr()
  submission = json.loads(out.read_text())
  assert [list(entry) for entry in submission["new"]] == [["attempt_1", "attempt_2", "attempt_3"]] * 2
  assert "1 task, 1 new to the run; rows of the puzzle table fitted in 2 steps" in printed.out
  assert "new · test 1" in printed.out and "5 6" in printed.out and "strict/pass@2" in printed.out
  assert page.read_text().count("<article") == 2 and "not solved" in page.read_text()
  run = jp.load(workdir)
  assert run.predict({"new": NEW}, steps=2, attempts=3) == submission  # the same fit gives the same answers
  assert run.predict(NEW, steps=0, votes=1)[0].keys() == {"attempt_1", "attempt_2"}


def test_predict_reads_standard_input_and_refuses_what_is_no_task(workdir, monkeypatch, capsys):
  def given(text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["predict", "-", f"--workdir={workdir}", "--fit=0"])

  assert given('{"train": ') == 2 and "standard input: not readable as JSON" in capsys.readouterr().err
  assert given("[]") == 2 and "standard input: task 'task': expected an object with 'train'" in capsys.readouterr().err
  wide = {"wide": {"train": NEW["train"], "test": [{"input": [[1, 2, 3, 4]]}]}}
  assert given(json.dumps(wide)) == 2
  assert "task 'wide' has a grid of side 4; the run's canvas, data.arc.canvas=3" in capsys.readouterr().err


def test_tasks_are_given_once_and_to_a_run_that_can_fit_them(trained):
  task = parse_task("new", NEW, "here")
  with pytest.raises(DataError, match="here: task 'new' is already given by here; give it once"):
    answers.answer(trained, [task, task])
  alone = dataclasses.replace(trained, state=dataclasses.replace(trained.state, table=None))
  with pytest.raises(ConfigError, match="--fit=3: model.puzzle.width=0, so that no row can be fitted"):
    answers.answer(alone, [task], steps=3)
