"""Generated mazes with one shortest path; no two base mazes are the same up to the symmetries of the square.

Corridors are carved by a random depth-first walk, then a fraction of the inner walls is opened so that routes
compete; start and goal are drawn so that exactly one shortest path joins them, since scoring wants one answer.
Tokens: '#' wall 1, ' ' floor 2, 'S' start 3, 'G' goal 4, 'o' path 5, PAD 0 unused; one identifier for all. The label
is the same maze with the cells strictly between S and G on the path marked 'o'. The mazes do not depend on the run's
seed.
"""

import dataclasses
import random

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.config.schema import Data, MazeData
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.data.arc_grids import dihedral, DIHEDRAL_ORDER
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import digest
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokens import TokenDataset

WALL, FLOOR, START, GOAL, PATH = 1, 2, 3, 4, 5
SYMBOLS = "# SGo"  # of these tokens
_BUILDER_SEED = 0
_PATIENCE = 300  # carvings in a row without a new maze before giving up


@register_dataset("maze")
def build_maze(config: Data, *, batch_size: int, seed: int) -> TokenDataset:
  """Generates the mazes (11×11: under a millisecond each) and wraps them in batches."""
  options = config.maze
  require(options.side % 2 == 1, "data.maze.side", options.side, f"an odd number, e.g. {options.side + 1}")
  inputs, labels = generate(options)
  held = options.test_mazes
  train = _split(inputs[held:], labels[held:], copies=DIHEDRAL_ORDER if options.dihedral else 1)
  return TokenDataset(
    kind="maze",
    drawn_as="maze",
    symbols=SYMBOLS,
    side=options.side,
    vocab_size=PATH + 1,
    train=train,
    evaluation=_split(inputs[:held], labels[:held], copies=1),
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=digest("maze", inputs, labels, str(held), str(options.dihedral)),
    notes={"mean_path": float((labels == PATH).sum((1, 2)).mean()) + 2},
  )


def generate(options: MazeData) -> tuple[UInt8[np.ndarray, "n side side"], UInt8[np.ndarray, "n side side"]]:
  """Mazes and solved mazes, test_mazes first, then train_mazes; all different under the 8 symmetries.

  Raises ConfigError when no new maze turns up: the side is too small for that many, or for such long paths.
  """
  rng = random.Random(_BUILDER_SEED)
  mazes: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
  wanted, barren = options.test_mazes + options.train_mazes, 0
  while len(mazes) < wanted:
    pair = _solved(carve(options.side, options.loops, rng), options.min_path, rng)
    key = canonical(pair[0]) if pair else b""
    if pair and key not in mazes:
      mazes[key], barren = pair, 0
      continue
    barren += 1
    if barren > _PATIENCE:
      raise ConfigError(
        f"data.maze.side={options.side}, min_path={options.min_path}: only {len(mazes)} of {wanted} different mazes "
        "with one shortest path of that length were found; raise side, or lower min_path, loops or their number."
      )
  return np.stack([maze for maze, _ in mazes.values()]), np.stack([label for _, label in mazes.values()])


def canonical(maze: UInt8[np.ndarray, "side side"]) -> bytes:
  """The smallest of the maze's 8 symmetric copies: equal exactly for equivalent mazes."""
  return min(dihedral(maze, k).tobytes() for k in range(DIHEDRAL_ORDER))


def carve(side: int, loops: float, rng: random.Random) -> UInt8[np.ndarray, "side side"]:
  """Walls and floor: a spanning tree of the odd cells, then `loops` of the remaining walls between them opened."""
  maze = np.full((side, side), WALL, np.uint8)
  stack = [(rng.randrange(1, side, 2), rng.randrange(1, side, 2))]
  maze[stack[0]] = FLOOR
  while stack:
    row, column = stack[-1]
    steps = [
      (r, c)
      for r, c in ((row - 2, column), (row + 2, column), (row, column - 2), (row, column + 2))
      if 0 < r < side and 0 < c < side and maze[r, c] == WALL
    ]
    if not steps:
      stack.pop()
      continue
    r, c = rng.choice(steps)
    maze[r, c] = maze[(row + r) // 2, (column + c) // 2] = FLOOR
    stack.append((r, c))
  between = [(r, c) for r in range(1, side - 1) for c in range(1, side - 1) if (r + c) % 2 and maze[r, c] == WALL]
  for wall in rng.sample(between, round(loops * len(between))):
    maze[wall] = FLOOR
  return maze


def shortest_paths(
  maze: UInt8[np.ndarray, "side side"], start: tuple[int, int]
) -> tuple[Int[np.ndarray, "side side"], Int[np.ndarray, "side side"]]:
  """Steps from start (−1 where unreachable) and number of shortest paths, counted up to 2, of every cell."""
  distance = np.full(maze.shape, -1)
  paths = np.zeros(maze.shape, int)
  distance[start], paths[start] = 0, 1
  frontier = [start]
  while frontier:
    reached = []
    for row, column in frontier:
      for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        if maze[cell] == WALL:
          continue
        if distance[cell] < 0:
          distance[cell] = distance[row, column] + 1
          reached.append(cell)
        if distance[cell] == distance[row, column] + 1:
          paths[cell] = min(2, paths[cell] + paths[row, column])
    frontier = reached
  return distance, paths


def _solved(maze: np.ndarray, min_path: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray] | None:
  """The maze with start and goal, and its solution; None if the drawn start has no goal far enough with one path."""
  row, column = rng.choice(np.argwhere(maze == FLOOR).tolist())
  start = (row, column)
  distance, paths = shortest_paths(maze, start)
  goals = np.argwhere((paths == 1) & (distance + 1 >= min_path)).tolist()
  if not goals:
    return None
  cell = goal = tuple(rng.choice(goals))
  label = maze.copy()
  while cell != start:
    label[cell] = PATH
    row, column = cell
    around = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    cell = next(c for c in around if distance[c] == distance[cell] - 1)
  for grid in (maze, label):
    grid[start], grid[goal] = START, GOAL
  return maze, label


@dataclasses.dataclass(frozen=True)
class MazeEncoder:
  """Example e is maze e // copies under symmetry e mod copies; symmetry 0 leaves it as it is."""

  inputs: UInt8[np.ndarray, "n side side"]
  labels: UInt8[np.ndarray, "n side side"]
  copies: int

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b s"]]:
    """Inputs and labels of the examples, one row each."""
    base, turn = np.divmod(examples, self.copies)
    tokens = np.stack([self.inputs[base], self.labels[base]], -1)
    for k in range(1, self.copies):
      chosen = turn == k
      tokens[chosen] = np.moveaxis(dihedral(np.moveaxis(tokens[chosen], 0, 2), k), 2, 0)
    flat = tokens.reshape(examples.size, -1, 2)
    return flat[..., 0], flat[..., 1]


def _split(inputs: np.ndarray, labels: np.ndarray, copies: int) -> Split:
  examples = len(inputs) * copies
  return Split(
    group_starts=np.arange(0, examples + 1, copies),
    puzzle_starts=np.arange(examples + 1),
    identifiers=np.zeros(examples, np.int32),
    encode=MazeEncoder(inputs, labels, copies),
  )
