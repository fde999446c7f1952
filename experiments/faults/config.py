"""The smallest run that has everything a restart could lose: 4×4 Sudoku, two Cayley streams, table, carry, average.

Variant: the number of steps. Not for training; see run.py. The learning rate is small on purpose: at 1e-2 the last bit
of a sum grows tenfold every four steps, whoever rounds it, and losses could only be compared to 1e-2.
"""

import ml_collections

from jpmhc_jax.config import load


def get_config(variant: str = "60") -> ml_collections.ConfigDict:
  c = load.default()
  c.steps, c.batch_size = int(variant), 16
  c.data.kind = "sudoku"
  c.data.sudoku.train_puzzles, c.data.sudoku.test_puzzles, c.data.sudoku.shuffles = 60, 20, 20
  c.model.width, c.model.heads, c.model.layers, c.model.mlp_multiple = 16, 2, 1, 8
  c.model.recursion.outer, c.model.recursion.inner, c.model.recursion.max_steps = 2, 2, 4
  c.model.puzzle.width, c.model.puzzle.slots = 16, 1
  c.connection.streams = 2
  c.optimizer.learning_rate, c.optimizer.warmup_steps, c.optimizer.ema = 3e-4, 4, 0.9
  c.checkpoint.every, c.checkpoint.keep, c.evaluation.every = 4, 3, 10
  c.evaluation.batch_size, c.evaluation.save_every = 8, 1
  c.logging.every, c.logging.tensorboard, c.logging.diagnostics_every = 1, True, 0
  return c
