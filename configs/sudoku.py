"""x"""
from jpmhc_jax.core.config import default
def get_config(variant="tiny"):
  c=default()
  c.data.kind="sudoku"; c.steps=1500; c.batch_size=64; c.model.width=64; c.model.heads=4; c.model.puzzle.width=0; c.model.puzzle.slots=1; c.model.mlp_multiple=32
  c.data.sudoku.train_puzzles=1000; c.data.sudoku.test_puzzles=100
  c.optimizer.learning_rate=1e-3; c.optimizer.warmup_steps=100; c.optimizer.weight_decay=0.1; c.optimizer.ema=0.99
  c.evaluation.every=250; c.model.recursion.max_steps=8
  c.logging.every=50
  c.connection.manifold=variant if variant!="tiny" else "cayley"
  if variant=="plain": c.connection.streams=1; c.connection.manifold="cayley"
  return c
