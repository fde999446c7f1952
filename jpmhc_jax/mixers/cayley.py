"""Orthogonal mixers by the Cayley transform.

A skew matrix S maps to the rotation Q = (I + S)⁻¹(I − S). Every singular value of Q is 1, so a residual path mixed
by Q neither grows nor fades. Q never has the eigenvalue −1 (rotations by exactly π are a limit, not a member).
"""

import dataclasses
import functools

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.linalg import linear, quaternion
from jpmhc_jax.linalg.blocks import by_blocks
from jpmhc_jax.mixers.base import Mixer, Traits

__all__ = ["Cayley", "CayleyIterative", "cayley", "cayley_pullback"]


@custom_derivative
def cayley(skew: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """Q = (I + S)⁻¹(I − S) for skew S (n, n, *tokens); closed form for n <= 4, elimination beyond. Saves only Q."""
  n = skew.shape[0]
  if n <= 1:
    return jnp.ones_like(skew)
  if n <= 4:
    return _closed_form(skew)
  return by_blocks(_by_elimination, skew)


def _by_elimination(skew: Array) -> Array:
  identity = linear.identity_like(skew)

  def polished(q: Array) -> tuple[Array, Array]:
    # One Newton–Schulz step squares the error that elimination leaves when S is large.
    error = linear.unfused_matmul(q, linear.transpose(q)) - identity
    # A sum, because XLA's maximum on the CPU may pass over NaN.
    return q - 0.5 * linear.unfused_matmul(error, q), jnp.sum(error * error, axis=(0, 1))

  q, error = polished(2 * linear.inverse_positive(identity + skew) - identity)
  # Elimination does not keep S skew: its error grows as rounding times S, until it ends at another rotation because the
  # 1 of I + S is below rounding. Tokens with a large S are done again.
  eps = float(jnp.finfo(skew.dtype).eps)
  lost = ~((error <= eps) & (jnp.max(jnp.abs(skew), axis=(0, 1)) <= eps**-0.25))

  def with_care(q: Array) -> Array:
    return jnp.where(lost[None, None], polished(_by_reflections(skew))[0], q)

  result: Array = jax.lax.cond(jnp.any(lost), with_care, lambda q: q, q)
  return result


def _by_reflections(skew: Float[Array, "n n tokens"]) -> Float[Array, "n n tokens"]:
  """Q to rounding at any size of S: S = B T Bᵀ by Householder reflections, T tridiagonal and as skew as S.

  Every pivot of I + T is a sum of positive terms, and every entry of its inverse a product: nothing cancels.
  """
  n, index = skew.shape[0], linear.over_tokens(np.arange(skew.shape[0]), skew[:, 0], axes=1)
  tiny = float(jnp.finfo(skew.dtype).tiny)

  def reflect(k: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    s, basis = carry
    column = linear.scaled(jnp.where(index > k, jax.lax.dynamic_index_in_dim(s, k, 1, keepdims=False), 0), 0)
    length = jnp.sqrt(jnp.sum(column * column, axis=0, keepdims=True))
    v = column + jnp.where(index == k + 1, jnp.where(column < 0, -length, length), 0)
    double = 2 / jnp.maximum(jnp.sum(v * v, axis=0, keepdims=True), tiny)
    # vᵀSv = 0, so (I − 2vvᵀ) S (I − 2vvᵀ) = S + 2v(Sv)ᵀ − 2(Sv)vᵀ for a unit v.
    turned = v[:, None] * (double * linear.matvec(s, v))[None]
    return s + linear.minus_transpose(turned), basis - (double * linear.matvec(basis, v))[:, None] * v[None]

  basis = jnp.broadcast_to(linear.identity_like(skew), skew.shape)
  s, basis = jax.lax.fori_loop(0, n - 2, reflect, (skew, basis))
  below = jnp.stack([s[k + 1, k] for k in range(n - 1)])
  rotation = 2 * _inverse_tridiagonal(below) - linear.identity_like(skew)
  return linear.unfused_matmul(linear.unfused_matmul(basis, rotation), linear.transpose(basis))


def _inverse_tridiagonal(below: Float[Array, "m tokens"]) -> Float[Array, "n n tokens"]:
  """(I + T)⁻¹ for the tridiagonal skew T with `below` under its diagonal, n = m + 1."""
  # Side by side with the same matrix seen from its last row, which turns the upper triangle into a lower one.
  both = jnp.stack([below, -below[::-1]], axis=1)

  def grow(pivot: Array, t: Array) -> tuple[Array, Array]:
    pivot = 1 + t * (t / pivot)
    return pivot, pivot

  ones = jnp.ones_like(both[:1])
  first = jnp.concatenate([ones, jax.lax.scan(grow, ones[0], both)[1]])  # pivots of elimination from the first row on
  last = first[::-1, ::-1]  # and from the last row back
  rows, diagonal = jnp.arange(len(first)), 1 / (first + last - 1)

  def fill(previous: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    i, ratio, entry = inputs
    row = jnp.where((rows == i)[:, None, None], entry[None], ratio[None] * previous)
    return row, row

  ratios = jnp.concatenate([jnp.zeros_like(ones), -both / last[1:]])
  lower = jax.lax.scan(fill, jnp.zeros_like(diagonal), (rows, ratios, diagonal))[1]
  return jnp.where((rows[:, None] >= rows[None])[..., None], lower[:, :, 0], lower[::-1, ::-1, 1])


def _closed_form(skew: Array) -> Array:
  # so(4) splits into two commuting copies of so(3): S x = u x + x v with imaginary quaternions u, v. S has the
  # eigenvalues ±i(|u| + |v|) and ±i(|u| − |v|), and Q = L(p) R(q) with p, q along u, v at half the sum and difference
  # of the angles 2·arctan. Adding arctangents gives, without any root,
  #   p = 1 − δ − 2u,  q = 1 + δ − 2v,  |p|² = |q|² = det(I + S),  δ = |u|² − |v|² = S₀₁S₂₃ − S₀₂S₁₃ + S₀₃S₁₂
  #   (Pfaffian).
  # Normalising p and q by their computed lengths keeps Q orthogonal to rounding at any size of S. n < 4 embeds in
  # so(4).
  n, zero = skew.shape[0], jnp.zeros_like(skew[0, 0])
  a, b, c, d, e, f = (skew[i, j] if j < n else zero for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)))
  pfaffian = a * f - b * e + c * d
  p = [1 - pfaffian, a + f, b - e, c + d]
  q = [1 + pfaffian, a - f, b + e, c - d]
  return quaternion.rotation(p, q)[:n, :n]


def _cayley_forward(skew: Array) -> tuple[Array, Array]:
  q = cayley(skew)
  return q, q


def cayley_pullback(q: Float[Array, "n n *tokens"], cotangent: Float[Array, "n n *tokens"]) -> Array:
  """S̄ = −½ (I+Q)ᵀ Ḡ (I+Q)ᵀ for the cotangent Ḡ of Q = cayley(S); its skew part is the gradient."""

  # dQ = −(I+S)⁻¹ dS (I+Q), and (I+S)⁻¹ = (I+Q)/2: no inverse, nothing stored but Q.
  def pull(q: Array, bar: Array) -> Array:
    factor = linear.transpose(linear.identity_like(q) + q)
    return -0.5 * linear.matmul(linear.matmul(factor, bar), factor)

  return pull(q, cotangent) if q.shape[0] <= 4 else by_blocks(pull, q, cotangent)


# The caller builds S from a difference, which takes the skew part.
cayley.defvjp(_cayley_forward, lambda q, cotangent: (cayley_pullback(q, cotangent),))


class _FromSkewPart(Mixer):
  """A family whose logits are an n x n matrix of which only the skew part acts; zero logits are the identity."""

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (n, n)

  def dimension(self, n: int) -> int:
    return n * (n - 1) // 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    return jnp.zeros((n, n))


@dataclasses.dataclass(frozen=True)
class Cayley(_FromSkewPart):
  """SO(n) by the exact Cayley transform.

  project: logits (n, n, *tokens) -> Q (n, n, *tokens),  Q = (I + S)⁻¹(I − S),  S = −α/2 · (logits − logitsᵀ).
  Saved for the backward pass: Q only. Float32 orthogonality error below 1e-6 at any logits.
  Source: Cayley 1846; limit of the iteration of JPmHC (2602.18308), sign and scale included.

  >>> q = jp.Cayley(alpha=0.5).random(jax.random.key(0), 4)
  >>> bool(jnp.allclose(q @ q.T, jnp.eye(4), atol=1e-6))
  True
  """

  alpha: float = 0.1  # the published step size; unit normal logits turn by about 18 degrees

  @property
  def traits(self) -> Traits:
    """A rotation, to rounding, that turns no vector around."""
    return Traits(
      "SO(n) without eigenvalue −1", orthogonal=True, contractive=True, determinant="+1",
      eigenvalues="unit circle except −1", norm="kept",
    )  # fmt: skip

  def published_flops(self, n: int) -> tuple[int, int]:
    """2n³ each way."""
    return 2 * n**3, 2 * n**3

  def _project(self, logits: Array, n: int) -> Array:
    return cayley(-0.5 * self.alpha * linear.minus_transpose(logits))


@dataclasses.dataclass(frozen=True)
class CayleyIterative(_FromSkewPart):
  """The published truncated iteration, kept for fidelity: near SO(n) for small logits only.

  project: W = logits − logitsᵀ, Y₀ = I + αW, then `steps` times Y ← I + (α/2) W (I + Y).
  Contracts only while (α/2)‖W‖₂ < 1: at unit normal logits max |YYᵀ − I| averages 3e-3 and reaches 0.06, at 5 it
  diverges. Use `cayley` for an isometry. Source: JPmHC (2602.18308) with Li et al. 2020 (2002.01113).

  >>> mixer = jp.CayleyIterative(alpha=0.1)
  >>> y = mixer.random(jax.random.key(0), 4)
  >>> bool(0 < mixer.distance(y) < 0.06)
  True
  """

  alpha: float = 0.1
  steps: int = 2

  @property
  def traits(self) -> Traits:
    """Near a rotation while the logits are small: the iteration is cut off."""
    return Traits(
      "near SO(n)", orthogonal=True, exact=False, determinant="near +1", eigenvalues="near the unit circle",
      norm="kept for small logits, grows for large ones",
    )  # fmt: skip

  def published_flops(self, n: int) -> tuple[int, int]:
    """n³ per step, each way."""
    return self.steps * n**3, self.steps * n**3

  def _project(self, logits: Array, n: int) -> Array:
    result: Array = _truncated(self.alpha * linear.minus_transpose(logits), self.steps)
    return result


@functools.partial(custom_derivative, nondiff_argnums=(1,))
def _truncated(w, steps):  # type: ignore[no-untyped-def]
  """Y₀ = I + W, then `steps` times Y ← I + ½ W (I + Y). The gradient is that of the steps; only W is saved."""
  return by_blocks(lambda w: _iterates(w, steps)[0], w)


def _iterates(w: Array, steps: int) -> tuple[Array, Array]:
  identity = linear.identity_like(w)

  def step(y: Array, _: None) -> tuple[Array, Array]:
    return identity + 0.5 * linear.unfused_matmul(w, identity + y), y

  return jax.lax.scan(step, identity + w, length=steps)


def _truncated_forward(w, steps):  # type: ignore[no-untyped-def]
  return _truncated(w, steps), w


def _truncated_backward(steps, w, cotangent):  # type: ignore[no-untyped-def]
  # W̄ += ½ Ȳ (I + Y_k)ᵀ and Ȳ_k = ½ Wᵀ Ȳ, from the last step to the first; then Y₀ = I + W adds Ȳ₀.
  def backward(w: Array, bar: Array) -> Array:
    identity, (_, iterates) = linear.identity_like(w), _iterates(w, steps)

    def step(carry: tuple[Array, Array], y: Array) -> tuple[tuple[Array, Array], None]:
      bar, to_w = carry
      to_w = to_w + 0.5 * linear.unfused_matmul(bar, linear.transpose(identity + y))
      return (0.5 * linear.unfused_matmul(linear.transpose(w), bar), to_w), None

    (bar, to_w), _ = jax.lax.scan(step, (bar, jnp.zeros_like(w)), iterates, reverse=True)
    return to_w + bar

  return (by_blocks(backward, w, cotangent),)


_truncated.defvjp(_truncated_forward, _truncated_backward)
