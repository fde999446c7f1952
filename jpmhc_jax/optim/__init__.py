"""Optimisers: nothing but optax transformations, plus the row-wise sign-SGD of the puzzle table."""

from jpmhc_jax.optim.adam_atan2 import adam_atan2, scale_by_adam_atan2
from jpmhc_jax.optim.manifold_optimizers import cayley_adam, cayley_sgd, grassmann_adam, landing, projected_muon
from jpmhc_jax.optim.riemannian import (
  retract,
  riemannian_gradient,
  scale_by_riemannian_adam,
  scale_by_riemannian_momentum,
  stabilize_every,
)
from jpmhc_jax.optim.sign_sgd import sign_sgd_rows

__all__ = [
  "adam_atan2",
  "cayley_adam",
  "cayley_sgd",
  "grassmann_adam",
  "landing",
  "projected_muon",
  "retract",
  "riemannian_gradient",
  "scale_by_adam_atan2",
  "scale_by_riemannian_adam",
  "scale_by_riemannian_momentum",
  "sign_sgd_rows",
  "stabilize_every",
]
