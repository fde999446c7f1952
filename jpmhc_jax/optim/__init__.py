"""Optimisers: optax transformations, Euclidean and on manifolds, and the row-wise sign-SGD of embedding tables.

    optimizer = optim.cayley_adam(1e-2, manifolds.Stiefel())  # for leaves (*batch, n, p) with orthonormal columns

The optimiser of a whole run, built from its config, is `training.optimizer`.
"""

from jpmhc_jax.optim.adam_atan2 import adam_atan2, scale_by_adam_atan2
from jpmhc_jax.optim.manifold_optimizers import (
  cayley_adam,
  cayley_sgd,
  clip_singular_values,
  grassmann_adam,
  landing,
  projected_muon,
)
from jpmhc_jax.optim.riemannian import (
  retract,
  riemannian_gradient,
  scale_by_riemannian_adam,
  scale_by_riemannian_momentum,
  stabilize_every,
)
from jpmhc_jax.optim.schedules import make_schedule
from jpmhc_jax.optim.sign_sgd import sign_sgd_rows

__all__ = [
  "adam_atan2",
  "cayley_adam",
  "cayley_sgd",
  "clip_singular_values",
  "grassmann_adam",
  "landing",
  "make_schedule",
  "projected_muon",
  "retract",
  "riemannian_gradient",
  "scale_by_adam_atan2",
  "scale_by_riemannian_adam",
  "scale_by_riemannian_momentum",
  "sign_sgd_rows",
  "stabilize_every",
]
