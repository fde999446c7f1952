"""One run and its workdir: what a notebook trains and looks at, and what the commands of the same names do."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import sys
from typing import Any

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core import places
from jpmhc_jax.core.errors import check_choice, ConfigError, require
from jpmhc_jax.data import Dataset
from jpmhc_jax.data.arc_tasks import parse_task, Task
from jpmhc_jax.data.dataset import Coverage
from jpmhc_jax.evaluation.ablations import Ablation, NOTHING
from jpmhc_jax.evaluation.evaluator import Evaluator, make_rollout, metric_names
from jpmhc_jax.evaluation.generation import written_on
from jpmhc_jax.models import connections
from jpmhc_jax.reporting import lead
from jpmhc_jax.reporting import workdir as records
from jpmhc_jax.reporting.markup import join, tag
from jpmhc_jax.reporting.report import write_report
from jpmhc_jax.runs.answers import answer, Answers, Trained
from jpmhc_jax.runs.metrics import Metrics
from jpmhc_jax.runs.prediction import Model, predict, solve, Solved
from jpmhc_jax.runs.session import (
  Change,
  on_these_devices,
  open_run,
  precision_of,
  prepared,
  processes_of,
  restore,
)
from jpmhc_jax.training import header, loop, progress
from jpmhc_jax.training.checkpoint import Restored
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.tasks import task_of

Folder = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """An evaluation that was just made: of which step and examples, its metrics, and the file that holds them."""

  step: int
  metrics: Mapping[str, float]
  coverage: Coverage
  path: pathlib.Path


class Run:
  """A run in its workdir, as `train` and `load` return it.

  config: the resolved `schema.Config`. workdir: its folder, absolute. What is recorded there, `metrics` and
  `evaluations`, is read at the first use; so is the checkpoint, when `step`, `parameters` or `model` asks for it. Then
  a missing, damaged or foreign one raises CheckpointError.

  >>> run = jp.load(workdir)  # of a run of four steps
  >>> run.step, run.metrics["train/loss"].steps.tolist()
  (4, [1.0, 2.0, 3.0, 4.0])
  >>> isinstance(run.model, nnx.Module), run.parameters.keys() == run.state.ema.keys()
  (True, True)
  """

  def __init__(
    self,
    config: schema.Config,
    workdir: pathlib.Path,
    step: int | None = None,
    *,
    change: Change = lambda config: config,
    trained: tuple[loop.Run, TrainState] | None = None,
  ):
    """step: of the checkpoint; None is the latest intact one. change: of the config that it is looked at with.

    trained: parts and final state of a run that has just trained in this process.
    """
    self.config, self.workdir = config, workdir
    self._asked, self._change, self._trained = step, change, trained

  def __repr__(self) -> str:
    return f"Run({str(self.workdir)!r})"

  @functools.cached_property
  def _record(self) -> records.Run:
    return records.read_run(self.workdir, self.workdir.name, "run")

  @functools.cached_property
  def _prepared(self) -> tuple[Setup, Dataset]:
    if self._trained:
      return self._trained[0].setup, self._trained[0].dataset
    return prepared(on_these_devices(self.config, self._change), trains=False)

  @functools.cached_property
  def _model(self) -> Model:
    return Model(self.setup, make_rollout(self.setup), self.dataset, self.state)

  @functools.cached_property
  def _restored(self) -> Restored:
    if self._trained:
      return Restored(int(self._trained[1].step), self._trained[1], {}, self.config.steps)
    return restore(*self._prepared, self.workdir, self._asked)

  @property
  def metrics(self) -> Metrics:
    """Every scalar of metrics.jsonl by name, such as train/loss: arrays `steps` and `values`, float64 (points,).

    `metrics.frame` is a table of all of them, of pandas where it is installed. A resumed run that repeated steps counts
    once. Empty where nothing is recorded yet.
    """
    return Metrics(self._record.series)

  @property
  def evaluations(self) -> Sequence[records.Evaluation]:
    """Every evaluation/step_N.json by step: `step`, `metrics`, `examples`, `coverage`; one of a part before a whole."""
    return sorted([*self._record.others, *self._record.evaluations], key=lambda evaluation: evaluation.step)

  @property
  def problems(self) -> Sequence[str]:
    """What of the record is missing or could not be read, in words."""
    return self._record.problems

  @property
  def step(self) -> int:
    """Finished steps of the checkpoint that `model` and `evaluate` use."""
    return self._restored.step

  @property
  def setup(self) -> Setup:
    """Model graph, optimiser and layout on the devices that are here."""
    return self._prepared[0]

  @property
  def dataset(self) -> Dataset:
    """The data that the run trains and is evaluated on."""
    return self._prepared[1]

  @property
  def state(self) -> TrainState:
    """Everything that training changes, as one pytree of arrays on the devices."""
    return self._restored.state

  @property
  def parameters(self) -> Any:
    """The parameters that evaluation uses (the average, where the run keeps one): nested dict of float32 arrays."""
    return self.state.evaluated

  @property
  def model(self) -> Any:
    """A new NNX module with copies of no array: `parameters` and the buffers of the checkpoint in the model's graph."""
    return self.setup.model(self.parameters, self.state.buffers)

  def evaluate(
    self, *, ablation: str = "none", layers: str = "all", wrong_puzzle: bool = False, **fields: Any
  ) -> Mapping[str, float]:
    """Metrics on the held-out examples, which evaluation/step_N.json then holds too, with examples of answers.

    ablation, layers: what replaces the mixers of which connections (identity, mean or permutation; 'all', or names and
    patterns such as 'block0.tokens,block1.*'); the results are in evaluation/ablation_…/. wrong_puzzle: also with the
    puzzle identifiers permuted, as wrong_puzzle/…. fields: of `config.evaluation`, for this evaluation alone, such as
    max_examples=100.

    Raises ConfigError for an unknown field, ablation or layer, for permuted puzzles of a network that has none, and for
    a field that would overwrite the run's own results by fewer metrics (other trajectories than the run's own go to
    evaluation/trajectories_…/); Interrupted after SIGTERM or Ctrl-C, with what
    was counted saved.
    """
    changes = {f"evaluation.{name}": value for name, value in fields.items()}
    return self.evaluated(configs.resolve(self.config, changes), Ablation(ablation, layers, wrong_puzzle)).metrics

  def evaluated(self, config: schema.Config, ablation: Ablation = NOTHING) -> Evaluated:
    """`evaluate` with the evaluation fields of this config; says which examples and which file."""
    if ablation.mixer == "none":
      _refuse_less(self.config.evaluation, config.evaluation)
    with processes_of(config, step=self._asked, **dataclasses.asdict(ablation)):
      setup = dataclasses.replace(self.setup, config=dataclasses.replace(config, mesh=self.setup.config.mesh))
      evaluator = Evaluator(setup, self.dataset, self.workdir, ablation, _subfolder(self.config, config))
      metrics = evaluator(self.state, self.step)
    self.__dict__.pop("_record", None)  # it has one evaluation more now
    return Evaluated(self.step, metrics, evaluator.coverage, evaluator.path(self.step))

  def predict(self, examples: Any, **options: Any) -> Any:
    """The model's answer to examples of one's own, in the symbols that they are written in.

    Of a puzzle on a grid: rows of text ("1..4", "#S o"), a text of rows, or rows of numbers with 0 for a blank; the
    answer is rows of text, or of numbers where those were given. Several grids give a list of answers. Of ARC: a task
    in the public layout, {"train": […], "test": […]}, gives a list of {"attempt_1": grid, "attempt_2": grid}, one for
    each test input; {id: task, …} gives one such list an id, the prize's submission. options: attempts=2, and those of
    `answer`. Of other data: arrays by name, (examples, …) as `dataset.element_spec` says, those that only a loss needs
    left out; the answer is the task's `predictions`.
    Raises DataError for cells, shapes and names that do not fit, ConfigError where the task predicts nothing.
    """
    alone = isinstance(examples, Mapping) and "train" in examples
    if alone or (isinstance(examples, Mapping) and all(isinstance(value, Mapping) for value in examples.values())):
      attempts = options.pop("attempts", 2)
      raw: Any = {"task": examples} if alone else examples
      submission = self.answer([parse_task(name, task, "predict") for name, task in raw.items()], **options).submission
      return submission(attempts)["task"] if alone else submission(attempts)
    with precision_of(self.config):
      return predict(self._model, examples)

  def solve(self, grids: Sequence[Any]) -> list[Solved]:
    """The answers to grids as `predict` takes them, each with what was given and what the report draws of it."""
    with precision_of(self.config):
      return solve(self._model, grids)

  def answer(self, tasks: Sequence[Task], **options: Any) -> Answers:
    """The answers to ARC tasks, by votes of their augmented copies: `submission`, `scores`, `examples`.

    Tasks that the run was not trained on have no row in its puzzle table: theirs are fitted to their demonstrations
    first. options: steps=None, of the fit (`FIT_STEPS` where rows are new, 0 for none), everything=False (the
    parameters move too), votes=None (copies of a test input; those of the evaluation), tick (hears how far it is).
    Raises ConfigError for a run on other data, DataError for a task that its canvas does not hold.
    """
    require(self.config.data.kind == "arc", "data.kind", self.config.data.kind, "arc, to answer ARC tasks")
    with precision_of(self.config):
      return answer(Trained(self.setup, self.state, self.dataset.identifiers), tasks, **options)

  def spectrum(self, **effort: Any) -> Any:
    """Singular values of the network's Jacobians, measured and predicted: `sites`, also kept in spectrum.json.

    effort: fields of `measure.Effort`, such as examples=1, probes=2; returns `measure.Findings`. Minutes for a small
    network. Raises ConfigError for a network of one's own, whose connections are not known.
    """
    from jpmhc_jax.evaluation.spectra import measure  # and the whole theory with it

    with precision_of(self.config):
      *_, result = measure.findings(
        self.setup, self.dataset, self.state, self.step, effort=measure.Effort(**effort), say=lambda line: None
      )
    result.save(self.workdir)
    return result

  def plot(self, name: str = "loss") -> Any:
    """A matplotlib figure of a scalar over the steps, by training and by evaluation; a notebook shows it.

    Raises ConfigError for a scalar that the run has not logged.
    """
    from jpmhc_jax.reporting.figure import curve  # matplotlib is slow to import

    return curve(self._record, name)

  def _repr_html_(self) -> str:
    """Folder, verdict and facts of the run, as its page leads with them, for a notebook."""
    record = self._record
    return str(join([tag("strong", str(self.workdir)), tag("p", lead.verdict(record)), lead.facts(record)]))

  def generate(
    self, prompt: str = "", *, tokens: int = 200, temperature: float = 1.0, top_k: int = 0, seed: int = 0
  ) -> str:
    """The prompt and `tokens` more tokens of a language model (data.kind=text).

    A token is drawn from softmax(logits / temperature) over the top_k likeliest (0: all of them), the likeliest at
    temperature 0; the same seed gives the same text. The model sees at most `data.text.window` tokens. Raises
    ConfigError for a run on other data and numbers out of range, CheckpointError as `model` does.
    """
    drawn: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
    return written_on(self.setup, self.dataset, self.state, prompt, **drawn)

  def report(self, out: Folder | None = None) -> pathlib.Path:
    """Writes the HTML page of this run, by default workdir/report.html, and returns its path."""
    return report([self.workdir], out)


def train(
  config: configs.Resolvable,
  workdir: Folder,
  *,
  overrides: Mapping[str, Any] | None = None,
  profile: range = range(0),
  command: Sequence[str] | None = None,
  quiet: bool = False,
) -> Run:
  """Trains to `config.steps`, or resumes where the workdir's newest intact checkpoint ends, and writes report.html.

  config: a `schema.Config`, the ConfigDict that a config file's get_config returns, or its name and variant,
  "sudoku:tiny". overrides: values by dotted name, {"optimizer.learning_rate": 3e-4}. profile: steps to trace
  into workdir/profile. command: what environment.json says the run was started by; the process's own by default.
  quiet: print nothing.

  Raises ConfigError for a field that cannot work and for a workdir of another config, WorkdirError where another
  process trains in it, NonFiniteLossError when the loss became NaN or infinite, Interrupted after SIGTERM or Ctrl-C
  (both leave a checkpoint: the same call resumes), CheckpointError, DataError and StorageError. Signals are looked at
  in the main thread only. `precision.deterministic` asks XLA, which listens before JAX's first use of a device only.
  In a run of several processes each calls this once, before anything else of JAX.

  >>> run = jp.train(config, workdir, quiet=True)  # such as "sudoku:tiny", "runs/sudoku"
  >>> run.evaluations[-1].step, (run.workdir / "report.html").is_file()
  (4, True)
  """
  resolved, folder = configs.resolve(config, overrides or {}), absolute(workdir)
  task_of(resolved)
  connections.check(resolved)
  _check_evaluation(resolved)
  with processes_of(resolved), loop.claimed(resolved, folder):
    console = progress.output(quiet)
    for line in header.opening(resolved, folder):
      progress.say(console, line)
    with progress.working(console, "building data and model"):
      parts = dataclasses.replace(open_run(resolved, folder), profile=profile, quiet=quiet)
    for line in header.lines(parts.setup, parts.dataset):
      progress.say(console, line)
    state = loop.train(parts, list(command or sys.orig_argv))
    if distributed.is_primary():
      with progress.working(console, "writing the report"):
        write_report([folder], folder / "report.html")
    progress.say(console, f"report: {folder / 'report.html'}")
    progress.say(console, f"next: {header.next_command(parts.setup, folder)}")
  return Run(resolved, folder, trained=(parts, state))


def load(workdir: Folder, step: int | None = None, *, change: Change = lambda config: config) -> Run:
  """The run of a workdir, to look at; nothing is compiled, and no array read before it is asked for.

  step: of the checkpoint, the latest intact one by default. change: of the config with the mesh fitted to the devices
  that are here. Raises ConfigError for a folder that holds no run.

  >>> run = jp.load(workdir, step=2)
  >>> run.step, run.config.connection.mixer
  (2, 'cayley')
  """
  folder = absolute(workdir)
  return Run(configs.restore(folder / "config.json"), folder, step, change=change)


def evaluate(workdir: Folder, step: int | None = None, **options: Any) -> Mapping[str, float]:
  """Metrics of a checkpoint on the held-out examples by name: `load(workdir, step).evaluate(**options)`.

  Raises ConfigError, CheckpointError and Interrupted as `load` and `Run` do.

  >>> metrics = jp.evaluate(workdir, max_examples=16)
  >>> metrics["examples"], 0 <= metrics["exact_accuracy"] <= 1
  (16.0, True)
  """
  return load(workdir, step).evaluate(**options)


def report(workdirs: Folder | Sequence[Folder], out: Folder | None = None) -> pathlib.Path:
  """Writes one self-contained HTML page about runs and sweeps, by default report.html in the first; returns its path.

  Raises UserError where no folder holds a record, StorageError where the page cannot be written.

  >>> jp.report([workdir]).name
  'report.html'
  """
  folders = [absolute(each) for each in ([workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs)]
  return write_report(folders, absolute(out) if out is not None else (folders or [pathlib.Path()])[0] / "report.html")


def absolute(name: Folder) -> pathlib.Path:
  """The absolute path of a folder or file that a user names, here or in a store; ConfigError for one that cannot be."""
  try:
    return places.stored(name)
  except ValueError as error:
    raise ConfigError(f"{os.fspath(name)!r}: expected {error}") from error


def _check_evaluation(config: schema.Config) -> None:
  """Raises ConfigError for evaluations that a run cannot be judged by."""
  if config.checkpoint.best_metric:
    check_choice("checkpoint.best_metric", config.checkpoint.best_metric, metric_names(config))


def _subfolder(recorded: schema.Config, asked: schema.Config) -> str:
  """Of evaluation/: where the results of trajectories go that are not those of the run's own evaluations; else ''."""
  ours, theirs = (
    (each.evaluation.trajectories, each.evaluation.noise, each.evaluation.choice) if each.evaluation.trajectories > 1
    else (1,) for each in (recorded, asked)
  )  # fmt: skip
  return "" if ours == theirs else "trajectories_" + "_".join(map(str, theirs))


def _refuse_less(recorded: schema.Evaluation, asked: schema.Evaluation) -> None:
  """Raises ConfigError for results that would take the place of the run's own and lack some of their metrics."""
  if asked.max_examples != recorded.max_examples:
    return  # these have files of their own
  if recorded.pooled and not asked.pooled:
    raise ConfigError(
      "evaluation.pooled=False: the run records True, and evaluation/step_N.json would lose these metrics; leave the "
      "field out, or set evaluation.max_examples: an evaluation of a part has a file of its own"
    )
