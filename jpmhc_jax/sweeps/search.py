"""Optuna over the same space: trials in an RDB, runs through the same pool, pruning by intermediate evaluations."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import math
import pathlib
import time
from typing import Any

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.names import digest
from jpmhc_jax.core.objects import ObjectPath
from jpmhc_jax.core.reading import check_regular
from jpmhc_jax.sweeps import job, ledger
from jpmhc_jax.sweeps.plan import Planned, Planner, Sweep
from jpmhc_jax.sweeps.pool import Ending, Pool, refresh, Say, Signals
from jpmhc_jax.sweeps.space import Point, SEED, split_seeds, SweepError

IN_VAIN = 50  # points in a row that cannot run, after which no more are drawn
FOLDER = "sweep_folder"  # which sweep folder a trial belongs to: a study may be shared by several machines


@dataclasses.dataclass
class _Trial:
  """A trial on its way: one run a seed, one after the other; its score is the mean over them."""

  trial: Any
  runs: list[Planned]
  scores: list[float]
  reported: int  # the last step that the study knows of, counted over the seeds

  @property
  def run(self) -> Planned:
    return self.runs[len(self.scores)]


class Search:
  """A study of one sweep. `storage` is any RDB URL of Optuna, SQLite in the sweep's folder by default.

  The study has the folder's name: sweeps of one name on one storage, such as those of several machines, share it.
  """

  def __init__(self, sweep: Sweep, planner: Planner, pool: Pool, *, trials: int, storage: str = "", seed: int = 0):
    self.optuna = _optuna()
    self.planner, self.pool, self.trials, self.metric = planner, pool, trials, sweep.metric
    planner.check_search(sweep.space)
    self.space, self.seeds = split_seeds(sweep.space)
    self.folder = planner.workdir.resolve()
    self.active: list[_Trial] = []
    self._taken: dict[str, Planned] = {}  # the runs of this start, those that were done before among them
    self.refused = self._refused_in_a_row = 0
    self.folder.mkdir(parents=True, exist_ok=True)
    url = storage or _database(self.folder / "search.db")
    with opening(url):
      self._storage = self.optuna.storages.RDBStorage(url)
      self.study = self._study(seed)
    self._known: dict[str, Any] = {}
    for earlier in self.study.get_trials(deepcopy=False):
      self._known = earlier.distributions | self._known

  def _study(self, seed: int) -> Any:
    """The study of this folder's name. Scores are stored so that larger is better."""
    self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
    study = self.optuna.create_study(
      study_name=self.folder.name,
      storage=self._storage,
      load_if_exists=True,
      direction="maximize",
      pruner=self.optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    # A start that goes on draws what earlier ones did not: the same seed would draw their first points again.
    study.sampler = self.optuna.samplers.TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))
    return study

  def close(self) -> None:
    """Closes the connections to the database."""
    self._storage.remove_session()
    self._storage.engine.dispose()

  def run(self) -> Ending:
    """Runs trials until `trials` have ended, this start and earlier ones together."""
    with Signals() as signals:
      self._go_on()
      while not signals.received:
        while self._wants_more():
          trial = self.study.ask()
          self._start(trial, self._new_point(trial))
        if not self.active:
          break
        self._watch()
        self._collect(self.pool.poll())
        time.sleep(job.POLL_S)
      if signals.received:
        self.pool.say(f"{signals.received.name}: asking the running jobs to save and end; their trials go on next time")
        self.pool.stop_all()
    self._tell_the_best()
    ended = [(run, self.pool.book.records[key]) for key, run in self._taken.items()]
    return Ending(ended, signals.received.name if signals.received else "", self.refused)

  def _tell_the_best(self) -> None:
    complete = self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.COMPLETE,))
    if complete:
      best = max(complete, key=lambda trial: trial.value)
      runs, point = ", ".join(best.user_attrs.get("runs", ())), best.user_attrs.get("point", best.params)
      self.pool.say(f"best of {len(complete)} complete trials: number {best.number} ({runs}) with {dict(point)}")

  def _wants_more(self) -> bool:
    room = self.pool.has_room and self._refused_in_a_row < IN_VAIN
    return room and self._ended() + len(self.active) < self.trials

  def _ended(self) -> int:
    """Trials that have run to an end; points that could not run are not counted."""
    trials = self.study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and bool(trial.user_attrs.get("runs")) for trial in trials)

  def _go_on(self) -> None:
    """Takes up the trials that this folder's sweep left unfinished."""
    for frozen in self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)):
      if frozen.user_attrs.get(FOLDER) == str(self.folder):
        trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
        self._start(trial, self._point(trial), reported=-1 if frozen.last_step is None else frozen.last_step)

  def _new_point(self, trial: Any) -> Point:
    point = self.space.suggest(_Asker(trial, self._known, self.pool.say))
    trial.set_user_attr("point", {field: list(v) if isinstance(v, tuple) else v for field, v in point.items()})
    trial.set_user_attr(FOLDER, str(self.folder))
    return point

  def _point(self, trial: Any) -> Point:
    stored = trial.user_attrs["point"]
    return {field: tuple(value) if isinstance(value, list) else value for field, value in stored.items()}

  def _start(self, trial: Any, point: Point, reported: int = -1) -> None:
    name = f"trial-{trial.number:03d}"
    seeded = [(name, point)] if not self.seeds else [(f"{name},{SEED}={s}", {**point, SEED: s}) for s in self.seeds]
    try:
      runs = [self.planner.one(each, called) for called, each in seeded]
    except UserError as error:  # this point cannot run; others may
      self.pool.say(f"{name}: {error}")
      self.refused += 1
      self._refused_in_a_row += 1
      self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
      if self._refused_in_a_row == IN_VAIN:
        self.pool.say(f"{IN_VAIN} points in a row could not run: no more are drawn; narrow the space")
      return
    self._refused_in_a_row = 0
    for run in runs:
      self.planner.check(run.config)  # not this point's fault: the trial stays open and goes on at the next start
    trial.set_user_attr("runs", [run.name for run in runs])
    self.active.append(_Trial(trial, runs, [], reported))
    self._next_run(self.active[-1])

  def _next_run(self, active: _Trial) -> None:
    """Starts the trial's next run, or takes the score of one that is done already."""
    record = refresh(self.pool, active.run)
    self._taken[active.run.key] = active.run
    if record.state in ledger.OVER:
      self._score(active, record)
    else:
      self.pool.start(active.run)

  def _watch(self) -> None:
    """Stops the runs of trials that fall behind the median."""
    for active in self.active:
      if self._report(active) and active.trial.should_prune():
        self.pool.stop(active.run)
        active.trial.set_user_attr("pruned_at", active.reported)

  def _report(self, active: _Trial) -> bool:
    """Tells the study of new evaluations: the mean over the seeds so far. True when there were any."""
    before = active.reported
    for step, value in _larger(ledger.scores(active.run.workdir, self.metric)):
      at = len(active.scores) * active.run.config.steps + step
      if at > active.reported and math.isfinite(value):
        active.reported = at
        active.trial.report(_mean([*active.scores, value]), at)
    return active.reported > before

  def _collect(self, ended: Sequence[tuple[Planned, ledger.Record]]) -> None:
    for run, record in ended:
      active = next(active for active in self.active if active.run.key == run.key)
      self._score(active, record)

  def _score(self, active: _Trial, record: ledger.Record) -> None:
    """The trial goes on with its next seed, or is told to the study."""
    state = self.optuna.trial.TrialState
    if record.state == ledger.INTERRUPTED and "pruned_at" in active.trial.user_attrs:
      record.state, record.message = ledger.PRUNED, "behind the median of the trials so far"
    scores = _larger(ledger.scores(active.run.workdir, self.metric))
    if record.state == ledger.DONE and scores:
      self._report(active)
      active.scores.append(scores[-1][1])
      if len(active.scores) < len(active.runs):
        self._next_run(active)
        return
    self.active.remove(active)
    if record.state == ledger.PRUNED:
      self.study.tell(active.trial, state=state.PRUNED)
    elif record.state == ledger.DONE and scores:
      self.study.tell(active.trial, _mean(active.scores))
    elif record.state != ledger.INTERRUPTED:  # an interrupted trial stays open and goes on at the next start
      self.study.tell(active.trial, state=state.FAIL)
    self.pool.book.save()


class _Asker:
  """A trial that is asked under another name where earlier trials of the study chose from something else.

  Optuna keeps one set of choices, or one kind of range, a name. Trials from before a list grew still count; of the
  field with its new values the search learns anew. An order of the list that changed is no change.
  """

  def __init__(self, trial: Any, known: dict[str, Any], say: Say):
    self._trial, self._known, self._say = trial, known, say

  def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
    there = getattr(self._known.get(name), "choices", ())
    same = sorted(map(repr, there)) == sorted(map(repr, choices))
    listed = list(there if same else choices)
    distribution = _optuna().distributions.CategoricalDistribution(listed)
    return self._trial.suggest_categorical(self._name(name, distribution, digest(listed, 6)), listed)

  def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
    distribution = _optuna().distributions.IntDistribution(low, high, log=log)
    return self._trial.suggest_int(self._name(name, distribution, f"whole, log={log}"), low, high, log=log)

  def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
    distribution = _optuna().distributions.FloatDistribution(low, high, log=log)
    return self._trial.suggest_float(self._name(name, distribution, f"log={log}"), low, high, log=log)

  def _name(self, name: str, distribution: Any, kind: str) -> str:
    try:
      _optuna().distributions.check_distribution_compatibility(self._known.get(name, distribution), distribution)
      return name
    except ValueError:
      other = f"{name} ({kind})"
    if other not in self._known:
      self._known[other] = distribution
      self._say(f"{name}: other values than in earlier trials; these count, and the search learns the field anew")
    return other


def _larger(found: tuple[str, bool, list[tuple[int, float]]] | None) -> list[tuple[int, float]]:
  """(step, value) with the sign turned where smaller is better."""
  if found is None:
    return []
  _, larger, values = found
  return values if larger else [(step, -value) for step, value in values]


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)


def _database(path: pathlib.Path) -> str:
  """The URL of a SQLite file, whatever characters its path has. Raises SweepError for bytes that are no UTF-8."""
  import sqlalchemy

  if isinstance(path, ObjectPath):
    raise SweepError(
      f"--workdir={path.parent}: a search keeps a database, which an object store cannot hold; add --storage=URL"
    )
  try:
    return str(sqlalchemy.URL.create("sqlite", database=str(path)))
  except UnicodeEncodeError as error:
    raise SweepError(
      f"--workdir={path.parent}: expected a path in UTF-8, since a search keeps its database there; rename it"
    ) from error


def _optuna() -> Any:
  try:
    import optuna
  except ImportError as error:
    raise SweepError("--search=optuna: optuna is not installed; pip install 'jpmhc-jax[search]'") from error
  return optuna


@contextlib.contextmanager
def opening(url: str) -> Iterator[None]:
  """Turns what Optuna and SQLAlchemy say of a database inside into a SweepError that names it, without its password.

  Raises DataError for a SQLite file that is a device, a pipe or a folder, before it is opened.
  """
  import optuna
  import sqlalchemy
  from sqlalchemy.exc import SQLAlchemyError

  shown = repr(url)
  try:
    parsed = sqlalchemy.make_url(url)
    shown = repr(parsed.render_as_string(hide_password=True))
    if parsed.get_backend_name() == "sqlite" and parsed.database and pathlib.Path(parsed.database).exists():
      check_regular(pathlib.Path(parsed.database), limit=2**63)
    yield
  except (ImportError, RuntimeError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
    reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    raise SweepError(
      f"--storage={shown}: keeps no study of Optuna ({reason}); expected the URL of a database that can be written, "
      "such as sqlite:///study.db"
    ) from error
