"""Mazes with a unique shortest path: read the walls, mark the way.

  jpmhc train --config=maze:tiny --workdir=runs/maze

Variants: tiny (7×7, minutes on a CPU), hard (29×29 with long paths: the published Maze-Hard recipe on generated
mazes; published 85.3 exact for TRM on its own data, not comparable). All use Cayley mixers; another family is
--config.connection.mixer=sinkhorn, no streams --config.connection.streams=1.
Expect of tiny: 0.9 exact on unseen mazes after 500 of its 1,500 steps (0.905 measured, one seed; about 4 minutes in
all on 2 CPU cores, 2026-11-21). hard has not been run here.
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.sources import check_variant, Recipe

RECIPES = (
  Recipe(
    ("tiny",),
    "7×7 mazes with a unique shortest path",
    "4 min on 2 CPU cores",
    "0.905 exact on unseen mazes after 500 of 1,500 steps",
  ),
  Recipe(("hard",), "29×29 mazes with long paths: the published Maze-Hard recipe", "accelerators", "not run here"),
)


def get_config(variant="tiny"):
  check_variant(variant, RECIPES)
  config = default()
  config.data.kind = "maze"
  config.model.puzzle.width = 0
  if variant == "hard":
    config.steps, config.batch_size = 65_100, 768
    config.precision.compute = "bfloat16"
    config.data.maze.side, config.data.maze.min_path = 29, 110
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-4, 1.0
    config.evaluation.every = 6_510
    return config
  config.steps, config.batch_size = 1500, 64
  config.data.maze.side, config.data.maze.min_path = 7, 5
  config.model.width, config.model.heads, config.model.mlp_multiple = 64, 4, 32
  config.model.token_mixer, config.model.positions = "mlp", "none"
  config.model.puzzle.slots = 1
  config.model.recursion.outer, config.model.recursion.inner, config.model.recursion.max_steps = 2, 2, 8
  config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.ema = 2e-3, 100, 0.99
  config.evaluation.every, config.checkpoint.every, config.logging.every = 250, 500, 10
  return config
