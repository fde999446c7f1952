"""Runs as objects: one process trains, loads, evaluates and reports, whatever JAX did in it before."""

import dataclasses
import signal
import sys
import threading
import types

import doctests
from flax import nnx
import jax
import ml_collections
import numpy as np
import pages
import pytest
import tiny

import jpmhc_jax as jp
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.reporting import glossary
from jpmhc_jax.runs.session import processes_of
from jpmhc_jax.training import lease, loop


def _config(**changes):
  about = dict(steps=4, mesh=schema.Mesh(), checkpoint=schema.Checkpoint(every=2, keep=3))
  about["logging"] = schema.Logging(every=1, tensorboard=False, diagnostics_every=0)
  return tiny.config(**about | {"evaluation": schema.Evaluation(every=2)} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run of four steps that this process has trained, JAX being in use already."""
  jax.block_until_ready(jax.numpy.ones(3) + 1)
  return jp.train(_config(), tmp_path_factory.mktemp("runs") / "first")


def _arrays(run):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(run.parameters)]


def test_the_glossary_explains_every_metric_that_a_run_records(trained):
  names = {*trained.metrics, *(name for each in trained.evaluations for name in each.metrics)}
  assert len(names) > 15 and not [name for name in sorted(names) if not glossary.meaning(name).words]


def test_train_returns_the_run_and_load_finds_it_again(trained):
  again = jp.load(str(trained.workdir))
  assert trained.config == again.config == _config() and trained.step == again.step == 4
  jax.tree.map(np.testing.assert_array_equal, trained.state, again.state)
  earlier = jp.load(trained.workdir, step=2)
  assert earlier.step == 2 and any((a != b).any() for a, b in zip(_arrays(earlier), _arrays(again), strict=True))


def test_metrics_and_evaluations_are_those_of_the_workdir(trained):
  losses = trained.metrics["train/loss"]
  assert losses.steps.tolist() == [1, 2, 3, 4] and np.all((losses.values > 0) & (losses.values < 20))
  assert [evaluation.step for evaluation in trained.evaluations] == [2, 4] and not trained.problems
  assert (trained.workdir / "report.html").is_file()


def test_the_model_has_the_averaged_parameters(trained):
  held = nnx.to_pure_dict(nnx.state(trained.model, nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, held, trained.state.ema)
  assert trained.parameters is trained.state.ema


def test_evaluate_takes_fields_of_the_evaluation_and_its_result_is_kept(trained):
  metrics = jp.evaluate(trained.workdir, max_examples=16)
  run = jp.load(trained.workdir)
  partial = run.evaluations[-2]
  assert (
    partial.step == 4 and partial.coverage.examples == 16 and partial.metrics == metrics and metrics["examples"] == 16
  )
  count = len(run.evaluations)
  assert run.evaluate()["accuracy"] == pytest.approx(trained.evaluations[-1].metrics["accuracy"])
  assert len(run.evaluations) == count
  with pytest.raises(jp.ConfigError, match=r"evaluation.max_example'.*evaluation.max_examples"):
    run.evaluate(max_example=16)


def test_a_report_covers_one_run_or_several(trained, tmp_path):
  assert trained.report(tmp_path / "one.html").read_text().startswith("<!")
  assert jp.report([trained.workdir, tmp_path / "none"], tmp_path / "two.html") == tmp_path / "two.html"
  with pytest.raises(jp.UserError, match="no run folder"):
    jp.report(tmp_path / "none")


def test_the_same_call_resumes_also_in_another_thread_and_leaves_signals_alone(trained):
  handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  runs = []
  longer = {"optimizer.nonfinite_limit": 5}  # a field that a resumed run may change
  thread = threading.Thread(target=lambda: runs.append(jp.train(_config(), trained.workdir, overrides=longer)))
  thread.start()
  thread.join()
  jax.tree.map(np.testing.assert_array_equal, runs[0].state, trained.state)
  assert runs[0].config.optimizer.nonfinite_limit == 5
  assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("error", [jp.NonFiniteLossError("step 3: loss nan"), jp.Interrupted("SIGINT at step 3")])
def test_what_ends_a_run_is_raised_and_the_folder_is_free_again(error, monkeypatch, tmp_path):
  def ends(parts, command):
    assert parts.profile == range(1, 2) and command == ["notebook"] and (parts.workdir / lease.NAME).is_file()
    raise error

  monkeypatch.setattr(loop, "train", ends)
  with pytest.raises(type(error), match="step 3"):
    jp.train(_config(), tmp_path, profile=range(1, 2), command=["notebook"])
  assert not (tmp_path / lease.NAME).exists()


def test_a_folder_without_a_run_a_step_or_the_same_config_is_refused_in_words(trained, tmp_path):
  with pytest.raises(jp.ConfigError, match="is .* a workdir of `jpmhc train`"):
    jp.load(tmp_path)
  with pytest.raises(jp.CheckpointError, match="no checkpoint of step 3; there are steps 2, 4"):
    _ = jp.load(trained.workdir, step=3).step
  with pytest.raises(jp.ConfigError, match="optimizer.beta2: 0.95 there, 0.5 now"):
    jp.train(_config(), trained.workdir, overrides={"optimizer.beta2": 0.5})
  with pytest.raises(jp.ConfigError, match="a path on this machine, s3://bucket/… or gs://"):
    jp.train(_config(), "http://bucket/run")
  (tmp_path / "config.json").write_text('{"steps": ')
  with pytest.raises(jp.ConfigError, match="config.json"):
    jp.load(tmp_path)


def test_a_grid_is_answered_in_the_symbols_that_it_is_written_in(trained):
  """Rows of text, one text or numbers: the answer is that of the evaluation; what is no such grid is told."""
  batch = trained.dataset.evaluation_batches(1)[0]
  tokens = batch["inputs"].reshape(4, 4)
  rows = ["".join(".1234"[token - 1] for token in row) for row in tokens]
  answer = trained.predict(rows)
  assert trained.predict("\n".join(rows)) == trained.predict("".join(rows)) == answer
  assert trained.predict(tokens - 1) == [[int(cell.replace(".", "0")) for cell in row] for row in answer]
  whole = trained.predict({name: batch[name] for name in ("inputs", "labels")})
  assert answer == ["".join(".1234"[max(token, 1) - 1] for token in row) for row in whole.reshape(4, 4)]
  for grid, message in (
    (["12", "34"], "a grid of 2 rows of 2 cells; expected 4 rows of 4"),
    (["1234"] * 3 + ["123x"], "cell 'x'; expected one of '.' '1' '2' '3' '4'"),
    ({"inptus": tokens}, "unknown array 'inptus'.* Did you mean 'inputs'"),
    ({"inputs": tokens}, r"'inputs' has the shape \(4, 4\)"),
  ):
    with pytest.raises(jp.DataError, match=message):
      trained.predict(grid)


def test_a_notebook_shows_the_run_its_scalars_and_a_figure(trained, monkeypatch):
  monkeypatch.setitem(sys.modules, "pandas", None)
  frame = trained.metrics.frame
  np.testing.assert_array_equal(frame["step"], [1, 2, 3, 4])
  np.testing.assert_array_equal(frame["train/loss"], trained.metrics["train/loss"].values)
  assert np.isnan(frame["evaluation/loss"][0])
  made = []
  pandas = types.SimpleNamespace(Index=lambda steps, name: (list(steps), name))
  pandas.DataFrame = lambda *given, **options: made.append((given, options))
  monkeypatch.setitem(sys.modules, "pandas", pandas)
  _ = trained.metrics.frame
  (columns,), options = made[0]
  assert options["index"] == ([1, 2, 3, 4], "step") and set(columns) == set(trained.metrics)
  assert "<td>train/loss</td><td>4</td>" in trained.metrics._repr_html_()
  assert str(trained.workdir) in trained._repr_html_() and "complete" in trained._repr_html_()
  chart = trained.plot("loss")
  assert [line.get_label() for line in chart.axes[0].lines][:2] == ["train/loss", "evaluation/loss"]
  assert chart._repr_svg_().startswith("<?xml")
  with pytest.raises(jp.ConfigError, match=r"plot\('los'\).* Did you mean 'loss'"):
    trained.plot("los")


def test_a_config_is_named_in_three_ways(tmp_path):
  file = tiny.write_config(tmp_path / "file.py", _config())
  values = ml_collections.ConfigDict(configs.to_dict(_config())).lock()
  for named in (str(file), values, _config()):
    assert configs.resolve(named) == _config()
    changed = configs.resolve(named, {"steps": np.int64(7), "model.recursion.outer": 3})
    model = dataclasses.replace(_config().model, recursion=dataclasses.replace(_config().model.recursion, outer=3))
    assert changed == _config(steps=7, model=model)
  for name, value, message in (
    ("optimiser.beta2", 0.5, "unknown field 'optimiser.beta2'.*'optimizer.beta2'"),
    ("steps.many", 1, "unknown field 'steps.many'"),
    ("steps", "many", "steps='many': expected int"),
    ("model.heads", 0, "model.heads=0: expected at least 1"),
  ):
    with pytest.raises(jp.ConfigError, match=message):
      configs.resolve(_config(), {name: value})


def test_the_precision_of_products_is_the_run_s_inside_and_the_process_s_afterwards():
  config = _config(precision=schema.Precision(matmul="highest"))
  assert jax.config.jax_default_matmul_precision is None
  with processes_of(config):
    assert jax.config.jax_default_matmul_precision == "highest"
  assert jax.config.jax_default_matmul_precision is None


def test_the_block_of_the_page_runs_as_it_stands(trained, tmp_path, monkeypatch):
  page = pages.ROOT / "docs" / "api.md"
  block = next(piece for piece in pages.code(page) if piece.section == "A run" and not piece.span)
  (tmp_path / "runs").mkdir()
  tiny.write_config(tmp_path / "sudoku.py", _config())
  (tmp_path / "runs" / "sudoku").symlink_to(trained.workdir)
  monkeypatch.chdir(tmp_path)
  scope = {"jp": jp}
  exec(block.text.replace("sudoku:tiny", "sudoku.py:plain"), scope)
  assert scope["losses"].steps[-1] == 4 and isinstance(scope["model"], nnx.Module) and scope["page"].is_file()


@pytest.mark.parametrize("name", ["Run", "train", "load", "evaluate", "report"])
def test_the_examples_print_what_they_say(name, trained):
  assert doctests.failures(getattr(jp, name), config=_config(), workdir=trained.workdir) == ""
