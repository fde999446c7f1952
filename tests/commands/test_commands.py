"""The command line on one tiny run: files, exit codes, messages, resuming, evaluating, reporting."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest
import tiny

import jpmhc_jax as jp
from jpmhc_jax.commands import COMMANDS
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.terminal import EXIT_CTRL_C
from jpmhc_jax.main import main
from jpmhc_jax.runs import run


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  """A config file of a 4-step run on all test devices, its parameters split over two of them."""
  config = tiny.config(
    steps=4,
    mesh=schema.Mesh(data=4, fsdp=2),
    checkpoint=schema.Checkpoint(every=2),
    evaluation=schema.Evaluation(every=2),
    logging=schema.Logging(every=1, tensorboard=False, diagnostics_every=2),
  )
  return tiny.write_config(tmp_path_factory.mktemp("configs") / "tiny_config.py", config)


@pytest.fixture(scope="module")
def workdir(config_file, tmp_path_factory):
  """Where `jpmhc train` ran once to its end; tests only read it or append to it."""
  folder = tmp_path_factory.mktemp("runs") / "tiny"
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    assert main(["train", f"--config={config_file}", f"--workdir={folder}"]) == 0
  (folder / "stdout").write_text(printed.getvalue())
  return folder


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _losses(workdir):
  return [(line["step"], line["train/loss"]) for line in _lines(workdir) if "train/loss" in line]


def _json(path):
  return json.loads(path.read_text())


def test_train_writes_the_whole_workdir(workdir, config_file):
  assert configs.restore(workdir / "config.json") == configs.load(str(config_file))
  environment = _json(workdir / "environment.json")
  assert environment["command"] == ["jpmhc", "train", f"--config={config_file}", f"--workdir={workdir}"]
  revision = environment["git_revision"].removesuffix("+changes")
  assert revision == "unknown" or (len(revision) == 40 and int(revision, 16) > 0)
  assert environment["packages"]["jax"] == jax.__version__
  assert [device["platform"] for device in environment["devices"]] == [d.platform for d in jax.devices()]
  assert environment["seed"] == 0
  assert [step for step, _ in _losses(workdir)] == [1, 2, 3, 4]
  assert all(0 < loss < 20 for _, loss in _losses(workdir))
  assert sorted(p.name for p in (workdir / "evaluation").glob("step_*.json")) == ["step_2.json", "step_4.json"]
  assert (workdir / "checkpoints").is_dir()
  page = (workdir / "report.html").read_text()
  assert page.startswith("<!") and "</html>" in page


def test_a_run_says_what_it_is_how_far_it_is_and_what_came_out(workdir, config_file):
  said = (workdir / "stdout").read_text()
  heads = [line.split(" ")[0] for line in said.splitlines() if not re.search(r" … \d", line)]  # said every 10 s
  assert heads == [
    "starting", "jpmhc_jax", "workdir", "device", "data", "model", "mixer", "optimizer", "plan", "compiling",
    "compiled", *["step"] * 4, "best", "report:", "next:",
  ]  # fmt: skip
  parameters = jp.load(workdir).setup.parameter_count
  for words in (
    f"starting {config_file} in {workdir}", "trm on sudoku", "8 × cpu (data 4 × fsdp 2), float32",
    "1,260 examples to train on, 20 held out", f"width 16: {parameters:,} parameters", "cayley of 2 streams",
    "FLOPs a token", "4 steps of batch 16; evaluation every 2, checkpoint every 2", "the first step is done",
    "step 4/4  loss ", "step 4 of 4 after ", f"at step 4: {workdir}/checkpoints/4",
    f"report: {workdir / 'report.html'}", f"next: jpmhc spectrum --workdir={workdir}",
  ):  # fmt: skip
    assert words in said, words
  assert "\r" not in said and "\x1b" not in said


def test_metrics_hold_the_scalars_of_training_evaluation_and_mixers(workdir):
  lines = _lines(workdir)
  last = {name: value for line in lines if line["step"] == 4 for name, value in line.items()}
  evaluated = _json(workdir / "evaluation" / "step_4.json")["metrics"]
  assert {f"evaluation/{name}": value for name, value in evaluated.items()}.items() <= last.items()
  assert last["train/learning_rate"] == pytest.approx(1e-2)
  for where in ("block0.tokens", "block0.features", "composite"):
    assert last[f"mixer/{where}/largest_singular_value"] == pytest.approx(1.0, abs=1e-5)
  assert all(value is not None for line in lines for value in line.values())


def test_training_again_on_a_finished_workdir_does_nothing_but_the_report(workdir, config_file, capsys):
  losses = _losses(workdir)
  (workdir / "report.html").unlink()
  assert main(["train", f"--config={config_file}", f"--workdir={workdir}"]) == 0
  assert f"report: {workdir / 'report.html'}" in capsys.readouterr().out
  assert (workdir / "report.html").is_file()
  assert _losses(workdir) == losses
  assert len(_json(workdir / "environment.json")["earlier_starts"]) >= 1


def test_another_config_on_the_same_workdir_is_refused_and_the_field_named(workdir, config_file, capsys):
  before = (workdir / "config.json").read_text()
  arguments = ["train", f"--config={config_file}", f"--workdir={workdir}", "--config.optimizer.beta2=0.5"]
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert "optimizer.beta2: 0.95 there, 0.5 now" in error and "--workdir" in error
  assert "Traceback" not in error
  assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--config.optimizer.learning_rat=1e-3"], "optimizer.learning_rate"),
    (["--config.modle.width=16"], "model.width"),
    (["--config.steps=many"], "steps: int"),
    (["--config.connection.mixer=caley"], "cayley"),
    (["--config.model.heads=3"], "model.heads=3"),
    (["--config.steps"], "--config.steps=VALUE"),
    (["--surprise=1"], "unknown argument"),
    (["--workdir=elsewhere"], "--workdir is given twice"),
  ],
)
def test_a_bad_field_or_value_exits_with_2_and_says_what_would_do(arguments, expected, config_file, tmp_path, capsys):
  assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith("jpmhc train: ") and expected in error and "Traceback" not in error


def test_a_misspelt_field_inside_a_config_file_is_found(config_file, tmp_path, capsys):
  assert main(["train", f"--config={config_file}:misspelt", f"--workdir={tmp_path / 'run'}"]) == 2
  error = capsys.readouterr().err
  assert "learning_rat" in error and "learning_rate" in error
  assert not (tmp_path / "run").exists()


def test_a_missing_config_file_exits_with_2(tmp_path, capsys):
  assert main(["train", f"--config={tmp_path / 'none.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
  assert f"no file {tmp_path / 'none.py'}" in capsys.readouterr().err


def test_evaluate_repeats_the_metrics_of_the_last_evaluation(workdir, capsys):
  path = workdir / "evaluation" / "step_4.json"
  before = _json(path)
  path.unlink()
  assert main(["evaluate", f"--workdir={workdir}"]) == 0
  assert _json(path) == before
  out = capsys.readouterr().out
  assert f"written: {path}" in out
  assert f"{'exact_accuracy':28s} {before['metrics']['exact_accuracy']:.6g}" in out


def test_evaluate_takes_an_earlier_step_and_overrides_of_its_own_fields_only(workdir, capsys):
  path = workdir / "evaluation" / "step_2.json"
  before = _json(path)
  arguments = ["evaluate", f"--workdir={workdir}", "--step=2"]
  assert main([*arguments, "--config.evaluation.max_examples=5"]) == 0
  assert _json(path) == before and before["metrics"]["examples"] == 20
  part = path.with_name("step_2_partial_5_of_20.json")
  assert _json(part)["metrics"]["examples"] == 5 and _json(part)["partial"] == {"examples": 5, "held_out": 20}
  out = capsys.readouterr().out
  assert "PARTIAL: the first 5 of 20 held-out examples\n" in out and f"written: {part}" in out
  part.unlink()
  assert main([*arguments, "--config.evaluation.pooled=False"]) == 2  # the file would lose these metrics
  assert "evaluation.pooled=False: the run records True, and evaluation/step_N.json" in capsys.readouterr().err
  assert _json(path) == before
  assert main([*arguments, "--config.optimizer.beta1=0.5"]) == 2
  assert "only fields of 'evaluation'" in capsys.readouterr().err


def test_a_best_metric_that_no_evaluation_has_is_refused_before_anything_is_built(config_file, tmp_path, capsys):
  asked = "--config.checkpoint.best_metric=exact_acuracy"
  assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", asked]) == 2
  assert "checkpoint.best_metric='exact_acuracy': expected one of" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("devices", "more"),
  [
    pytest.param(1, [], marks=pytest.mark.slow),
    pytest.param(3, [], marks=pytest.mark.slow),
    (8, ["--config.mesh.fsdp=1", "--config.mesh.tensor=2"]),
  ],
)
def test_a_run_is_evaluated_on_other_devices_with_the_same_numbers(workdir, devices, more, monkeypatch):
  path = workdir / "evaluation" / "step_4.json"
  before = _json(path)
  present = jax.devices()[:devices]
  monkeypatch.setattr(jax, "devices", lambda: present)
  path.unlink()
  assert main(["evaluate", f"--workdir={workdir}", *more]) == 0
  after = _json(path)
  path.write_text(json.dumps(before))
  assert after["metrics"] == pytest.approx(before["metrics"], rel=1e-5)
  answers = [[e["predictions"][0]["grid"] for e in evaluation["examples"]] for evaluation in (before, after)]
  assert answers[0] == answers[1] and len(answers[0]) == 20


def test_a_mesh_that_the_devices_do_not_make_is_refused_with_one_that_they_do(workdir, capsys):
  assert main(["evaluate", f"--workdir={workdir}", "--config.mesh.fsdp=3"]) == 2
  assert "set mesh.data=-1 and choose fsdp*tensor as a divisor of 8" in capsys.readouterr().err
  assert main(["spectrum", f"--workdir={workdir}", "--config.evaluation.pooled=False"]) == 2
  assert "only fields of 'mesh' can be overridden" in capsys.readouterr().err
  assert main(["spectrum", f"--workdir={workdir}", "--config=images:tiny"]) == 2
  assert "--config=images:tiny: expected either it or --workdir" in capsys.readouterr().err
  assert main(["spectrum", "--config.mesh.fsdp=2"]) == 2
  assert "--config.mesh.fsdp=2: expected --workdir or --config beside it" in capsys.readouterr().err


def test_a_run_goes_on_from_any_path_under_any_name(workdir, config_file, tmp_path, monkeypatch):
  """Relative paths, a home folder, a link, another current folder; markup, patterns and bytes that are no text."""
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  name = os.fsdecode(b"runs/x[/b] *?%41\\\xff")
  shutil.copytree(workdir, name)
  train = ["train", f"--config={os.path.relpath(config_file)}"]
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    assert main([*train, f"--workdir={name}"]) == 0  # restores its checkpoint
    (tmp_path / "link").symlink_to(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluation = tmp_path / name / "evaluation" / "step_4.json"
    evaluation.unlink()
    assert main(["evaluate", "--workdir=../link"]) == 0 and evaluation.is_file()
    assert main(["report", f"~/{name}", "--out=pages/one.html"]) == 0
  assert _losses(tmp_path / name) == _losses(workdir)
  assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link", "runs"] and os.listdir() == ["pages"]
  assert "x[/b] *?%41" in pathlib.Path("pages/one.html").read_text()
  assert "damaged" not in out.getvalue() + err.getvalue()


@pytest.mark.parametrize("verb", ["train", "evaluate", "spectrum", "sweep", "report"])
def test_a_url_is_no_workdir(verb, config_file, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  more = {"train": [f"--config={config_file}"], "sweep": [f"--config={config_file}", "--sweep=s.py"]}.get(verb, [])
  with pytest.raises(SystemExit) as end:
    main([verb, *more, "az://bucket/run" if verb == "report" else "--workdir=az://bucket/run"])
  assert end.value.code == 2
  assert "'az://bucket/run': expected a path on this machine, s3://bucket/… or gs://bucket/…" in capsys.readouterr().err
  assert not os.listdir(tmp_path)


def test_an_ablation_is_written_beside_the_evaluation_and_refused_in_training(workdir, config_file, capsys):
  evaluation = _json(workdir / "evaluation" / "step_4.json")
  assert main(["evaluate", f"--workdir={workdir}", "--ablation=mean"]) == 0
  path = workdir / "evaluation" / "ablation_mean_all" / "step_4.json"
  out = capsys.readouterr().out
  assert "ABLATION: mean mixer in connections all" in out and f"written: {path}" in out
  assert _json(path)["metrics"] != evaluation["metrics"] == _json(workdir / "evaluation" / "step_4.json")["metrics"]
  assert main(["train", f"--config={config_file}", f"--workdir={workdir}", "--config.evaluation.ablation=mean"]) == 2
  assert "It is an option of a command now, such as `jpmhc evaluate --ablation=identity`" in capsys.readouterr().err


def test_results_that_lack_metrics_of_the_runs_own_are_refused_unless_they_have_files_of_their_own():
  recorded, asked = schema.Evaluation(), schema.Evaluation(pooled=False)
  with pytest.raises(ConfigError, match="evaluation.pooled=False: the run records True"):
    run._refuse_less(recorded, asked)
  run._refuse_less(recorded, dataclasses.replace(asked, max_examples=3))
  run._refuse_less(asked, recorded)


def test_evaluate_of_a_step_or_a_folder_that_is_not_there_exits_with_2(workdir, tmp_path, capsys):
  assert main(["evaluate", f"--workdir={workdir}", "--step=999"]) == 2
  assert "no checkpoint of step 999" in capsys.readouterr().err
  assert main(["evaluate", f"--workdir={tmp_path}"]) == 2
  assert "is " in capsys.readouterr().err


@pytest.mark.parametrize("line", ["configs", "predict --workdir=run grids", "report run", "train --config=sudoku"])
def test_ctrl_c_ends_a_command_in_a_sentence(line, monkeypatch, capsys):
  [command] = [command for command in COMMANDS if command.name == line.split()[0]]

  def run(self, options):
    raise KeyboardInterrupt

  monkeypatch.setattr(type(command), "run", run)
  assert main(line.split()) == EXIT_CTRL_C == 130
  assert "what it was writing is not there; run the same command again" in capsys.readouterr().err


def test_describe_lists_every_field_with_its_value(config_file, capsys):
  assert main(["describe"]) == 0
  out = capsys.readouterr().out
  for name, _ in configs.leaves(schema.Config()):
    assert name in out
  for source in ([f"--config={config_file}"], []):
    assert main(["describe", *source, "--config.seed=987654"]) == 0
    assert "987654" in capsys.readouterr().out
    assert main(["describe", *source, "--config.sead=1"]) == 2
    assert "Did you mean 'seed'?" in capsys.readouterr().err
  assert main(["describe", "--markdown"]) == 2
  assert "--markdown: expected --mixers beside it" in capsys.readouterr().err


def test_what_plans_a_run_does_not_start_one(config_file, tmp_path, capsys):
  assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--memory=80"]) == 2
  assert "--memory: expected --plan beside it" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_report_goes_where_it_is_told_and_refuses_what_is_no_workdir(workdir, tmp_path, capsys):
  assert main(["report", str(workdir), f"--out={tmp_path / 'page.html'}"]) == 0
  assert capsys.readouterr().out == f"report: {tmp_path / 'page.html'}\n"
  assert (tmp_path / "page.html").stat().st_size > 1000
  assert main(["report", str(tmp_path / "nothing")]) == 2
  assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_a_mistyped_mixer_is_named_as_it_was_given(tmp_path, capsys):
  assert main(["spectrum", "--mixer=cayley,sinkorn", f"--out={tmp_path}"]) == 2
  assert "--mixer='sinkorn': expected one of" in (error := capsys.readouterr().err)
  assert "Did you mean 'sinkhorn'?" in error and "connection.mixer" not in error


def test_commands_without_overrides_refuse_them(workdir, capsys):
  assert main(["report", str(workdir), "--config.steps=3"]) == 2
  assert "unknown argument '--config.steps=3'" in capsys.readouterr().err


def test_an_unknown_command_prints_the_known_ones(capsys):
  with pytest.raises(SystemExit) as exit_:
    main(["trian"])
  assert exit_.value.code == 2
  error = capsys.readouterr().err
  assert "trian" in error and error.endswith("Did you mean 'train'?\n")


@pytest.mark.parametrize(
  ("verb", "option", "words"),
  [
    ("sweep", "--storage URL", ("database", "search.db in the workdir", "same name share")),
    ("spectrum", "--exact-limit", ("examples x tokens x streams x features", "Lanczos", "Memory")),
  ],
)
def test_help_says_what_an_option_takes_and_does(verb, option, words, capsys):
  with pytest.raises(SystemExit):
    main([verb, "--help"])
  shown = " ".join(capsys.readouterr().out.split())
  assert all(word in shown.split(option)[-1] for word in words)


def test_help_answers_without_importing_jax():
  code = (
    "import sys\nfrom jpmhc_jax.main import main\n"
    "try:\n  main(['--help'])\nexcept SystemExit as end:\n  code = end.code\n"
    "heavy = {'jax', 'flax', 'optax', 'orbax', 'matplotlib', 'numpy'} & set(sys.modules)\n"
    "print('exit', code, sorted(heavy))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert "exit 0 []" in done.stdout
  for verb in ("train", "evaluate", "sweep", "report", "describe", "spectrum"):
    assert verb in done.stdout


@pytest.mark.slow
def test_predict_answers_grids_from_standard_input_and_files_and_draws_them(workdir, tmp_path, monkeypatch, capsys):
  out, page, listed = tmp_path / "answers.json", tmp_path / "page.html", tmp_path / "grids.json"
  monkeypatch.setattr("sys.stdin", io.StringIO("3..4\n.4..\n..4.\n..31\n\n1...\n....\n....\n...2\n"))
  listed.write_text("[[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]]")
  command = ["predict", "-", str(listed), f"--workdir={workdir}", f"--out={out}", f"--page={page}", "--show=1"]
  assert main(command) == 0
  printed = capsys.readouterr().out
  first, second, third = _json(out)
  assert first["input"] == ["3..4", ".4..", "..4.", "..31"] and [len(row) for row in first["answer"]] == [4] * 4
  assert third["answer"] == [[int(cell.replace(".", "0")) for cell in row] for row in second["answer"]]
  assert "3 . . 4" in printed and " ".join(first["answer"][1]) in printed and "3 grids of 4×4." in printed
  assert page.read_text().count("<article") == 3 and 'class="badge' not in page.read_text()
  assert jp.load(workdir).predict([first["input"], second["input"]]) == [first["answer"], second["answer"]]
  listed.write_text("[[1, 2")
  assert main(["predict", str(listed), f"--workdir={workdir}"]) == 2
  assert "not readable as JSON" in capsys.readouterr().err
