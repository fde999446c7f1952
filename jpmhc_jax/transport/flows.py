"""Nonlinear maps with known slopes: a coupling flow with an exact inverse, and a perceptron of orthogonal layers."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jpmhc_jax.core.errors import require
from jpmhc_jax.core.fields import check_number, check_whole
from jpmhc_jax.linalg import haar
from jpmhc_jax.manifolds import Stiefel
from jpmhc_jax.transport.maps import MapRule, Parameters

__all__ = ["FlowMap", "OrthogonalMLP"]


@dataclasses.dataclass(frozen=True)
class FlowMap(MapRule):
  """`couplings` affine couplings (RealNVP) in fixed random orthogonal bases; the identity before training.

      h = Q x = (h₁, h₂),  h₂' = h₂ exp(s(h₁)) + t(h₁),  |s| <= bound,  x' = Qᵀ h'

  additive: s = 0, which keeps volumes (NICE). The inverse and log |det J| = Σ s are exact. s and t come from a
  perceptron with `hidden` units. Raises ConfigError unless source = target >= 2.
  Source: Dinh et al. 2014, 2017.

  >>> flow = jp.transport.FlowMap(3, 3)
  >>> parameters = flow.init(jax.random.key(0))
  >>> x = jnp.array([[1.0, -2.0, 3.0]])
  >>> bool(jnp.allclose(flow.inverse(parameters, flow(parameters, x)), x, atol=1e-5))
  True
  """

  couplings: int = 4
  hidden: int = 64
  bound: float = 1.0
  additive: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    require(self.source == self.target, "target", self.target, f"source={self.source}: a flow keeps the dimension")
    check_whole("source", self.source, ge=2)
    check_whole("couplings", self.couplings, ge=1)
    check_whole("hidden", self.hidden, ge=1)
    check_number("bound", self.bound, gt=0)

  @property
  def _passed(self) -> int:
    return self.source // 2

  @property
  def roles(self) -> dict[str, str]:
    trained = dict.fromkeys(("hidden_kernel", "hidden_bias", "out_kernel", "out_bias"), "trunk")
    return trained | {"basis": "fixed"}

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    bases, kernels = jax.random.split(key)
    n, a = self.couplings, self._passed
    outputs = (self.source - a) * (1 if self.additive else 2)
    return {
      "basis": jnp.stack([haar(k, self.source) for k in jax.random.split(bases, n)]),
      "hidden_kernel": jax.random.normal(kernels, (n, a, self.hidden)) / a**0.5,
      "hidden_bias": jnp.zeros((n, self.hidden)),
      "out_kernel": jnp.zeros((n, self.hidden, outputs)),
      "out_bias": jnp.zeros((n, outputs)),
    }

  def _conditioned(self, parameters: Parameters, i: int, h: Array) -> tuple[Array, Array]:
    """s and t of coupling i from the passed half."""
    hidden = jax.nn.gelu(h @ parameters["hidden_kernel"][i] + parameters["hidden_bias"][i][None])
    out = hidden @ parameters["out_kernel"][i] + parameters["out_bias"][i][None]
    if self.additive:
      return jnp.zeros_like(out), out
    raw, shift = jnp.split(out, 2, axis=1)
    return self.bound * jnp.tanh(raw / self.bound), shift

  def run(self, parameters: Parameters, x: Float[Array, "n m"]) -> tuple[Float[Array, "n m"], Float[Array, " n"]]:
    """The image and log |det J| of each row."""
    total = jnp.zeros(len(x), x.dtype)
    for i in range(self.couplings):
      basis = jax.lax.stop_gradient(parameters["basis"][i])
      first, second = jnp.split(x @ basis.T, [self._passed], axis=1)
      log_scale, shift = self._conditioned(parameters, i, first)
      x = jnp.concatenate([first, second * jnp.exp(log_scale) + shift], axis=1) @ basis
      total = total + jnp.sum(log_scale, axis=1)
    return x, total

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return self.run(parameters, x)[0]

  def log_volumes(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, " n"]:
    return self.run(parameters, x)[1]

  def inverse(self, parameters: Parameters, y: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """The x whose image is y."""
    for i in reversed(range(self.couplings)):
      basis = parameters["basis"][i]
      first, second = jnp.split(y @ basis.T, [self._passed], axis=1)
      log_scale, shift = self._conditioned(parameters, i, first)
      y = jnp.concatenate([first, (second - shift) * jnp.exp(-log_scale)], axis=1) @ basis
    return y


@dataclasses.dataclass(frozen=True)
class OrthogonalMLP(MapRule):
  """`layers` orthogonal layers with an activation whose slope is in [slope, 1] between them: singular values of the
  Jacobian are in [slope^(layers−1), 1].

      φ(t) = (1 + α)/2 t + (1 − α)/2 (√(1 + t²) − 1),  α = slope

  Layers are of width source but the last, which is target x source with orthonormal columns or rows. residual: x + γ
  g(x) with γ = residual < 1 and Lip(g) <= 1, so that singular values are in [1 − γ, 1 + γ]; source = target.
  Raises ConfigError for a slope outside (0, 1], γ outside [0, 1), and a residual between spaces of other sizes.

  >>> rule = jp.transport.OrthogonalMLP(3, 3)
  >>> parameters = rule.init(jax.random.key(0))
  >>> s = jnp.linalg.svd(jax.jacobian(lambda x: rule(parameters, x))(jnp.ones(3)), compute_uv=False)
  >>> bool(s[0] <= 1 + 1e-5) and bool(s[-1] >= rule.bounds()[0])
  True
  """

  layers: int = 3
  slope: float = 0.3
  residual: float = 0.0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole("layers", self.layers, ge=1)
    check_number("slope", self.slope, gt=0, le=1)
    check_number("residual", self.residual, ge=0, lt=1)
    same = self.residual == 0 or self.source == self.target
    require(same, "target", self.target, f"source={self.source}: a residual map keeps the dimension")

  def bounds(self) -> tuple[float, float]:
    """Between what all singular values of the Jacobian are."""
    if self.residual:
      return 1 - self.residual, 1 + self.residual
    return self.slope ** (self.layers - 1), 1.0

  @property
  def roles(self) -> dict[str, str]:
    inner = {"layer_frames": "manifold:stiefel", "biases": "trunk"} if self.layers > 1 else {}
    return inner | {"frame": "manifold:stiefel", "shift": "trunk"}

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    inner, last = jax.random.split(key)
    n, m = self.layers - 1, self.source
    parameters = {
      "frame": Stiefel().random(last, (max(m, self.target), self.rank)),
      "shift": jnp.zeros(self.target, jnp.float32),
    }
    if n:
      parameters |= {"layer_frames": Stiefel().random(inner, (n, m, m)), "biases": jnp.zeros((n, m), jnp.float32)}
    return parameters

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    h = x
    for i in range(self.layers - 1):
      h = self._activation(h @ parameters["layer_frames"][i] + parameters["biases"][i][None])
    frame = parameters["frame"]
    out = h @ (frame.T if self.target >= self.source else frame) + parameters["shift"][None]
    return x + self.residual * out if self.residual else out

  def _activation(self, t: Array) -> Array:
    return 0.5 * (1 + self.slope) * t + 0.5 * (1 - self.slope) * (jnp.sqrt(1 + t * t) - 1)
