"""Tasks, augmentation and batches: everything is a pure function of (seed, step), in plain numpy."""

from jpmhc_jax.data.arrays import ArrayDataset
from jpmhc_jax.data.dataset import Dataset, ElementSpec, ExampleDataset
from jpmhc_jax.data.registry import build, register_dataset, votes
from jpmhc_jax.data.tokens import TokenDataset

__all__ = [
  "ArrayDataset",
  "build",
  "Dataset",
  "ElementSpec",
  "ExampleDataset",
  "register_dataset",
  "TokenDataset",
  "votes",
]
