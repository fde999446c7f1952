"""Tasks, augmentation and batches: everything is a pure function of (seed, step), in plain numpy."""

from jpmhc_jax.config.schema import Data
from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.data.arc import build_arc
from jpmhc_jax.data.dataset import Dataset
from jpmhc_jax.data.images import build_images
from jpmhc_jax.data.maze import build_maze
from jpmhc_jax.data.sudoku import build_sudoku
from jpmhc_jax.data.text import build_text

_BUILDERS = {"arc": build_arc, "sudoku": build_sudoku, "maze": build_maze, "text": build_text, "images": build_images}


def build(config: Data, *, batch_size: int, seed: int) -> Dataset:
  """The data set of config.kind, with training batches of `batch_size` rows drawn from `seed`.

  Raises ConfigError for a field out of range, DataError for a malformed file.
  """
  check_choice("data.kind", config.kind, _BUILDERS)
  return _BUILDERS[config.kind](config, batch_size=batch_size, seed=seed)
