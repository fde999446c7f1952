"""Transport: learned, manifold-constrained maps between the latent spaces of two modules, and entropic transport.

rule = jp.transport.OrthogonalMap(64, 96)
parameters = rule.fit(x, y)                                 # Procrustes; or rule.init(key), and optax
plan = jp.transport.EntropicTransport(epsilon=0.05)(rule(parameters, x), y)
"""

from jpmhc_jax.transport.anchors import AttentionMap, BarycentricMap
from jpmhc_jax.transport.diagnostics import (
  calibration_error,
  cka,
  CollapseAlarm,
  effective_rank,
  local_distortion,
  neighbour_overlap,
  procrustes_distance,
  recall,
)
from jpmhc_jax.transport.flows import FlowMap, OrthogonalMLP
from jpmhc_jax.transport.fuse import compiled, fuse, price, save_npz, timed
from jpmhc_jax.transport.gromov import gromov_wasserstein
from jpmhc_jax.transport.jacobians import log_volume, singular_values
from jpmhc_jax.transport.losses import (
  contrastive,
  isometry,
  isometry_estimate,
  isometry_penalty,
  mmd,
  negative_log_likelihood,
  one_probe_isometry,
  relaxed_isometry,
  relaxed_isometry_estimate,
  tangent_basis,
  tangent_isometry,
  tangent_isometry_estimate,
  trace_isometry,
  trace_isometry_estimate,
  volume,
)
from jpmhc_jax.transport.maps import Chain, LinearMap, MapRule, OrthogonalMap, SpectralMap, TransportMap
from jpmhc_jax.transport.sinkhorn import EntropicTransport, TransportPlan
from jpmhc_jax.transport.stages import RowBank, Schedule, Stage, StageClock

__all__ = [
  "AttentionMap", "BarycentricMap", "Chain", "CollapseAlarm", "EntropicTransport", "FlowMap", "LinearMap",
  "MapRule", "OrthogonalMLP", "OrthogonalMap", "RowBank", "Schedule", "SpectralMap", "Stage", "StageClock",
  "TransportMap", "TransportPlan", "calibration_error", "cka", "compiled", "contrastive", "effective_rank", "fuse",
  "gromov_wasserstein", "isometry", "isometry_estimate", "isometry_penalty", "local_distortion", "log_volume", "mmd",
  "negative_log_likelihood", "neighbour_overlap", "one_probe_isometry", "price", "procrustes_distance", "recall",
  "relaxed_isometry", "relaxed_isometry_estimate", "save_npz", "singular_values", "tangent_basis", "tangent_isometry",
  "tangent_isometry_estimate", "timed", "trace_isometry", "trace_isometry_estimate", "volume",
]  # fmt: skip
