"""The ARC data sets, from config to batches."""

from collections.abc import Mapping, Sequence
import json

from jpmhc_jax.config.schema import ArcData, Data
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.arc_builder import draw_groups, draw_offsets, Group, LegacyRandom, make_split, number_copies
from jpmhc_jax.data.arc_grids import VOCABULARY
from jpmhc_jax.data.arc_tasks import load_tasks, Task
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import digest
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokens import TokenDataset


@register_dataset("arc", voting=True)
def build_arc(config: Data, *, batch_size: int, seed: int) -> TokenDataset:
  """Loads, checks, augments and places the tasks (full ARC-1 with 1,000 copies: about 20 s, 0.5 GB).

  Raises ConfigError for sides that exclude each other or when nothing is left to train on, DataError for a malformed
  file.
  """
  if config.arc.min_side > config.arc.max_side:
    raise ConfigError(
      f"data.arc.min_side={config.arc.min_side} exceeds data.arc.max_side={config.arc.max_side}; swap them."
    )
  groups, names, train, evaluation = build_splits(load_tasks(config.arc), config.arc)
  if not train.examples:
    raise ConfigError(f"data.arc.subsets={config.arc.subsets!r}: nothing to train on; include a subset with tasks.")
  scored = [group.task for group in groups if group.evaluation]
  return TokenDataset(
    kind="arc",
    side=config.arc.canvas,
    vocab_size=VOCABULARY,
    identifiers=names,
    train=train,
    evaluation=evaluation,
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=_content(config.arc, groups, names, train, evaluation),
    test_puzzles={task.name: task.to_json() for task in scored},
    notes={
      "tasks": len(groups),
      "scored_tasks": len(scored),
      "scored_test_inputs": sum(len(task.tests) for task in scored),
      "tasks_short_of_augmentations": sum(len(group.copies) <= config.arc.augmentations for group in groups),
    },
  )


def build_splits(subsets: Mapping[str, Sequence[Task]], config: ArcData) -> tuple[list[Group], list[str], Split, Split]:
  """Groups, names by identifier, training and evaluation split; with the default fields exactly the official arrays."""
  rng = LegacyRandom(config.builder_seed)
  groups = draw_groups(subsets, config, rng)
  offsets = draw_offsets(groups, config.canvas, rng) if config.translate else None
  names, first = number_copies(groups)
  train = make_split(groups, first, lambda group: group.train, config.augmentations + 1, offsets, config.canvas)
  votes = config.evaluation_augmentations + 1
  evaluation = make_split(groups, first, lambda group: group.evaluation, votes, None, config.canvas)
  return groups, names, train, evaluation


def _content(config: ArcData, groups: Sequence[Group], names: Sequence[str], train: Split, evaluation: Split) -> str:
  tasks = json.dumps([group.task.to_json() for group in groups])
  return digest(
    tasks,
    "\n".join(names),
    *(array for split in (train, evaluation) for array in (split.group_starts, split.puzzle_starts, split.identifiers)),
    f"seed {config.builder_seed}, canvas {config.canvas}, translate {config.translate}",  # these fix every offset
  )
