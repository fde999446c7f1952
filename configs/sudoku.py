"""x"""
from jpmhc_jax.core.config import default
def get_config(variant="tiny"):
  c=default()
  c.data.kind="sudoku"; c.steps=100; c.batch_size=32; c.model.width=64; c.model.heads=4; c.model.puzzle.width=0; c.model.puzzle.slots=4; c.model.mlp_multiple=32
  return c
