"""ARC tasks that are given to a trained run: their demonstrations to fit it to, their tests to answer."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jpmhc_jax.config.schema import Data
from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.reading import shown
from jpmhc_jax.data.arc import Copy, dataset_of, draw_copies, Group, LegacyRandom, splits_of
from jpmhc_jax.data.arc_grids import parse_augmented_name
from jpmhc_jax.data.arc_tasks import Task
from jpmhc_jax.data.dataset import BLANK
from jpmhc_jax.data.tokens import TokenDataset


def given_dataset(
  tasks: Sequence[Task], config: Data, known: Sequence[str], *, batch_size: int, seed: int
) -> TokenDataset:
  """A data set whose training examples are the demonstrations, and whose evaluation are the tests, of all tasks.

  config: of the run; its augmentations are drawn, and as many copies of a test input vote. known: the run's
  identifiers; a task that is among them keeps its copies, so that the run's table has rows for them. Raises DataError
  for a grid that the run's canvas does not hold, and for two tasks of one id.
  """
  arc = dataclasses.replace(config.arc, augmentations=config.arc.evaluation_augmentations)
  _check(tasks, arc.canvas)
  rng, copies = LegacyRandom(arc.builder_seed), known_copies(known)
  groups = [
    Group(
      task,
      copies.get(task.name) or draw_copies(task.joined(True), arc.augmentations, rng, arc.recolour),
      task.demonstrations,
      task.tests,
    )
    for task in tasks
  ]
  config = dataclasses.replace(config, arc=arc, epochs_per_interval=max(config.epochs_per_interval, batch_size))
  return dataset_of(*splits_of(groups, arc, rng), config, batch_size=batch_size, seed=seed)


def known_copies(identifiers: Sequence[str]) -> dict[str, list[Copy]]:
  """The copies of every task among the identifiers of a data set, in their order."""
  copies: dict[str, list[Copy]] = {}
  for name in identifiers:
    if name != BLANK:
      task, turn, permutation = parse_augmented_name(name)
      copies.setdefault(task, []).append((turn, permutation.tobytes()))
  return copies


def _check(tasks: Sequence[Task], canvas: int) -> None:
  sources: dict[str, str] = {}
  for task in tasks:
    if max(task.longest_sides()) > canvas:
      raise DataError(
        f"{shown(task.source)}: task {task.name!r} has a grid of side {max(task.longest_sides())}; the run's canvas, "
        f"data.arc.canvas={canvas}, holds no larger one: leave the task out, or take a run with a larger canvas"
      )
    if task.name in sources:
      raise DataError(
        f"{shown(task.source)}: task {task.name!r} is already given by {shown(sources[task.name])}; give it once"
      )
    sources[task.name] = task.source


def trained_rows(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
  """Whether the run's table has a row for each name: bool (names,)."""
  there = set(known)
  return np.array([name in there for name in names])
