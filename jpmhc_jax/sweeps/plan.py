"""From a sweep file and a base config to checked runs: names, folders, overrides, budgets. Nothing starts here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
import pathlib
import random
from typing import Any

import jax

from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema, sources
from jpmhc_jax.core.errors import ConfigError, UserError
from jpmhc_jax.core.names import digest, Point, run_names
from jpmhc_jax.models import connections
from jpmhc_jax.sweeps.definition import Budget, Cost, Sweep
from jpmhc_jax.sweeps.space import Space, SweepError
from jpmhc_jax.training import telemetry
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.tasks import task_of

_DRAWS, _EXAMPLES = 2000, 100  # points of a search that are looked at before the first trial
Check = Callable[[schema.Config], None]


@dataclasses.dataclass(frozen=True)
class Planned:
  """One run before it starts. `key` is a hash of its config: equal keys are equal runs."""

  name: str
  workdir: pathlib.Path
  overrides: tuple[str, ...]
  config: schema.Config
  key: str


def load_sweep(spec: str) -> Sweep:
  """What get_sweep(variant) of `mixers:two`, one of the package, or of `path/to/file.py:variant` returns.

  Raises ConfigError for a file that does not exist or fails, SweepError for one that returns no sweep.
  """
  path, variant = sources.file_and_variant("--sweep", spec, sources.SWEEPS)
  try:
    returned = sources.run_file(path, "get_sweep", variant)
  except KeyError as error:
    if str(error) == "'get_sweep'":
      raise SweepError(f"{path}: no function get_sweep() in it; see {sources.SWEEPS / 'mixers.py'}") from error
    raise SweepError(f"{sources.where(path, error)}: no key {error}") from error
  except (AttributeError, TypeError) as error:
    raise SweepError(f"{sources.where(path, error)}: {type(error).__name__}: {error}") from error
  if isinstance(returned, Space):
    return Sweep(returned)
  if not isinstance(returned, Sweep):
    raise SweepError(f"{path}: get_sweep() returned a {type(returned).__name__}; expected a Space or a Sweep")
  return returned


def flops_per_step(config: schema.Config) -> int:
  """Operations of one training step, counted on this machine's CPU; no accelerator is touched."""
  jax.config.update("jax_platforms", "cpu")
  # Neither the seed nor the length of the run changes them: runs that differ in no more are counted once.
  return _flops_per_step(dataclasses.replace(config, mesh=schema.Mesh(data=1), seed=0, steps=1, budget_seconds=0.0))


@functools.cache
def _flops_per_step(one: schema.Config) -> int:
  dataset = data.build(one.data, batch_size=one.batch_size, seed=one.seed)
  return telemetry.flops_per_step(prepare(one, dataset, make_mesh(one.mesh, jax.devices()[:1])), dataset)


class Planner:
  """Turns points into runs of one base config in one folder, keeping the names that earlier starts gave."""

  def __init__(
    self,
    config: str,
    overrides: Sequence[str],
    budget: Budget | None,
    workdir: pathlib.Path,
    flops_per_step: Cost,
    known: Mapping[str, str] | None = None,
    check: Check = lambda _: None,
  ):
    self.base, self.common, self.budget, self.workdir = config, tuple(overrides), budget, workdir
    self.flops_per_step, self.names = flops_per_step, dict(known or {})  # key -> name
    self.check = check  # raises UserError for a config whose runs could not be compared

  @functools.cached_property
  def fields(self) -> type[schema.Config]:
    """The class of the runs' configs: their fields, with those of plugins."""
    return configs.class_of(self.base, self.common)

  def all(self, points: Iterable[Point]) -> list[Planned]:
    """One run a point, in order; points that resolve to the same config are one run.

    Raises ConfigError or SweepError for the first point that cannot run, before anything has started.
    """
    points = [dict(point) for point in points]
    if not points:
      raise SweepError("the sweep has no point: nothing to run")
    runs: dict[str, Planned] = {}
    for point, name in zip(points, run_names(points), strict=True):
      run = self.one(point, name)
      self.check(run.config)
      runs.setdefault(run.key, run)
    return list(runs.values())

  def one(self, point: Point, name: str) -> Planned:
    """The run of one point. A run that is known by its config keeps its name."""
    config = self._resolve(point)
    self._refuse_budget_fields(point)
    if self.budget:
      point = {**point, **self.budget.override(config, self.flops_per_step)}
      config = self._resolve(point)
    # Over what differs from the defaults: a field that a later version adds leaves the keys of old runs alone.
    key = digest({field: value for field, _, value in configs.differences(schema.Config(), config)}, 16)
    name = self.names.setdefault(key, self._free(name, key))
    return Planned(name, self.workdir / name, (*self.common, *_arguments(point)), config, key)

  def check_search(self, space: Space) -> None:
    """Raises UserError for a space in which a field, a value or every point is wrong, before the first trial.

    A listed value is wrong when it runs neither with the base config nor in any of some points that hold it.
    """
    self._refuse_budget_fields(dict.fromkeys(space.fields()))
    for choice in space.choices():
      self._check_fields(choice)
    source = random.Random(0)
    draws = {tuple(point.items()): point for point in (space.suggest(Dice(source)) for _ in range(_DRAWS))}
    self.check(self._any_of(list(draws.values())))
    for choice in space.choices():
      self._any_of([choice, *(point for point in draws.values() if choice.items() <= point.items())])

  def _any_of(self, points: Sequence[Point]) -> schema.Config:
    """The config of the first point that has one. Raises the error of the last where none has."""
    *others, last = points[:_EXAMPLES]
    for point in others:
      with contextlib.suppress(UserError):
        return self._resolve(point)
    return self._resolve(last)

  def _free(self, name: str, key: str) -> str:
    taken = any(other == name for k, other in self.names.items() if k != key)
    return f"{name}-{key[:6]}" if taken else name

  def _resolve(self, point: Point) -> schema.Config:
    self._check_fields(point)
    try:
      config = configs.load(self.base, [*self.common, *_arguments(point)])
      task_of(config)
      connections.check(config)
    except ConfigError as error:
      raise ConfigError(f"{', '.join(_arguments(point)) or 'the base config'}: {error}") from error
    return config

  def _check_fields(self, point: Point) -> None:
    """Types as a config file must have them: what is typed on a command line is parsed more freely."""
    for field, value in point.items():
      try:
        configs.check_field(field, value, self.fields)
      except ConfigError as error:
        raise ConfigError(f"{_arguments({field: value})[0]}: {error}") from error

  def _refuse_budget_fields(self, point: Point) -> None:
    if not self.budget:
      return
    fixed = {"steps", "budget_seconds"} & set(point)
    if fixed:
      raise SweepError(f"the sweep sets {min(fixed)!r} and a budget of {self.budget}: leave one of them out")


class Dice:
  """Answers as Optuna's trial does: at random, and a name that was asked before as it was then."""

  def __init__(self, source: random.Random):
    self._random, self._answers = source, dict[str, Any]()

  def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
    """One of the choices."""
    return self._answers.setdefault(name, self._random.choice(choices))

  def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
    """A whole number from `low` to `high`."""
    return self._answers.setdefault(name, round(self._between(low, high, log)))

  def suggest_float(self, name: str, low: float | int, high: float | int, *, log: bool) -> float:
    """A number from `low` to `high`, evenly in its logarithm with `log`."""
    return self._answers.setdefault(name, self._between(low, high, log))

  def _between(self, low: float | int, high: float | int, log: bool) -> float:
    drawn = math.exp(self._random.uniform(math.log(low), math.log(high))) if log else self._random.uniform(low, high)
    return min(max(drawn, low), high)


def _arguments(point: Point) -> list[str]:
  return [f"--config.{field}={value}" for field, value in point.items()]
