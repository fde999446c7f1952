"""The linearised matrix Dyson equation of a product of layers, folded to a chain of n x n matrices.

JᵀJ is the cyclic product of the 2L factors Y_1ᵀ … Y_Lᵀ Y_L … Y_1. With factor k at block (k, k+1) of a 2L x 2L block
matrix and D = diag(z, 1, …, 1), the resolvent R = (D − C₀ − Σ)⁻¹ closes on the traces
a_l = tr(B_l R[l+1, 2L−1−l]) / n and b_l = tr(E_l R[2L−l, l]) / n, where Σ[l, 2L−l] = σ_l² a_l E_l and
Σ[2L−1−l, l+1] = σ_l² b_l B_l. Folding block g onto block 2L−g leaves L + 1 nodes, and only one corner of each 2n x 2n
Schur complement differs from the identity. So the block tridiagonal elimination passes one n x n matrix each way:

    W_0 = I/z,   W_{g+1} = β_g B_g + A_g (I − α_g W_g E_g)⁻¹ W_g A_gᵀ        (elimination from the left)
    V_L = I,     V_g     = α_g E_g + A_gᵀ (I − β_g V_{g+1} B_g)⁻¹ V_{g+1} A_g   (elimination from the right)
    Q_g = (I − W_g V_g)⁻¹ W_g,   P_g = V_g (I − W_g V_g)⁻¹                      (the two corners of R at node g)
    α_g = σ_g² tr(B_g P_{g+1}) / n,   β_g = σ_g² tr(E_g Q_g) / n,   G(z) = tr Q_0 / n.

For Im z > 0 all of W, V, P, Q have negative semidefinite imaginary part: the map of (α, β) to itself sends a Siegel
half-space into itself, which is why damped iteration always converges, if slowly next to a spectral edge.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex

from jpmhc_jax.spectral import algebra
from jpmhc_jax.spectral.layers import Layers

__all__ = ["Linearised", "Messages", "Unknowns", "derivative", "dyson_map", "linearised", "messages", "updated"]

Unknowns = Complex[Array, "2 layers points"]  # (α, β)


class Messages(NamedTuple):
  """Both eliminations at the given unknowns, with what their derivatives need. Arrays (layers, n, n, points)."""

  left: jax.Array  # W_0 … W_L: layers + 1
  right: jax.Array  # V_0 … V_L: layers + 1
  left_gain: jax.Array  # A_g (I − α_g W_g E_g)⁻¹
  right_gain: jax.Array  # A_gᵀ (I − β_g V_{g+1} B_g)⁻¹
  corner: jax.Array  # K_g = (I − W_g V_g)⁻¹: layers + 1


def messages(layers: Layers, z: Complex[Array, " points"], unknowns: Unknowns) -> Messages:
  """Eliminates from both ends."""
  points = z.shape[0]
  eye = algebra.spread(jnp.eye(layers.streams, dtype=z.dtype), points)

  def step(
    message: Array, scalars: tuple[Array, Array], mixer: Array, inner: Array, outer: Array
  ) -> tuple[Array, Array]:
    inside, outside = scalars
    mixer, inner, outer = (algebra.spread(m, points) for m in (mixer, inner, outer))
    shrink = algebra.inverse(eye - inside[None, None, :] * algebra.product(message, inner))
    gain = algebra.product(mixer, shrink)
    passed = algebra.product(algebra.product(gain, message), algebra.transpose(mixer))
    return outside[None, None, :] * outer + passed, gain

  def from_left(left: Array, layer: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
    mixer, read, write, alpha, beta = layer
    following, gain = step(left, (alpha, beta), mixer, read, write)
    return following, (left, gain)

  def from_right(right: Array, layer: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
    mixer, read, write, alpha, beta = layer
    preceding, gain = step(right, (beta, alpha), mixer.T, write, read)
    return preceding, (right, gain)

  sequence = (layers.mixers, layers.read, layers.write, unknowns[0], unknowns[1])
  last, (left, left_gain) = jax.lax.scan(from_left, eye / z[None, None, :], sequence)
  first, (right, right_gain) = jax.lax.scan(from_right, eye, sequence, reverse=True)
  left = jnp.concatenate([left, last[None]])
  right = jnp.concatenate([first[None], right])
  corner = jax.lax.map(lambda wv: algebra.inverse(eye - algebra.product(*wv)), (left, right))
  return Messages(left, right, left_gain, right_gain, corner)


def _trace(weight: Array, matrix: Complex[Array, "layers n n points"]) -> Complex[Array, "layers points"]:
  """tr(weight · matrix) / n for a symmetric weight: (layers, n, n) shared by all points, or one a point."""
  if weight.ndim == 3:
    weight = weight[..., None]
  return jnp.sum(weight * matrix, axis=(1, 2)) / matrix.shape[1]


def updated(layers: Layers, messages: Messages) -> tuple[Unknowns, Complex[Array, " points"]]:
  """(α, β) and G(z) that follow from the messages; the Dyson equation says that (α, β) reproduce themselves."""
  product = jax.vmap(algebra.product)
  q = product(messages.corner[:-1], messages.left[:-1])
  p = product(messages.right[1:], messages.corner[1:])
  variance = layers.variance[:, None]
  unknowns = jnp.stack([variance * _trace(layers.write, p), variance * _trace(layers.read, q)])
  return unknowns, jnp.einsum("iit->t", q[0]) / layers.streams


def dyson_map(
  layers: Layers, z: Complex[Array, " points"], unknowns: Unknowns
) -> tuple[Unknowns, Complex[Array, " points"]]:
  """One application of the self-consistency map, and G(z) at the given unknowns."""
  return updated(layers, messages(layers, z, unknowns))


class Linearised(NamedTuple):
  """Derivative of the self-consistency map. From dF for F = (W⁻¹ − αE)⁻¹: dF = M dW Mᵀ + dα F E F, M = (I − αWE)⁻¹;
  likewise dQ = K dW Kᵀ + Q dV Q and dP = Kᵀ dV K + P dW P. All arrays (layers, n, n, points)."""

  left_gain: jax.Array
  right_gain: jax.Array
  left_alpha: jax.Array  # dW_{g+1}/dα_g
  right_beta: jax.Array  # dV_g/dβ_g
  alpha_left: jax.Array  # dα_g/dW_{g+1} = P B P, and so on
  alpha_right: jax.Array
  beta_left: jax.Array
  beta_right: jax.Array


def linearised(layers: Layers, messages: Messages) -> Linearised:
  """Everything `derivative` needs, from one pair of eliminations."""

  def one(layer: tuple[Array, ...]) -> tuple[Array, ...]:
    mixer, read, write, w, v, left_gain, right_gain, k0, k1, w1, variance = layer
    points = w.shape[-1]
    mixer, read, write = (algebra.spread(m, points) for m in (mixer, read, write))
    left = algebra.product(left_gain, w)  # A F, with v = V_{g+1}
    right = algebra.product(right_gain, v)
    q, p = algebra.product(k0, w), algebra.product(v, k1)
    scale = variance / mixer.shape[0]
    return (
      algebra.congruence(left, read),
      algebra.congruence(right, write),
      scale * algebra.congruence(p, write),
      scale * algebra.congruence(k1, write),
      scale * algebra.congruence(algebra.transpose(k0), read),
      scale * algebra.congruence(q, read),
    )

  m = messages
  parts = jax.lax.map(
    one,
    (layers.mixers, layers.read, layers.write, m.left[:-1], m.right[1:], m.left_gain, m.right_gain)
    + (m.corner[:-1], m.corner[1:], m.left[1:], layers.variance),
  )
  return Linearised(m.left_gain, m.right_gain, *parts)


def derivative(layers: Layers, linear: Linearised, tangent: Unknowns) -> Unknowns:
  """d(dyson_map) along a tangent of the unknowns."""
  alpha, beta = tangent[:, :, None, None, :]
  from_left = beta * layers.write[..., None] + alpha * linear.left_alpha
  from_right = alpha * layers.read[..., None] + beta * linear.right_beta

  def step(message: Array, layer: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
    gain, source = layer
    following = source + algebra.congruence(gain, message)
    return following, (message, following)

  zero = jnp.zeros_like(from_left[0])
  _, (left, left_next) = jax.lax.scan(step, zero, (linear.left_gain, from_left))
  _, (right_next, right) = jax.lax.scan(step, zero, (linear.right_gain, from_right), reverse=True)

  def contract(weight: Array, message: Array) -> Array:
    return jnp.sum(weight * message, axis=(1, 2))

  return jnp.stack(
    [
      contract(linear.alpha_left, left_next) + contract(linear.alpha_right, right_next),
      contract(linear.beta_left, left) + contract(linear.beta_right, right),
    ]
  )
