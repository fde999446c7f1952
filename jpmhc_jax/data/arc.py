"""The ARC data set of TRM, bit for bit, without its gigabytes.

Each task becomes a group: itself and augmented copies (a symmetry and a permutation of colours 1–9), every copy with an
identifier of its own. Kept are, per copy, the symmetry and the permutation and, per training example, its offset on the
canvas; tokens are made when a batch asks. The draws follow github SamsungSAILMontreal/TinyRecursiveModels @ e7b6871,
dataset/build_arc_dataset.py: shuffle a subset, augment its tasks, next subset; then place the training examples.
"""

from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
import dataclasses
import json

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.config.schema import ArcData, Data
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data import arc_files
from jpmhc_jax.data.arc_grids import augment, augmented_name, COLOURS, dihedral, DIHEDRAL_ORDER, place, VOCABULARY
from jpmhc_jax.data.arc_tasks import load_tasks, Pair, Task, tasks_folder
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import digest
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokens import TokenDataset

_TRIES = 5  # draws per wanted copy before a highly symmetric task is left with fewer
_IDENTITY = bytes(range(COLOURS))
_UNCHANGED = bytes(range(COLOURS, 256))
_CHUNK = 1 << 16  # words drawn at once
Copy = tuple[int, bytes]  # symmetry, colour permutation


class LegacyRandom:
  """Draws as `np.random.seed(seed)` followed by np.random.randint, shuffle and permutation, value for value.

  RandomState's bounded integers, shuffles and permutations all reduce to one rule: take 32-bit words of MT19937, keep
  the low bits that the bound needs, and reject what exceeds it. The official builder makes 16 million such calls; at a
  few microseconds each inside NumPy that is over a minute, as plain integers here it is seconds. NumPy froze this
  stream (NEP 19).
  """

  def __init__(self, seed: int):
    self._words = self._stream(np.random.RandomState(seed))

  @staticmethod
  def _stream(state: np.random.RandomState) -> Iterator[int]:
    while True:
      yield from state.randint(0, 1 << 32, size=_CHUNK, dtype=np.uint32).tolist()

  def at_most(self, largest: int) -> int:
    """Uniform in 0..largest: randint(0, largest + 1). No word is used for largest = 0."""
    if not largest:
      return 0
    mask = (1 << largest.bit_length()) - 1
    while (word := next(self._words) & mask) > largest:
      pass
    return word

  def shuffle(self, items: MutableSequence) -> None:
    """Shuffles in place; also `permutation` of a copy."""
    for i in range(len(items) - 1, 0, -1):
      j = self.at_most(i)
      items[i], items[j] = items[j], items[i]


@dataclasses.dataclass(frozen=True)
class Group:
  """A task, its copies (the first is the task itself) and what each split shows of it."""

  task: Task
  copies: list[Copy]
  train: tuple[Pair, ...]
  evaluation: tuple[Pair, ...]


@dataclasses.dataclass(frozen=True)
class ArcEncoder:
  """Tokens of any example: which pair, turned and recoloured how, placed where."""

  pairs: tuple[tuple[Pair, ...], ...]  # by group
  groups: Int[np.ndarray, "puzzles"]
  turns: UInt8[np.ndarray, "puzzles"]
  permutations: UInt8[np.ndarray, "puzzles 10"]
  puzzle_starts: Int[np.ndarray, "puzzles_and_1"]
  offsets: UInt8[np.ndarray, "examples 2"] | None  # None: everything at (0, 0)
  canvas: int

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b s"]]:
    """Inputs and labels of the examples, one row each."""
    puzzles = np.searchsorted(self.puzzle_starts, examples, side="right") - 1
    tokens = np.zeros((2, examples.size, self.canvas, self.canvas), np.uint8)
    for row, (example, puzzle) in enumerate(zip(examples.tolist(), puzzles.tolist(), strict=True)):
      pair = self.pairs[self.groups[puzzle]][example - self.puzzle_starts[puzzle]]
      offset = (0, 0) if self.offsets is None else self.offsets[example].tolist()
      for target, grid in zip(tokens, pair, strict=True):
        place(target[row], augment(grid, int(self.turns[puzzle]), self.permutations[puzzle]), *offset)
    return tokens[0].reshape(examples.size, -1), tokens[1].reshape(examples.size, -1)


def draw_groups(subsets: Mapping[str, Sequence[Task]], config: ArcData, rng: LegacyRandom) -> list[Group]:
  """Groups in builder order. What a task's pairs are used for:

  a task of test_subset: its demonstrations train, its tests are the evaluation set. With validation_tasks = k > 0
  they are set aside untouched, and the tests of the first k other tasks are evaluated (and not trained on) in their
  place; these are tasks whose outputs are all known.
  Any other task: demonstrations and tests train, but for tests whose output is not known. Tasks of a subset outside
  `subsets` train on nothing; the demonstrations of 'test' and 'concept' always train.
  Raises ConfigError when fewer tasks than validation_tasks can be evaluated.
  """
  groups = []
  remaining = config.validation_tasks
  for subset, tasks in subsets.items():
    order = list(tasks)
    rng.shuffle(order)
    trained = subset in ("concept", "test") or config.subsets in ("all", subset)
    for task in order[: config.max_tasks or None]:
      tested = subset == config.test_subset
      validation = not tested and remaining > 0 and len(task.solved) == len(task.tests)
      remaining -= validation
      joined = task.joined(with_tests=not tested and not validation) if trained else ()
      train = tuple(pair for pair in joined if pair[1].size)
      scored = validation or (tested and config.validation_tasks == 0)
      copies = draw_copies(task.joined(True), config.augmentations, rng, config.recolour)
      groups.append(Group(task, copies, train, task.tests if scored else ()))
  if remaining:
    raise ConfigError(
      f"data.arc.validation_tasks={config.validation_tasks}: only {config.validation_tasks - remaining} tasks lie "
      f"outside the test subset {config.test_subset!r}; lower it, or widen data.arc.subsets, max_tasks or the sides."
    )
  return groups


def draw_copies(pairs: Sequence[Pair], count: int, rng: LegacyRandom, recolour: bool = True) -> list[Copy]:
  """The task itself, then up to `count` copies that differ from it and from each other as sets of pairs."""
  copies = [(0, _IDENTITY)]
  records = [[_record(pair, k) for pair in pairs] for k in range(DIHEDRAL_ORDER)] if count else []
  seen = {b"".join(sorted(records[0]))} if count else set()
  for turn, permutation in _drawn(_TRIES * count, rng) if recolour else _turned(rng) if count else ():
    table = permutation + _UNCHANGED
    content = b"".join(sorted([record.translate(table) for record in records[turn]]))
    if content not in seen:
      seen.add(content)
      copies.append((turn, permutation))
      if len(copies) > count:
        break
  return copies


def _drawn(tries: int, rng: LegacyRandom) -> Iterator[Copy]:
  for _ in range(tries):
    turn = rng.at_most(DIHEDRAL_ORDER - 1)
    colours = bytearray(_IDENTITY[1:])
    rng.shuffle(colours)
    yield turn, _IDENTITY[:1] + bytes(colours)


def _turned(rng: LegacyRandom) -> Iterator[Copy]:
  turns = bytearray(range(1, DIHEDRAL_ORDER))
  rng.shuffle(turns)
  yield from ((turn, _IDENTITY) for turn in turns)


def _record(pair: Pair, k: int) -> bytes:
  """A turned pair as self-delimiting bytes; sizes are shifted past the colours, so recolouring leaves them alone."""
  turned = [dihedral(grid, k) for grid in pair]
  return b"".join(bytes(COLOURS + side for side in grid.shape) + grid.tobytes() for grid in turned)


def draw_offsets(groups: Sequence[Group], canvas: int, rng: LegacyRandom) -> UInt8[np.ndarray, "examples 2"]:
  """Row and column of every training example: one pair of each puzzle, chosen at random, stays at (0, 0)."""
  offsets = bytearray()
  for group in groups:
    if not group.train:
      continue
    sides = [np.maximum(a.shape, b.shape).tolist() for a, b in group.train]
    room = [(canvas - rows, canvas - columns) for rows, columns in sides]
    swapped = [(columns, rows) for rows, columns in room]
    for turn, _ in group.copies:
      fixed = rng.at_most(len(room) - 1)
      for i, (rows, columns) in enumerate(swapped if turn in (1, 3, 6, 7) else room):
        offsets += b"\0\0" if i == fixed else bytes((rng.at_most(rows), rng.at_most(columns)))
  return np.frombuffer(bytes(offsets), np.uint8).reshape(-1, 2)


def number_copies(groups: Sequence[Group]) -> tuple[list[str], list[int]]:
  """Names by identifier, 0 being blank, and the first identifier of every group (copies are numbered consecutively).

  Groups with training examples come first, as in the official map, which walks the training split before the other.
  """
  names, first = ["<blank>"], [0] * len(groups)
  for trained in (True, False):
    for number, group in enumerate(groups):
      if bool(group.train) == trained and (trained or group.evaluation):
        first[number] = len(names)
        names.append(group.task.name)
        names += [
          augmented_name(group.task.name, turn, np.frombuffer(colours, np.uint8)) for turn, colours in group.copies[1:]
        ]
  return names, first


def make_split(
  groups: Sequence[Group],
  first_identifiers: Sequence[int],
  shown: Callable[[Group], tuple[Pair, ...]],
  copies: int,
  offsets: UInt8[np.ndarray, "examples 2"] | None,
  canvas: int,
) -> Split:
  """The split of the groups that show any pair, with at most `copies` puzzles of each."""
  rows = [(group, first) for group, first in zip(groups, first_identifiers, strict=True) if shown(group)]
  puzzles = [group.copies[:copies] for group, _ in rows]
  counts = np.array([len(of_group) for of_group in puzzles], np.int64)
  group_of = np.repeat(np.arange(len(rows)), counts)
  starts = _starts(np.array([len(shown(group)) for group, _ in rows], np.int64)[group_of])
  encoder = ArcEncoder(
    pairs=tuple(shown(group) for group, _ in rows),
    groups=group_of,
    turns=np.array([turn for of_group in puzzles for turn, _ in of_group], np.uint8),
    permutations=np.frombuffer(b"".join(c for of_group in puzzles for _, c in of_group), np.uint8).reshape(-1, COLOURS),
    puzzle_starts=starts,
    offsets=offsets,
    canvas=canvas,
  )
  identifiers = np.concatenate(
    [np.arange(first, first + count) for (_, first), count in zip(rows, counts, strict=True)] or [counts]
  )
  return Split(_starts(counts), starts, identifiers.astype(np.int32), encoder)


def _starts(counts: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n_and_1"]:
  return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


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
  parts = build_splits(load_tasks(config.arc), config.arc)
  if not parts[2].examples:
    raise ConfigError(f"data.arc.subsets={config.arc.subsets!r}: nothing to train on; include a subset with tasks.")
  remarks = arc_files.remarks(tasks_folder(config.arc)) if config.arc.dataset == "folder" else []
  return dataset_of(*parts, config, batch_size=batch_size, seed=seed, remarks=remarks)


def dataset_of(
  groups: Sequence[Group],
  names: Sequence[str],
  train: Split,
  evaluation: Split,
  config: Data,
  *,
  batch_size: int,
  seed: int,
  remarks: Sequence[str] = (),
) -> TokenDataset:
  """The data set of what `build_splits` made; remarks: sentences about the files."""
  tested = [group.task for group in groups if group.evaluation]
  return TokenDataset(
    kind="arc",
    side=config.arc.canvas,
    vocab_size=VOCABULARY,
    identifiers=names,
    train=train,
    evaluation=evaluation,
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=_content(config.arc, groups, names, train, evaluation),
    test_puzzles={task.name: task.to_json() for task in tested},
    notes={
      "tasks": len(groups),
      "scored_tasks": sum(bool(task.solved) for task in tested),
      "scored_test_inputs": sum(len(task.solved) for task in tested),
      "test_inputs_without_solution": sum(len(task.tests) - len(task.solved) for task in tested),
      "tasks_short_of_augmentations": sum(len(group.copies) <= config.arc.augmentations for group in groups),
      "remarks": list(remarks),
    },
  )


def build_splits(subsets: Mapping[str, Sequence[Task]], config: ArcData) -> tuple[list[Group], list[str], Split, Split]:
  """Groups, names by identifier, training and evaluation split; with the default fields exactly the official arrays."""
  rng = LegacyRandom(config.builder_seed)
  return splits_of(draw_groups(subsets, config, rng), config, rng)


def splits_of(groups: list[Group], config: ArcData, rng: LegacyRandom) -> tuple[list[Group], list[str], Split, Split]:
  """Groups, names by identifier, training and evaluation split."""
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
