"""Optuna over the algebra's space with a stand-in for the trainer: it finds, prunes, survives and counts seeds."""

import json
import os
import pathlib
import random
import sys

import optuna
import pytest

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.sweeps import between, cases, chain, executors, ledger, product, seeds, Sweep, sweep
from jpmhc_jax.sweeps.plan import Dice, Planner
from jpmhc_jax.sweeps.pool import Pool
from jpmhc_jax.sweeps.search import Search
from jpmhc_jax.sweeps.space import SweepError

FAKE = pathlib.Path(__file__).with_name("fake_trainer.py")
TINY = "sudoku:tiny"


@pytest.fixture
def search():
  """search(folder, space, trials): a search with the stand-in; closed when the test ends."""
  opened = []

  def make(folder, space, trials, storage=""):
    book = ledger.Ledger(folder, {})
    executor = executors.Executor("local", folder, TINY, {}, program=(sys.executable, str(FAKE)))
    pool = Pool(executor, book, jobs=1, retries=0, say=lambda _: None)
    planner = Planner(TINY, ["--config.steps=4"], None, folder, lambda _: 1.0, book.names)
    opened.append(Search(Sweep(space), planner, pool, trials=trials, storage=storage))
    return opened[-1]

  yield make
  for each in opened:
    each.close()


@pytest.mark.slow
def test_the_best_of_a_list_is_found_and_a_study_goes_on_where_it_was(search, tmp_path):
  space = product(sweep("optimizer.learning_rate", [0.2, 0.6]), seeds(2))
  first = search(tmp_path, space, trials=1)
  assert first.run().exit_code == 0 and len(first.study.trials) == 1
  second = search(tmp_path, space, trials=3)
  ending = second.run()
  assert ending.exit_code == 0 and len(second.study.trials) == 3
  drawn = {name for trial in second.study.trials[1:] for name in trial.user_attrs["runs"]}
  assert {run.name for run, _ in ending.runs} == drawn  # also of a point that was drawn again
  for trial in second.study.trials:
    rate = trial.user_attrs["point"]["optimizer.learning_rate"]
    assert trial.value == pytest.approx(rate)  # the mean over two seeds of what the stand-in scores
    # Intermediate values run through both seeds; the second half is the mean of the first seed and the second's rise.
    assert trial.intermediate_values[4] == pytest.approx(rate)
    assert trial.intermediate_values[6] == pytest.approx((rate + rate / 2) / 2)
    assert len(trial.user_attrs["runs"]) == 2
  names = {name for trial in second.study.trials for name in trial.user_attrs["runs"]}
  assert all((tmp_path / name / "starts").read_text() == "1" for name in names)  # a repeated point is not run again


def _junk(path):
  path.write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(
  ("storage", "make", "message"),
  [
    ("sqlite:///{}", lambda path: path.symlink_to("/dev/zero"), "study.db: is a character device; expected a regular"),
    ("sqlite:///{}", os.mkfifo, "study.db: is a pipe"),
    ("sqlite:///{}", _junk, r"--storage='sqlite:///.*study.db': keeps no study of Optuna \(file is not a database\)"),
    ("sqlite:///{}/none/study.db", lambda path: None, "unable to open database file"),
    ("study.db", lambda path: None, "--storage='study.db': .* such as sqlite:///study.db"),
    ("nosuch://user:secret@host/x", lambda path: None, r"--storage='nosuch://user:\*\*\*@host/x'"),
  ],
)
def test_a_storage_that_is_no_database_is_refused_in_words(search, tmp_path, storage, make, message):
  make(tmp_path / "study.db")
  with pytest.raises(UserError, match=message) as refused:
    search(tmp_path, seeds(1), trials=1, storage=storage.format(tmp_path / "study.db"))
  assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a?b=1", "p%41", "br{a}ce", "[x]*", "back\\slash"])
def test_a_search_keeps_its_database_in_its_own_folder(search, tmp_path, name):
  search(tmp_path / name, sweep("optimizer.learning_rate", [0.2, 0.6]), trials=1)
  assert (tmp_path / name / "search.db").stat().st_size > 0 and os.listdir(tmp_path) == [name]


def test_a_search_in_a_folder_that_is_no_text_is_refused_in_words(search, tmp_path):
  with pytest.raises(SweepError, match="expected a path in UTF-8"):
    search(tmp_path / os.fsdecode(b"byte\xff"), sweep("optimizer.learning_rate", [0.2, 0.6]), trials=1)


@pytest.mark.slow
def test_a_trial_behind_the_median_is_stopped_and_told_so(search, tmp_path, monkeypatch):
  monkeypatch.setenv("FAKE_PAUSE", "0.5")
  found = search(tmp_path, sweep("optimizer.learning_rate", [0.9, 0.1]), trials=6)
  for rate in (0.8, 0.7, 0.75, 0.85):  # as if run before
    done = optuna.trial.create_trial(
      value=rate,
      user_attrs={"runs": ["earlier"], "point": {}},
      intermediate_values={step: rate * step / 4 for step in range(1, 5)},
      params={},
      distributions={},
    )
    found.study.add_trial(done)
  found.study.enqueue_trial({"optimizer.learning_rate": 0.1})
  found.study.enqueue_trial({"optimizer.learning_rate": 0.9})
  ending = found.run()
  pruned, complete = found.study.trials[4:]
  assert pruned.state == optuna.trial.TrialState.PRUNED and complete.state == optuna.trial.TrialState.COMPLETE
  records = {record.state: record for _, record in ending.runs}
  assert set(records) == {"pruned", "done"} and ending.exit_code == 0
  assert len((tmp_path / records["pruned"].name / "metrics.jsonl").read_text().splitlines()) < 4


@pytest.mark.slow
def test_an_unfinished_trial_is_taken_up_and_a_failed_one_told(search, tmp_path, monkeypatch):
  monkeypatch.setenv("FAKE_PLAN", "exit75/exit0")
  space = sweep("optimizer.learning_rate", [0.3])
  first = search(tmp_path, space, trials=1)
  trial = first.study.ask()
  first._start(trial, first._new_point(trial))
  while first.active:
    first._collect(first.pool.poll())
  assert first.study.trials[0].state == optuna.trial.TrialState.RUNNING
  second = search(tmp_path, space, trials=1)
  assert second.run().exit_code == 0
  assert [trial.value for trial in second.study.trials] == [pytest.approx(0.3)]
  monkeypatch.setenv("FAKE_PLAN", "exit2")
  third = search(tmp_path, between("optimizer.learning_rate", 0.1, 0.2), trials=2)
  assert third.run().exit_code == 1
  assert third.study.trials[1].state == optuna.trial.TrialState.FAIL


def test_any_rdb_url_is_a_storage_and_two_folders_do_not_take_each_others_trials(search, tmp_path):
  url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
  one, other = (search(tmp_path / name / "same", sweep("seed", [0]), 1, storage=url) for name in ("a", "b"))
  one._new_point(one.study.ask())
  other._go_on()
  assert other.active == [] and not (tmp_path / "a" / "same" / "search.db").exists()


@pytest.mark.slow
def test_points_that_cannot_run_do_not_use_the_search_up_and_the_exit_code_says_so(search, tmp_path):
  space = product(sweep("connection.mixer", ["kronecker", "cayley"]), sweep("connection.streams", [3, 4]))
  found = search(tmp_path, space, trials=3)
  found.study.enqueue_trial({"connection.mixer": "kronecker", "connection.streams": 3})
  ending = found.run()
  failed, *complete = sorted(found.study.trials, key=lambda trial: trial.state != optuna.trial.TrialState.FAIL)
  assert ending.refused >= 1 and ending.exit_code == 1
  assert sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in complete) == 3
  assert search(tmp_path, space, trials=3).run().exit_code == 0  # three have ended: nothing more to do


@pytest.mark.parametrize(
  ("space", "expected"),
  [
    (between("optimizer.lerning_rate", 1e-4, 1e-2, log=True), "'optimizer.lerning_rate'.* Did you mean 'optimizer.l"),
    (sweep("optimizer.learning_rate", [1e-3, "fast"]), "learning_rate='fast': expected float, got str"),
    (sweep("model.width", [16, 16.5]), "model.width=16.5: expected int, got float"),
    (sweep("model.width", [16, True]), "model.width=True: expected int, got bool"),
    (sweep("logging.tensorboard", [True, "no"]), "expected bool, got str"),
    (between("connection.mixer", 1, 2), "expected str, got float"),
    (between("optimizer.beta1", 0.5, 1.5), "optimizer.beta1=1.5: expected 0 to below 1"),
    (between("batch_size", -8, 8), "batch_size=-8: expected at least 1"),
    (sweep("connection.mixer", ["cayley", "caley"]), "Did you mean 'cayley'"),
    (sweep("connection.options", ["alpha=0.1", "alhpa=1"]), "alhpa"),
    (cases({"connection.mixer": "kronecker", "connection.streams": 3}), "needs a power of two"),
    (cases({"seed": 1}, {"connection.mixer": "kronecker", "connection.streams": 3}), "needs a power of two"),
    (product(sweep("model.width", [16, 30]), sweep("model.heads", [4, 16])), "model.width=30: expected a multiple"),
    (product(between("optimizer.beta1", 0.5, 0.6), sweep("seed", ["one"])), "seed='one': expected int"),
  ],
)
def test_a_field_or_value_that_cannot_be_is_found_before_the_first_trial(space, expected, search, tmp_path):
  with pytest.raises(UserError, match=expected):
    search(tmp_path / "s", space, trials=2)
  assert not (tmp_path / "s" / "search.db").exists()


def draw(found):
  """One more point of a search, and its trial, as if it had been run."""
  trial = found.study.ask()
  point = found._new_point(trial)
  trial.set_user_attr("runs", ["earlier"])
  found.study.tell(trial, 0.5)
  return point, found.study.trials[trial.number]


@pytest.mark.slow
def test_a_list_that_grew_or_changed_goes_on_with_what_was_run(search, tmp_path):
  rates = [0.2, 0.4]
  draw(search(tmp_path, sweep("optimizer.learning_rate", rates), trials=1))
  said = []
  changed = (
    sweep("optimizer.learning_rate", [0.4, 0.2]),  # another order is the same list
    sweep("optimizer.learning_rate", [*rates, 0.8]),
    between("optimizer.learning_rate", 0.1, 0.9, log=True),
    chain(sweep("optimizer.learning_rate", rates), sweep("batch_size", [8, 16])),
    chain(sweep("optimizer.learning_rate", rates), sweep("batch_size", [8, 16]), sweep("model.layers", [3])),
  )
  for k, space in enumerate(changed):
    found = search(tmp_path, space, trials=2 + k)
    found.pool.say = said.append
    draw(found)
    draw(found)
    assert len(found.study.trials) == 3 + 2 * k
    assert bool(said) == (k > 0)
  assert sum("optimizer.learning_rate: other values than in earlier trials" in line for line in said) == 2
  assert sum("branch: other values" in line for line in said) == 1


def test_a_field_of_whole_numbers_is_drawn_in_whole_numbers(search, tmp_path):
  space = product(between("model.mlp_multiple", 8, 64, log=True), between("optimizer.learning_rate", 0.1, 0.2))
  for trials in (1, 2, 3):
    point, trial = draw(search(tmp_path, space, trials))
    multiple = point["model.mlp_multiple"]
    assert type(multiple) is int and 8 <= multiple <= 64 and trial.params["model.mlp_multiple"] == multiple
    assert trial.distributions["model.mlp_multiple"].log and isinstance(point["optimizer.learning_rate"], float)
  drawn = {trial.params["optimizer.learning_rate"] for trial in search(tmp_path, space, 3).study.trials}
  assert len(drawn) == 3  # a start that goes on does not draw the points of the first again


def test_two_chains_of_a_product_are_drawn_apart(search, tmp_path):
  one, other = chain(sweep("steps", [1]), sweep("steps", [2])), chain(sweep("seed", [1]), sweep("seed", [2]))
  arms = cases({"model.layers": 1, "model.heads": 1}, {"model.layers": 2, "model.heads": 2})
  more = cases({"batch_size": 8, "accumulation": 1}, {"batch_size": 8, "accumulation": 2}, {"batch_size": 16})
  space = product(one, arms, product(more, other))
  assert len({tuple(space.suggest(Dice(random.Random(k))).items()) for k in range(400)}) == space.size() == 24


def test_a_trial_whose_metric_is_not_recorded_stays_open(search, tmp_path):
  found = search(tmp_path, sweep("optimizer.learning_rate", [0.3]), trials=1)
  found.planner.check = refuse
  with pytest.raises(SweepError, match="no such metric"):
    found.run()
  assert [trial.state for trial in found.study.trials] == [optuna.trial.TrialState.RUNNING]
  again = search(tmp_path, sweep("optimizer.learning_rate", [0.3]), trials=1)
  assert again.run().exit_code == 0
  assert [trial.value for trial in again.study.trials] == [pytest.approx(0.3)]


def test_no_other_metric_stands_in_for_the_one_asked_for(tmp_path):
  lines = [{"step": step, "evaluation/loss": 2.0 / step, "evaluation/exact_accuracy": 0.1 * step} for step in (1, 2)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  assert ledger.scores(tmp_path) == ("exact_accuracy", True, [(1, 0.1), (2, 0.2)])
  assert ledger.scores(tmp_path, "loss") == ("loss", False, [(1, 2.0), (2, 1.0)])
  assert ledger.scores(tmp_path, "bits_per_bite") is None


def refuse(config):
  raise SweepError("no such metric")


def test_seeds_cannot_hide_in_a_searched_space(search, tmp_path):
  with pytest.raises(SweepError, match="top level"):
    search(tmp_path, chain(seeds(2), sweep("model.layers", [1])), 1)
