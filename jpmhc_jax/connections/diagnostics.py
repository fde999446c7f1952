"""Diagnostics of connections under jit: stream differences, mixer spectra, gradients of logits, and alarms.

The averaging matrix is J = 11ᵀ/n. The difference energy of the streams is E⊥(x) = ‖(I − J)x‖²: a doubly stochastic
mixer contracts it, an orthogonal one keeps it. Values are means over at most `SAMPLE` tokens, unless they are called a
maximum or minimum. They are cheap enough for every logging step.
"""

from collections.abc import Mapping, Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.block import Coefficients, HyperConnectionFn, Parameters
from jpmhc_jax.connections.ops.contractions import einsum
from jpmhc_jax.mixers import Mixer

__all__ = [
  "ALARMS", "EQUAL_STREAMS", "FLAT", "FROZEN", "SAMPLE", "alarms", "composite_diagnostics", "connection_diagnostics",
  "logit_diagnostics", "matrices_of", "mixer_diagnostics", "stream_cosine", "stream_diagnostics",
]  # fmt: skip

SAMPLE = 256  # tokens whose matrices are decomposed

# A logit whose coefficients answer it with less than this is flat. Sinkhorn at a diagonal bias of 8 still has 2e-3.
FLAT = 1e-4
# Below this a family has stopped learning: float32 gradients of the loss drown in rounding (measured on Sinkhorn, from
# a diagonal bias of about 14 on, and on softmaxes whose temperature underflows).
FROZEN = 1e-6
EQUAL_STREAMS = 1e-6  # share of difference energy that float32 rounding alone gives to copies

# Diagnostics that are 1 when something is wrong, with what to do about it.
ALARMS = {
  "frozen_gradient": "the coefficients no longer answer their logits, so their gradients vanish; lower the logits' "
  "size (connection.identity_bias, optimizer.mixer.learning_rate_multiplier) or raise the temperature",
  "equal_streams": "all streams are copies of each other; break the symmetry with connection.init=random or "
  "round_robin; where it is random already, also with connection.expand=scale or connection.stream_embedding=True",
}


def stream_diagnostics(streams: Float[Array, "*tokens n d"]) -> dict[str, Float[Array, ""]]:
  """difference_energy E⊥/‖x‖² in [0, 1], cosine (mean pairwise), effective_rank in [1, n] of the Gram matrix."""
  n = streams.shape[-2]
  gram = _gram(streams)
  energy = jnp.trace(gram, axis1=1, axis2=2) + 1e-12
  common = jnp.sum(gram, axis=(1, 2)) / n
  weights = jnp.linalg.eigvalsh(_sample(gram))
  weights = jnp.clip(weights, 1e-12) / jnp.sum(jnp.clip(weights, 1e-12), axis=-1, keepdims=True)
  return {
    "difference_energy": jnp.mean(1 - common / energy),
    "cosine": _mean_cosine(gram),
    "effective_rank": jnp.mean(jnp.exp(-jnp.sum(weights * jnp.log(weights), axis=-1))),
  }


def stream_cosine(streams: Float[Array, "*tokens n d"]) -> Float[Array, ""]:
  """Mean cosine between two different streams of a token: 1 where the streams are copies of each other."""
  return _mean_cosine(_gram(streams))


def _gram(streams: Float[Array, "*tokens n d"]) -> Float[Array, "t n n"]:
  """Inner products of a token's streams, up to a factor: squares of a diverging network's streams overflow."""
  x = streams.reshape(-1, *streams.shape[-2:]).astype(jnp.float32)
  x = x / jnp.maximum(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True), 1e-30)
  return einsum("tid,tjd->tij", x, x)


def _mean_cosine(gram: Float[Array, "t n n"]) -> Float[Array, ""]:
  n = gram.shape[-1]
  norms = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2)) + 1e-6
  cosines = gram / (norms[:, :, None] * norms[:, None, :])
  return jnp.mean((jnp.sum(cosines, axis=(1, 2)) - n) / max(n * (n - 1), 1))


def connection_diagnostics(
  rule: HyperConnectionFn,
  parameters: Parameters,
  streams: Float[Array, "*tokens n d"],
  seen: Float[Array, "*tokens n d"] | None = None,
) -> tuple[dict[str, Float[Array, ""]], Array | None]:
  """Everything about one connection and the streams that enter it, and its mixers for `composite_diagnostics`.

  seen: the streams that its coefficients are made of; None: those that enter it.
  """
  seen = streams if seen is None else seen
  coefficients = rule.coefficients(parameters, seen)
  read, mix, write = coefficients
  # Distances are those of the mixer's own H; with several segments each has its own read and write vector.
  untransposed = jnp.swapaxes(mix, 0, 1) if rule.transpose and mix is not None else mix
  vectors = jnp.moveaxis(read, 0, 1) if rule.routing.segments > 1 else read
  values = stream_diagnostics(streams) | mixer_diagnostics(rule.mixer, Coefficients(vectors, untransposed, write))
  return values | logit_diagnostics(rule, parameters, seen), mix


def logit_diagnostics(
  rule: HyperConnectionFn, parameters: Parameters, streams: Float[Array, "*tokens n d"]
) -> dict[str, Float[Array, ""]]:
  """Gradients of the coefficients by their logits, g = ∂⟨c, coefficients⟩/∂logits for a fixed normal c.

  routing_sensitivity, mixer_sensitivity: ‖g‖/‖c‖ of the read and write logits, and of the mixer's; 1 for linear maps.
  logit_saturation: share of (logit, token) pairs with |g| < FLAT. Logits without any effect do not count, such as the
  diagonal under a rotation.
  frozen_gradient: 1 when a sensitivity is below FROZEN or NaN. A blend whose weight is on families without logits, such
  as a choice that took the identity, needs no mixer_sensitivity.
  """
  sampled = _sample(streams.reshape(-1, *streams.shape[-2:]))
  logits = rule.logits(parameters, sampled)
  logits = logits.reshape(logits.shape[0], -1)
  # The last token has normal logits: those that matter at all are the ones that it answers.
  typical = jax.random.normal(jax.random.key(1), (logits.shape[0], 1), logits.dtype)
  coefficients, pullback = jax.vjp(
    lambda values: rule.coefficients_of(parameters, values), jnp.concatenate([logits, typical], axis=1)
  )
  asked = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype), coefficients)
  gradient, at_typical = jnp.split(pullback(asked)[0], [logits.shape[1]], axis=1)
  matters = jnp.abs(at_typical) > FLAT
  flat = jnp.sum((jnp.abs(gradient) < FLAT) & matters)
  values = {"logit_saturation": flat / jnp.maximum(jnp.sum(matters) * logits.shape[1], 1)}
  routing = sum(rule.logit_sizes[:2])
  values["routing_sensitivity"] = _ratio(gradient[:routing], (asked.read, asked.write))
  if rule.logit_sizes[2] and asked.mix is not None:
    values["mixer_sensitivity"] = _ratio(gradient[routing:], (asked.mix,))
  least = {"mixer_sensitivity": FROZEN * _weight_of_logits(rule, parameters)}
  # `>=` is also False for NaN.
  alive = jnp.stack([
    value >= least.get(name, FROZEN) for name, value in values.items() if name.endswith("_sensitivity")
  ])  # fmt: skip
  return values | {"frozen_gradient": 1.0 - jnp.all(alive).astype(jnp.float32)}


def _weight_of_logits(rule: HyperConnectionFn, parameters: Parameters) -> Array:
  """Weight of the families that take logits: 1, but in a blend with a family that takes none.

  Weights below FLAT are 0, because float32 loses their squares.
  """
  blend = rule.blended(parameters)
  weight = sum((w for family, w in blend if math.prod(family.logit_shape(rule.streams))), start=jnp.zeros(()))
  return jnp.where(weight < FLAT, 0.0, weight) if blend else jnp.ones(())


def _ratio(gradient: Array, cotangents: tuple[Array, ...]) -> Array:
  """‖g‖/‖c‖ over the sampled tokens; the cotangents hold one token more."""
  asked = sum(jnp.sum(jnp.square(c[..., :-1])) for c in cotangents)
  return jnp.sqrt(jnp.sum(jnp.square(gradient)) / asked)


def alarms(values: Mapping[str, float], others: Mapping[str, str] | None = None) -> list[str]:
  """One line for every diagnostic of ALARMS, or of others like it, that is on: its name, and what to do."""
  remedies = ALARMS | dict(others or {})
  on = [name for name, value in values.items() if name.rsplit("/", 1)[-1] in remedies and value > 0]
  return [f"{name}: {remedies[name.rsplit('/', 1)[-1]]}" for name in on]


def mixer_diagnostics(mixer: Mixer, coefficients: Coefficients) -> dict[str, Float[Array, ""]]:
  """Of one connection: distance to the set (max), distance to I, singular values, rotation angles, routing dominance.

  singular_value_k and angle_deg_k are means over the tokens, from the largest on; angles are arccos of the eigenvalues
  of the symmetric part, which are the rotation angles (in pairs) where H is orthogonal. max_angle_deg is the first.
  """
  read, mix, write = coefficients
  n = read.shape[0]
  values = {
    "read_dominance": jnp.mean(jnp.max(jnp.abs(read), axis=0) / (jnp.sum(jnp.abs(read), axis=0) + 1e-12)),
    "write_dominance": jnp.mean(jnp.max(jnp.abs(write), axis=0) / (jnp.sum(jnp.abs(write), axis=0) + 1e-12)),
  }
  if mix is None:
    return values
  matrices = _sample(matrices_of(mix))
  singular = jnp.linalg.svd(matrices, compute_uv=False)
  symmetric = jnp.linalg.eigvalsh((matrices + jnp.swapaxes(matrices, 1, 2)) / 2)
  angles = jnp.degrees(jnp.arccos(jnp.clip(symmetric, -1, 1)))
  deviation = matrices - jnp.eye(n, dtype=matrices.dtype)[None]
  return values | {
    "distance_to_set": jnp.max(mixer.distance(mix)),
    "distance_to_identity": jnp.mean(jnp.sqrt(jnp.sum(jnp.square(deviation), axis=(1, 2)))),
    "smallest_singular_value": jnp.min(singular),
    "largest_singular_value": jnp.max(singular),
    "max_angle_deg": jnp.mean(angles[:, 0]),
    **{f"singular_value_{k}": jnp.mean(singular[:, k]) for k in range(n)},
    **{f"angle_deg_{k}": jnp.mean(angles[:, k]) for k in range(n)},
  }


def composite_diagnostics(mixers: Sequence[Float[Array, "n n *tokens"] | None]) -> dict[str, Float[Array, ""]]:
  """Of the product of all mixers along the depth: gains (largest absolute row and column sum) and singular values."""
  product = None
  for mix in mixers:
    if mix is not None:
      matrices = _sample(matrices_of(mix))
      product = matrices if product is None else einsum("...ij,...jk->...ik", matrices, product)
  if product is None:
    return {}
  singular = jnp.linalg.svd(product, compute_uv=False)
  return {
    "forward_gain": jnp.max(jnp.sum(jnp.abs(product), axis=2)),
    "backward_gain": jnp.max(jnp.sum(jnp.abs(product), axis=1)),
    "smallest_singular_value": jnp.min(singular),
    "largest_singular_value": jnp.max(singular),
  }


def matrices_of(mix: Float[Array, "n n *tokens"]) -> Float[Array, "t n n"]:
  """Tokens first, one matrix a token (one matrix in all for a static mixer), float32."""
  n = mix.shape[0]
  return jnp.moveaxis(mix.reshape(n, n, -1), -1, 0).astype(jnp.float32)


def _sample(per_token: Array) -> Array:
  """Every k-th token, so that at most SAMPLE are left."""
  stride = -(-per_token.shape[0] // SAMPLE)
  return jax.lax.slice_in_dim(per_token, 0, per_token.shape[0], stride)
