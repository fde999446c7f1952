"""Signal propagation at infinite width: variances, layer noise, and the weight scale that keeps gradients alive.

A pre-activation of variance q leaves the non-linearity with E[φ(√q Z)²] and passes gradients with E[φ'(√q Z)²]. With
weights of
variance σ_w²/fan-in the layer's Jacobian noise is σ_l² = σ_w² E[φ'(√q Z)²].
Source: Poole et al. 2016, Schoenholz et al. 2017; Gauss-Hermite quadrature of the Gaussian averages.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, UserError

__all__ = [
  "ACTIVATIONS", "Propagation", "critical_sigma_w", "fixed_point", "gaussian_mean", "isometric_sigma_w", "propagate",
  "second_moment", "slope_moment",
]  # fmt: skip

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
  "sigmoid": jax.nn.sigmoid,
  "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "silu": jax.nn.silu,
  "linear": lambda x: x,
}

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(100)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def gaussian_mean(function: Callable[[Array], Array], variance: Float[Array, ""] | float) -> Float[Array, ""]:
  """E f(√variance Z), Z ~ N(0, 1), by 100-point Gauss-Hermite quadrature (even nodes: a kink at 0 is met exactly)."""
  return jnp.sum(jnp.asarray(_WEIGHTS) * function(jnp.sqrt(variance) * jnp.asarray(_NODES)))


def second_moment(activation: str, variance: Float[Array, ""] | float) -> Float[Array, ""]:
  """E φ(√q Z)²."""
  phi = _activation(activation)
  return gaussian_mean(lambda x: phi(x) ** 2, variance)


def slope_moment(activation: str, variance: Float[Array, ""] | float) -> Float[Array, ""]:
  """E φ'(√q Z)²."""
  slope = jax.vmap(jax.grad(_activation(activation)))
  return gaussian_mean(lambda x: slope(x) ** 2, variance)


def _activation(name: str) -> Callable[[Array], Array]:
  check_choice("activation", name, ACTIVATIONS)
  return ACTIVATIONS[name]


class Propagation(NamedTuple):
  """Variances layer by layer."""

  pre_activation: jax.Array  # (L,)  q_l = σ_w² v_l + σ_b²
  stream: jax.Array  # (L + 1,)  v_l, mean square of a stream's entries
  noise: jax.Array  # (L,)  σ_l, standard deviation of the Jacobian noise of layer l


def propagate(
  activation: str,
  sigma_w: float,
  depth: int,
  sigma_b: float = 0.0,
  variance: float = 1.0,
  residual: float = 1.0,
  norm: bool = True,
) -> Propagation:
  """Residual mean field v ← residual · v + E φ(√q Z)² with q = σ_w² v + σ_b² (q = σ_w² + σ_b² behind a norm layer).

  The branch ends in an output projection of variance 1/fan-in, so that its mean is zero and its variance adds.
  residual: what the mixer keeps of the variance (1 for an isometry, tr AᵀA/n otherwise, 0 for a plain network).
  With `norm` the branch divides by √v, and so does its Jacobian: σ_l² = σ_w² E φ'(√q Z)² / v.

  Raises UserError for a sigma_w that is not positive or a depth below 1, ConfigError for an unknown activation.

  >>> noise = jp.spectral.propagate("linear", sigma_w=0.1, depth=2).noise
  >>> [round(float(sigma), 4) for sigma in noise]  # the second norm divides by √1.01
  [0.1, 0.0995]
  """
  if sigma_w <= 0 or depth < 1:
    raise UserError(f"sigma_w={sigma_w}, depth={depth}: expected sigma_w > 0 and depth >= 1")

  def layer(v: Array, _: None) -> tuple[Array, tuple[Array | float, Array, Array]]:
    q = sigma_w**2 * (1.0 if norm else v) + sigma_b**2
    noise = jnp.sqrt(sigma_w**2 * slope_moment(activation, q) / (v if norm else 1.0))
    following = residual * v + second_moment(activation, q)
    return following, (q, following, noise)

  start = jnp.asarray(variance, jnp.result_type(float))
  _, (q, v, noise) = jax.lax.scan(layer, start, None, length=depth)
  q = jnp.broadcast_to(q, (depth,))
  return Propagation(q, jnp.concatenate([start[None], v]), noise)


def fixed_point(activation: str, sigma_w: float, sigma_b: float = 0.0, iterations: int = 500) -> float:
  """q* of the plain network, q ← σ_w² E φ(√q Z)² + σ_b²; inf when the variance diverges."""
  q = 1.0
  step = jax.jit(lambda q: sigma_w**2 * second_moment(activation, q) + sigma_b**2)
  for _ in range(iterations):
    following = float(step(q))
    if following > 1e6:
      return float("inf")
    if abs(following - q) <= 1e-12 * max(q, 1e-12):
      break
    q = following
  return q


def critical_sigma_w(activation: str, variance: float = 1.0) -> float:
  """σ_w on the edge of chaos for a pre-activation variance q: σ_w² E φ'(√q Z)² = 1 (√2 for ReLU, 1 for tanh at q →
  0).

  >>> round(jp.spectral.critical_sigma_w("relu"), 3)
  1.414
  """
  return float(1.0 / jnp.sqrt(slope_moment(activation, variance)))


def isometric_sigma_w(activation: str, depth: int, total_noise: float = 0.05, variance: float = 1.0) -> float:
  """σ_w for which `depth` residual layers over isometric mixers add up to Σ_l σ_l² = total_noise.

  The singular values of J then spread over about exp(± 2 √total_noise): near dynamical isometry for total_noise ≪ 1.

  >>> round(jp.spectral.isometric_sigma_w("linear", depth=5, total_noise=0.05), 3)
  0.1
  """
  return float(jnp.sqrt(total_noise / (depth * slope_moment(activation, variance))))
