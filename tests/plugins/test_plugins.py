"""A user's module with a task, a data set of float vectors and a mixer: through every command, and its mistakes."""

import importlib.metadata
import json
import re
import shutil
import sys

import pytest

from jpmhc_jax import mixers
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import plugins, schema
from jpmhc_jax.core import names
from jpmhc_jax.core.errors import ConfigError, UserError
from jpmhc_jax.main import main
from jpmhc_jax.sweeps import between, product, Sweep, sweep
from jpmhc_jax.sweeps.plan import Planner
from jpmhc_jax.training.tasks import task_of

KINDS = [*plugins.TASKS.names(()), "ripple_fit"]
WAVES = """
import dataclasses

from flax import nnx
import jax.numpy as jnp
import numpy as np

import jpmhc_jax as jp


@dataclasses.dataclass(frozen=True)
class WaveFields:
  examples: int = jp.field(64, "ripples to train on", ge=1)
  frequency: float = jp.field(1.5, "angular frequency of the ripples", gt=0, le=99.5)
  phase: str = jp.field("sine", "where a ripple begins", ("sine", "cosine"))
  broken: int = jp.field(0, "ripples that hold no numbers", ge=0)


@jp.register_dataset("ripples", fields=WaveFields)
def ripples(config, *, batch_size, seed):
  options = config.ripples
  x = np.random.default_rng(0).uniform(-1, 1, (options.examples + 21, 3))
  arrays = {"x": x, "y": np.sin(options.frequency * x.sum(1, keepdims=True)), "weight": np.ones(len(x))}
  train, held = ({name: array[part] for name, array in arrays.items()} for part in (slice(21, None), slice(21)))
  train["x"][: options.broken] = np.nan
  return jp.ArrayDataset.of(train, held, kind="ripples", batch_size=batch_size, seed=seed)


@dataclasses.dataclass(frozen=True)
class RegressionFields:
  hidden: int = jp.field(16, "features of the hidden layer")


class Network(nnx.Module):
  def __init__(self, inputs, hidden, rngs):
    self.first, self.second = nnx.Linear(inputs, hidden, rngs=rngs), nnx.Linear(hidden, 1, rngs=rngs)

  def __call__(self, x):
    return self.second(jnp.tanh(self.first(x)))


@jp.register_task("ripple_fit", fields=RegressionFields)
class Regression(jp.SinglePass):
  data_kinds = ("ripples",)
  per_example = ("loss", "squared_error")
  main_metric = "squared_error"

  def build(self, config, dataset, rngs):
    return Network(dataset.element_spec["x"].shape[-1], config.model.ripple_fit.hidden, rngs)

  def losses(self, model, batch, config):
    error = jnp.sum((model(batch["x"]) - batch["y"]) ** 2, axis=-1)
    return {"loss": batch["weight"] * error, "squared_error": error}

  def predict(self, model, rows, batch, config):
    return self.losses(model, batch, config) | {"predictions": model(batch["x"])}


@jp.register_mixer("slow_cayley")
@dataclasses.dataclass(frozen=True)
class SlowCayley(jp.Cayley):
  alpha: float = 0.01
"""
CONFIG = """
from jpmhc_jax.config.load import default


def get_config(variant="ripples"):
  config = default()
  config.plugins = ("wave_module",)
  config.data.kind, config.data.prefetch, config.data.ripples.frequency = variant, 0, 1.0
  config.model.kind = "ripple_fit"
  config.steps, config.batch_size, config.mesh.data = 16, 16, 8
  config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "adamw", 1e-1, 1
  config.optimizer.ema, config.evaluation.every, config.evaluation.batch_size = 0.5, 8, 8
  config.logging.every, config.logging.tensorboard = 1, False
  return config
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  """A folder with the module and a config file beside it."""
  folder = tmp_path_factory.mktemp("project")
  (folder / "wave_module.py").write_text(WAVES)
  (folder / "config.py").write_text(CONFIG)
  return folder


@pytest.fixture(scope="module")
def workdir(project):
  """Where `jpmhc train` ran once to its end."""
  folder = project / "run"
  assert main(["train", f"--config={project}/config.py", f"--workdir={folder}"]) == 0
  return folder


@pytest.fixture
def forgotten(monkeypatch):
  """As in a new process: no plugin has been imported or has registered anything."""
  monkeypatch.setattr(plugins, "_imported", {})
  monkeypatch.delitem(sys.modules, "wave_module", raising=False)
  monkeypatch.setattr(sys, "path", list(sys.path))
  for door in plugins.DOORS:
    monkeypatch.setattr(door, "entries", {name: door.entries[name] for name in door.built_in if name in door.entries})
  for field, origins in names.ORIGINS.items():
    monkeypatch.setitem(names.ORIGINS, field, {n: o for n, o in origins.items() if "jpmhc_jax" in o.module})


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _series(workdir, name):
  return {line["step"]: line[name] for line in _lines(workdir) if name in line}


def _saved(workdir, step):
  return json.loads((workdir / "checkpoints" / str(step) / "bundle" / "metadata").read_text())


def test_a_regression_on_float_vectors_trains_evaluates_and_ranks(workdir):
  losses = _series(workdir, "train/loss")
  assert losses[16] < 0.5 * losses[1]
  assert losses == pytest.approx(_series(workdir, "train/squared_error"))  # every weight is one
  evaluation = json.loads((workdir / "evaluation" / "step_16.json").read_text())
  assert evaluation["judged_by"] == {"metric": "squared_error", "higher_is_better": False}
  names = ("loss", "squared_error", "examples", "unaveraged/loss", "unaveraged/squared_error")
  assert evaluation["metrics"] == {name: pytest.approx(_series(workdir, f"evaluation/{name}")[16]) for name in names}
  assert evaluation["metrics"]["examples"] == 21  # the last of three batches of eight is padded
  scores = json.loads((workdir / "checkpoints" / "scores.json").read_text())
  assert scores == {"metric": "squared_error", "scores": {k: -v for k, v in _by_text(workdir).items()}}
  shown = evaluation["examples"][3]
  assert (shown["kind"], shown["task"], len(shown["input"]["x"])) == ("values", "ripples 3", 3)
  (answer,), (truth,) = shown["predictions"][0]["values"], shown["input"]["y"]
  assert abs(answer - truth) < 1


def _by_text(workdir):
  return {str(step): value for step, value in _series(workdir, "evaluation/squared_error").items()}


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(workdir, project):
  again = project / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "16")
  assert main(["train", f"--config={project}/config.py", f"--workdir={again}"]) == 0
  assert _saved(again, 16)["fingerprint"] == _saved(workdir, 16)["fingerprint"]
  assert _series(again, "train/loss") == _series(workdir, "train/loss")


def test_the_run_names_its_plugin_and_every_later_command_finds_it(workdir, project, capsys):
  stored = json.loads((workdir / "config.json").read_text())
  assert (stored["plugins"], stored["plugin_folder"]) == (["wave_module"], str(project))
  assert stored["data"]["ripples"] == {"examples": 64, "frequency": 1.0, "phase": "sine", "broken": 0}
  assert configs.restore(workdir / "config.json") == configs.load(f"{project}/config.py")
  assert main(["evaluate", f"--workdir={workdir}", "--config.evaluation.max_examples=5"]) == 0
  assert (workdir / "evaluation" / "step_16_partial_5_of_21.json").exists()
  assert main(["report", str(workdir)]) == 0
  page = (workdir / "report.html").read_text()
  assert "Best squared_error" in page and "angular frequency of the ripples" in page and "ripples 3" in page
  assert main(["spectrum", f"--workdir={workdir}"]) == 2
  assert "model.kind='ripple_fit': Jacobian spectra are measured for" in capsys.readouterr().err


def test_describe_lists_the_fields_and_names(project, capsys):
  assert main(["describe", f"--config={project}/config.py", "--config.data.ripples.phase=cosine"]) == 0
  page = " ".join(capsys.readouterr().out.replace("│", " ").split())
  assert "data.ripples.frequency 1.0 1.5 angular frequency of the ripples [above 0 to 99.5]" in page
  assert "data.ripples.phase 'cosine' 'sine' where a ripple begins [sine | cosine]" in page
  assert "model.ripple_fit.hidden 16 16" in page and f"[{' | '.join(KINDS)}]" in page


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("data.ripples.frequenzy=3", "no field 'data.ripples.frequenzy'. Did you mean 'data.ripples.frequency'?"),
    ("data.ripples.examples=many", "expected data.ripples.examples: int such as 64"),
    ("data.ripples.frequency=100", "data.ripples.frequency=100.0: expected above 0 to 99.5"),
    ("data.ripples.phase=sin", "data.ripples.phase='sin': expected one of sine, cosine. Did you mean 'sine'?"),
    ("data.ripples.broken=-1", "data.ripples.broken=-1: expected at least 0"),
    ("data.ripples.frequency=nan", "data.ripples.frequency=nan: expected a finite number"),
    (
      "data.kind=ripple",
      "data.kind='ripple': expected one of arc, sudoku, maze, text, images, pairs, ripples. Did you mean 'ripples'?",
    ),
    (
      "model.kind=riple_fit",
      f"expected one of {', '.join(KINDS)}. Did you mean 'ripple_fit'?",
    ),
    ("plugins=", "unknown field 'data.ripples'"),
    ("plugins=wave_modul", "plugins='wave_modul': no module 'wave_modul'; expected an installed package, a module in"),
    ("plugins=wave-module", "plugins='wave-module': expected the name of a module, such as 'my_project.waves'"),
    ("data.kind=sudoku", "data.kind='sudoku': model.kind='ripple_fit' learns from ripples; set one of these"),
  ],
)
def test_a_mistake_in_the_config_of_a_plugin_is_told(project, override, message):
  with pytest.raises(ConfigError, match=re.escape(message)):
    task_of(configs.load(f"{project}/config.py", [f"--config.{override}"]))


@pytest.mark.slow
def test_a_sweep_ranges_over_the_fields_of_a_plugin(project, workdir, capsys):
  space = project / "space.py"
  space.write_text(
    "from jpmhc_jax.sweeps import product, sweep\n\n\ndef get_sweep():\n"
    "  return product(sweep('data.ripples.frequency', [1.0, 2.0]), sweep('model.ripple_fit.hidden', [4, 8]))\n"
  )
  arguments = ["sweep", f"--config={project}/config.py", f"--sweep={space}", f"--workdir={project}/sweep", "--dry-run"]
  assert main(arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(" --config.")[1:] for line in lines] == [
    [f"data.ripples.frequency={f}", f"model.ripple_fit.hidden={h}"] for f in (1.0, 2.0) for h in (4, 8)
  ]
  planner = Planner(f"{project}/config.py", [], None, project, lambda config: 1)
  chosen = Sweep(product(between("data.ripples.examples", 32, 64), sweep("data.ripples.phase", ["sine", "cosine"])))
  planner.check_search(chosen.space)
  assert type(next(chosen.space.choices())["data.ripples.examples"]) is int
  for wrong, message in (
    ("data.ripples.phas", "Did you mean 'data.ripples.phase'"),
    ("data.ripples.examples", "got str"),
  ):
    with pytest.raises(UserError, match=message):
      planner.check_search(sweep(wrong, ["sine"]))


@pytest.mark.parametrize("command", ["evaluate", "spectrum", "train"])
def test_a_plugin_that_is_gone_is_told_with_run_and_remedy(command, workdir, project, forgotten, monkeypatch, capsys):
  stored = workdir / "config.json"
  elsewhere = stored.read_text()
  stored.write_text(elsewhere.replace(str(project) + '"', str(project / "moved") + '"'))
  arguments = {"train": [f"--config={project}/sudoku.py"]}.get(command, [])
  (project / "sudoku.py").write_text("from jpmhc_jax.config.load import default as get_config\n")
  (project / "wave_module.py").rename(project / "away")
  try:
    assert main([command, f"--workdir={workdir}", *arguments]) == 2
    message = capsys.readouterr().err
    assert "plugins='wave_module': no module 'wave_module'" in message
    assert f"the run in {workdir} needs it; expected an installed package, a module in {project}/moved" in message
    page = project / "gone.html"
    assert main(["report", str(workdir), f"--out={page}"]) == 0
    told = page.read_text().replace("<wbr>", "")
    assert "no module &#x27;wave_module&#x27;" in told and "data.ripples.frequency" in told
  finally:
    (project / "away").rename(project / "wave_module.py")
    stored.write_text(elsewhere)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("\nx = 1 / 0", "{path}, line 2: ZeroDivisionError: division by zero (plugin '{name}')"),
    ("def f(:", "{path}, line 1: SyntaxError: invalid syntax"),
    ("\n\nimport no_such_library", "{path}, line 3: ModuleNotFoundError: No module named 'no_such_library'"),
    (
      "import jpmhc_jax as jp\n@jp.register_dataset('sudoku')\ndef f(): pass",
      "data.kind='sudoku': jpmhc_jax.data.sudoku has taken the name; choose another for {name}.f",
    ),
    (
      "import jpmhc_jax as jp\n@jp.register_dataset('ripples')\ndef f(): pass",
      "data.kind='ripples': wave_module.ripples has taken the name; choose another for {name}.f",
    ),
    (
      "import jpmhc_jax as jp\n@jp.register_dataset('prefetch')\ndef f(): pass",
      "data.kind='prefetch': expected a Python name that is no field of 'data' already",
    ),
    (
      "import jpmhc_jax as jp\n@jp.register_task('x')\nclass T(jp.SinglePass): pass",
      "model.kind='x': T lacks build, losses; expected a whole task",
    ),
    ("import jpmhc_jax as jp\n@jp.register_task('x')\nclass T: pass", "expected a class that inherits Task"),
    (
      "import jpmhc_jax as jp\nclass F: pass\n@jp.register_dataset('x', fields=F)\ndef f(): pass",
      "expected a class under @dataclasses.dataclass(frozen=True)",
    ),
    (
      "import dataclasses, jpmhc_jax as jp\n@dataclasses.dataclass(frozen=True)\nclass F:\n  a: int = 1\n"
      "@jp.register_dataset('x', fields=F)\ndef f(): pass",
      "F.a: expected field(default, doc), with the field's meaning",
    ),
  ],
)
def test_a_plugin_that_cannot_be_imported_is_told_with_file_and_line(text, message, project, workdir, request):
  name = f"broken_{abs(hash(request.node.name))}"
  path = project / f"{name}.py"
  path.write_text(text + "\n")
  with pytest.raises(ConfigError, match=re.escape(message.format(path=path, name=name))):
    configs.load(f"{project}/config.py", [f"--config.plugins=wave_module,{name}"])


def test_examples_that_are_no_numbers_are_told(project, capsys):
  broken = ["--config.data.ripples.broken=64", f"--workdir={project}/broken"]
  assert main(["train", f"--config={project}/config.py", *broken]) == 3
  assert "the batch's ['x'] are not finite; remove such examples from the data" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("losses", "message"),
  [
    ('{"error": x[:, 0]}', "Odd.losses gives error; expected 'loss' among them"),
    ('{"loss": jnp.mean(x)}', r"Odd.losses: 'loss' has the shape (); expected one number a row, (16,)"),
  ],
)
def test_losses_that_are_not_per_row_are_told(losses, message, project, capsys, request):
  name = f"odd_{abs(hash(request.node.name))}"
  lines = [
    "import jax.numpy as jnp, jpmhc_jax as jp", "from flax import nnx", f"@jp.register_task('{name}')",
    "class Odd(jp.SinglePass):", "  def build(self, config, dataset, rngs): return nnx.Linear(3, 1, rngs=rngs)",
    f"  def losses(self, model, batch, config): x = model(batch['x']); return {losses}",
  ]  # fmt: skip
  (project / f"{name}.py").write_text("\n".join(lines))
  chosen = [f"--config.plugins=wave_module,{name}", f"--config.model.kind={name}", f"--workdir={project}/{name}"]
  assert main(["train", f"--config={project}/config.py", *chosen]) == 2
  assert message in capsys.readouterr().err


def test_a_data_set_that_is_none_is_told(project):
  (project / "nothing.py").write_text("import jpmhc_jax as jp\n@jp.register_dataset('nothing')\ndef f(c, **_): pass\n")
  assert main(["train", f"--config={project}/config.py", f"--workdir={project}/x", "--config.plugins=nothing"]) == 2


def test_an_installed_package_offers_its_plugin(project, forgotten, monkeypatch):
  """Used, the config names it from then on; unused, it leaves no trace."""
  point = importlib.metadata.EntryPoint("ripples", "wave_module", plugins.ENTRY_POINTS)
  monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == point.group else [])
  monkeypatch.syspath_prepend(str(project))
  chosen = ["--config.data.kind=ripples", "--config.model.kind=ripple_fit", "--config.data.ripples.frequency=3.0"]
  config = configs.load_default(chosen)
  assert config.plugins == ("wave_module",) and config.data.ripples.frequency == 3.0
  assert configs.load_default(["--config.connection.mixer=slow_cayley"]).plugins == ("wave_module",)
  assert mixers.parse("slow_cayley").alpha == 0.01
  plain = configs.load_default(["--config.steps=3"])
  assert type(plain) is schema.Config and plain.plugins == ()


def test_a_config_differs_from_one_without_the_plugin_only_by_what_is_set(project, workdir):
  config = configs.load(f"{project}/config.py")
  changed = {name: (here, there) for name, here, there in configs.differences(config, schema.Config())}
  assert changed["plugins"] == (("wave_module",), ()) and changed["data.ripples.frequency"] == (1.0, 1.5)
  assert "data.ripples.phase" not in changed and "plugin_folder" not in changed


def test_a_name_whose_module_the_config_does_not_name_is_told(workdir):
  with pytest.raises(ConfigError, match=r"data.kind='ripples': wave_module.ripples has this name; add its module"):
    configs.validate(schema.Config(data=schema.Data(kind="ripples")))
