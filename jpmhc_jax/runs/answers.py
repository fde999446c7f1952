"""Answers of a trained run to ARC tasks that it is given; new ones after a fit to their demonstrations."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.data.arc_given import given_dataset, trained_rows
from jpmhc_jax.data.arc_tasks import Task
from jpmhc_jax.evaluation.arc import ArcVotes, with_outputs
from jpmhc_jax.evaluation.evaluator import make_rollout
from jpmhc_jax.evaluation.submission import ATTEMPTS, check_submission
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.fitting import fit, fit_config
from jpmhc_jax.training.inherit import rows_by_name, with_arrays
from jpmhc_jax.training.state import prepare, Setup, TrainState

FIT_STEPS = 200
_RANKED = 1000  # answers among which a truth is looked for
Tick = Callable[[str, float], None]  # (what is being done, share of it)


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a run answers to ARC tasks.

  tasks: in the public layout, by id. votes: of all copies of their test inputs. steps: of fitting. new: tasks of which
  the run's table had no row. seconds: of fitting and answering, compilation included.
  """

  tasks: Mapping[str, Mapping[str, list]]
  votes: ArcVotes
  steps: int
  new: tuple[str, ...]
  seconds: float

  def submission(self, attempts: int = 2) -> dict[str, list[dict[str, list]]]:
    """{id: [{"attempt_1": grid, …}, …]}, one entry for each test input: what the ARC Prize takes."""
    submission = self.votes.submission(self.tasks, attempts=attempts)
    if attempts >= len(ATTEMPTS):
      check_submission(submission, self.tasks)
    return submission

  def scores(self) -> dict[str, float]:
    """pass@k of the test inputs whose outputs are known; {} without any."""
    known = with_outputs(self.tasks)
    return self.votes.results(known) if known else {}

  def examples(self, attempts: int = 2) -> list[dict[str, Any]]:
    """Every test input with its best answers, as the report draws them; as in a submission without empty ones."""
    tests = sum(len(task["test"]) for task in self.tasks.values())
    return [_attempted(example, attempts) for example in self.votes.examples(self.tasks, tests, answers=_RANKED)]


def _attempted(example: dict[str, Any], attempts: int) -> dict[str, Any]:
  grids = [answer for answer in example["predictions"] if answer["grid"]]
  places = [place for place, answer in enumerate(grids, start=1) if answer["grid"] == example.get("truth")]
  solved = {"solved_at": places[0] if places else None} if "truth" in example else {}
  return example | solved | {"predictions": grids[:attempts]}


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run that is asked: its layout, its numbers, and the names of the rows of its table."""

  setup: Setup
  state: TrainState
  identifiers: Sequence[str]


def answer(
  trained: Trained,
  tasks: Sequence[Task],
  *,
  steps: int | None = None,
  everything: bool = False,
  votes: int | None = None,
  tick: Tick = lambda what, share: None,
) -> Answers:
  """Answers to the tests of all tasks.

  steps: of fitting to their demonstrations; None takes `FIT_STEPS` where the table lacks rows, 0 fits nothing.
  everything: the parameters move too, not the rows alone. votes: copies of a test input that vote; None takes those of
  the run's evaluation. tick: hears how far it is. Raises DataError for tasks that do not fit the canvas, ConfigError
  for rows to be fitted of a network without a table.
  """
  began = time.monotonic()
  config = _asked(trained.setup.config, votes)
  dataset = given_dataset(tasks, config.data, trained.identifiers, batch_size=config.batch_size, seed=config.seed)
  if steps is None:
    known = trained_rows(dataset.identifiers, trained.identifiers)
    steps = FIT_STEPS if trained.state.table is not None and not known.all() else 0
  if steps and not everything and trained.state.table is None:
    raise ConfigError(f"--fit={steps}: model.puzzle.width=0, so that no row can be fitted; fit all parameters, or none")
  setup = prepare(fit_config(config, steps), dataset, trained.setup.mesh, trains=steps > 0)
  state = placed(setup, dataset, trained)
  if steps:
    say = lambda done, loss: tick(f"fitting {len(tasks)} tasks, loss {loss:.3f}", done / steps)  # noqa: E731
    state = fit(setup, dataset, state, steps, everything, say)
  counted = _votes(setup, dataset, state, tick)
  there = set(trained.identifiers)
  new = tuple(task.name for task in tasks if task.name not in there)
  return Answers(dataset.test_puzzles, counted, steps, new, time.monotonic() - began)


def _asked(config: schema.Config, votes: int | None) -> schema.Config:
  """The run's config with so many votes, and with batches of the size that it differentiates at once."""
  arc = config.data.arc if votes is None else dataclasses.replace(config.data.arc, evaluation_augmentations=votes - 1)
  data, rows = dataclasses.replace(config.data, arc=arc), config.batch_size // config.accumulation
  return dataclasses.replace(config, data=data, batch_size=rows, accumulation=1)


def placed(setup: Setup, dataset: TokenDataset, trained: Trained) -> TrainState:
  """The run's arrays in a state for these tasks; rows that it does not know are the mean of those that it does."""
  state, table = setup.create(), None
  params, buffers, theirs = jax.device_get((trained.state.evaluated, trained.state.buffers, trained.state.table))
  if theirs is not None:
    rows, known = theirs[: len(trained.identifiers)], trained_rows(dataset.identifiers, trained.identifiers)
    table, _ = rows_by_name(state.table.shape, dataset.identifiers, rows, trained.identifiers)
    table[: len(known)][~known] = rows[1:].mean(axis=0)
  return with_arrays(setup, state, params, buffers, table)


def _votes(setup: Setup, dataset: TokenDataset, state: TrainState, tick: Tick) -> ArcVotes:
  ways = meshes.ways(setup.mesh)
  most = min(setup.config.evaluation.batch_size or setup.config.batch_size, dataset.evaluation.examples)
  batches = dataset.evaluation_batches(-(-most // ways) * ways)
  rollout, votes = make_rollout(setup), ArcVotes(dataset.identifiers, dataset.side)
  place = functools.partial(jax.device_put, device=meshes.batch_sharding(setup.mesh))
  for number, batch in enumerate(batches):
    tick("answering", number / len(batches))
    fed = {name: batch[name] for name in dataset.element_spec}
    result = jax.device_get(rollout(state.evaluated, state.buffers, state.table, place(fed)))
    votes.add(
      batch["puzzle_identifiers"], batch["inputs"], result["predictions"], result["q_halt"].astype(np.float32),
      batch["valid"],
    )  # fmt: skip
  return votes
