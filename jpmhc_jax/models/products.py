"""Products of transformers and residual networks with their backward passes written out: linear map, attention, gate,
convolution.

Automatic differentiation of the same formulas saves two to three times as much and multiplies matrices in the order
that CPU libraries do worst.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections import COEFFICIENTS
from jpmhc_jax.core.derivatives import custom_derivative

KEPT = "kept"


def kept(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Marks the result of a matrix product, for the policies of `recomputing`."""
  return checkpoint_name(x, KEPT)


# What each value of `model.rematerialise` saves within a block; 'block' saves nothing but what enters it, and so does
# 'call', whose blocks lie within a network call that is recomputed as a whole. The mixing coefficients are tiny beside
# the streams that they mix, and a mixer's projection need not be run twice for them.
SAVED = {
  "products": jax.checkpoint_policies.save_only_these_names(KEPT, COEFFICIENTS),
  "coefficients": jax.checkpoint_policies.save_only_these_names(COEFFICIENTS),
  "block": None,
  "call": None,
}


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def dense(x: Float[Array, "..."], kernel: Float[Array, "..."], axes: int = 1) -> Float[Array, "..."]:
  """Contracts the last `axes` axes of x with the first ones of the kernel: (*tokens, *in), (*in, *out)."""
  return jnp.tensordot(x, kernel, axes)


def _dense_forward(x, kernel, axes):
  return dense(x, kernel, axes), (x, kernel)


# y = x W  ⇒  x̄ = ȳ Wᵀ,  W̄ = xᵀ ȳ in W's own order of axes.
def _dense_backward(axes, saved, cotangent):
  x, kernel = saved
  tokens = x.ndim - axes
  of_cotangent, of_kernel = tuple(range(tokens, cotangent.ndim)), tuple(range(axes, kernel.ndim))
  to_x = jax.lax.dot_general(cotangent, kernel, ((of_cotangent, of_kernel), ((), ())))
  to_kernel = jax.lax.platform_dependent(
    x, cotangent, cpu=functools.partial(_outer_transposed_first, tokens), default=functools.partial(_outer, tokens)
  )
  return to_x, to_kernel


def _outer(tokens: int, x: Array, y: Array) -> Array:
  """xᵀ y over the first `tokens` axes."""
  summed = tuple(range(tokens))
  return jax.lax.dot_general(x, y, ((summed, summed), ((), ())))


def _outer_transposed_first(tokens: int, x: Array, y: Array) -> Array:
  """The same for XLA on the CPU, which multiplies row-major matrices fast and takes half as long again for xᵀ y.

  Left alone it also makes the producer of x write its result transposed, with strided stores: 5 ms instead of 0.5 for a
  gate of 1,856 × 512. So the narrower factor is transposed here, on its own.
  """
  if x.size > y.size:
    swapped = _outer_transposed_first(tokens, y, x)
    return jnp.moveaxis(swapped, range(y.ndim - tokens), range(-(y.ndim - tokens), 0))
  transposed = jax.lax.optimization_barrier(jnp.moveaxis(x, range(tokens), range(-tokens, 0)))
  features = x.ndim - tokens
  return jax.lax.dot_general(transposed, y, ((tuple(range(features, x.ndim)), tuple(range(tokens))), ((), ())))


dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(custom_derivative, nondiff_argnums=(3, 4))
def attend(
  query: Float[Array, "b h t k"],
  key: Float[Array, "b h s k"],
  value: Float[Array, "b h s k"],
  causal: bool = False,
  scale: float | None = None,
) -> Float[Array, "b h t k"]:
  """softmax(scale q kᵀ) v; the softmax in float32 or wider. Saved for the backward pass: nothing of size t × s.

  causal: position t sees the keys s <= t only. scale: by default 1/√k.
  """
  return _attend_forward(query, key, value, causal, scale)[0]


# The rows are divided by their sum behind the product with v: k numbers a row instead of s.
def _attend_forward(query, key, value, causal, scale):
  wide = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum("bhtk,bhsk->bhts", query * _scale(query, scale), key, preferred_element_type=wide)
  if causal:
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None], scores, -jnp.inf)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - largest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  mixed = jnp.einsum("bhts,bhsk->bhtk", weights.astype(value.dtype), value, preferred_element_type=wide) / total
  mixed = kept(mixed.astype(value.dtype))
  return mixed, (query, key, value, mixed, kept(largest + jnp.log(total)))


# o = P v, P = softmax(s)  ⇒  v̄ = Pᵀ ō,  P̄ = ō vᵀ,  s̄ = P ∘ (P̄ − Σ_k ō o),  q̄ = s̄ k/√k,  k̄ = s̄ᵀ q/√k.
# P = exp(s − log Σ exp s) is computed anew, as Pᵀ: then every product but one is a plain row-major one, and the odd one
# (q̄ᵀ = kᵀ s̄ᵀ) transposes an array of size s × k, behind a barrier, instead of one of size s × t.
def _attend_backward(causal, scale, saved, cotangent):
  query, key, value, mixed, logsumexp = saved
  wide, dtype = logsumexp.dtype, query.dtype
  query = query * _scale(query, scale)
  transposed = functools.partial(jnp.einsum, "bhsk,bhtk->bhst", preferred_element_type=wide)
  weights = jnp.exp(transposed(key, query) - jnp.swapaxes(logsumexp, -1, -2))
  if causal:
    weights = jnp.where(jnp.triu(jnp.ones(weights.shape[-2:], bool))[None, None], weights, 0)
  to_value = jnp.einsum("bhst,bhtk->bhsk", weights.astype(dtype), cotangent)
  centre = jnp.sum(cotangent.astype(wide) * mixed.astype(wide), axis=-1)[:, :, None, :]
  to_scores = (weights * (transposed(value, cotangent) - centre)).astype(dtype)
  to_key = jnp.einsum("bhst,bhtk->bhsk", to_scores, query)
  to_query = jnp.einsum("bhks,bhst->bhkt", jax.lax.optimization_barrier(jnp.swapaxes(key, -1, -2)), to_scores)
  to_query = jax.lax.optimization_barrier(to_query)  # or the swap below goes into the product, which turns it round
  return jnp.swapaxes(to_query, -1, -2) * _scale(key, scale), to_key, to_value


def _scale(query: Array, scale: float | None) -> Array:
  return jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, query.dtype)


attend.defvjp(_attend_forward, _attend_backward)


@custom_derivative
def silu_gated(gate: Float[Array, "*b i"], up: Float[Array, "*b i"]) -> Float[Array, "*b i"]:
  """silu(gate) · up; the two arrays apart, because XLA on the CPU concatenates their gradients slowly."""
  return jax.nn.silu(gate) * up


def _silu_gated_forward(gate, up):
  return silu_gated(gate, up), (gate, up)


# h = g σ(g) u  ⇒  ḡ = h̄ u σ (1 + g (1 − σ)),  ū = h̄ g σ.
def _silu_gated_backward(saved, cotangent):
  gate, up = saved
  sigmoid = jax.nn.sigmoid(gate)
  return cotangent * up * sigmoid * (1 + gate * (1 - sigmoid)), cotangent * gate * sigmoid


silu_gated.defvjp(_silu_gated_forward, _silu_gated_backward)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def convolve(
  x: Float[Array, "b h w c"], kernel: Float[Array, "side side c k"], stride: int = 1
) -> Float[Array, "b h2 w2 k"]:
  """y_p = Σ_t x_{s p + t} W_t, t over a square of odd side around 0, zeros outside; height and width become ⌈·/s⌉."""
  reach = kernel.shape[0] // 2
  return _convolved(x, kernel, (stride, stride), ((reach, reach), (reach, reach)))


def _convolved(
  x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[tuple[int, int], ...], **more
) -> Array:
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more)


# x̄ = the convolution of ȳ, set apart by the stride, with W turned round;  W̄_t = Σ_p x_{s p + t} ȳ_p, a convolution
# whose window is the image. Automatic differentiation moves no axis and names them otherwise, and XLA on the CPU has
# its fast convolution for these names alone; inside a loop it does not rename them: 330 ms instead of 20 for two
# convolutions of 64 × 32 × 32 × 8. Elsewhere the transposition of the operands is a choice of their layout.
def _convolve_backward(stride, saved, cotangent):
  x, kernel = saved
  side, reach = kernel.shape[0], kernel.shape[0] // 2
  over = [(size + 2 * reach - side) % stride for size in x.shape[1:3]]  # rows and columns behind the last window
  turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
  around = tuple((side - 1 - reach, side - 1 - reach + rest) for rest in over)
  to_x = _convolved(cotangent, turned, (1, 1), around, lhs_dilation=(stride, stride))
  padding = tuple((reach, reach - rest) for rest in over)
  images, windows = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(cotangent, (1, 2, 0, 3))
  to_kernel = _convolved(images, windows, (1, 1), padding, rhs_dilation=(stride, stride))
  return to_x, jnp.transpose(to_kernel, (1, 2, 0, 3))


convolve.defvjp(lambda x, kernel, stride: (convolve(x, kernel, stride), (x, kernel)), _convolve_backward)
