"""Token losses: stablemax and softmax cross-entropy, in float32, exact for tiny losses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.core.examples import IGNORED


def stablemax_terms(logits: Float[Array, "..."]) -> Float[Array, "..."]:
  """s(x) = x + 1 for x ≥ 0, 1/(1 − x) below.

  Each branch sees only its own inputs: at x = 1 the untaken one would give a gradient of 0·∞. A maximum would halve the
  gradient at x = 0.
  """
  above = logits >= 0
  return jnp.where(above, jnp.where(above, logits, 0.0) + 1.0, 1.0 / (1.0 - jnp.where(above, 0.0, logits)))


def _rest_and_label(terms: Array, labels: Array) -> tuple[Array, Array]:
  is_label = labels[..., None] == jnp.arange(terms.shape[-1]).reshape((1,) * labels.ndim + (-1,))
  label = jnp.sum(jnp.where(is_label, terms, 0.0), axis=-1)
  return jnp.sum(jnp.where(is_label, 0.0, terms), axis=-1), label


def stablemax_cross_entropy(
  logits: Float[Array, "*positions vocab"], labels: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
  """−log(s_label/Σ s) = log1p(Σ_{j≠label} s_j / s_label); 0 where the label is −100.

  The log1p form keeps all digits of losses far below 1e-7. Source: TRM's loss head; the official code runs in float64.
  """
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  valid = labels != IGNORED
  rest, label = _rest_and_label(stablemax_terms(wide), jnp.where(valid, labels, 0))
  return jnp.where(valid, jnp.log1p(rest / label), 0.0)


def softmax_cross_entropy(
  logits: Float[Array, "*positions vocab"], labels: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
  """−log softmax(logits)_label; 0 where the label is −100."""
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  valid = labels != IGNORED
  safe = jnp.where(valid, labels, 0)
  picked = jnp.take_along_axis(wide, safe[..., None], axis=-1)[..., 0]
  return jnp.where(valid, jax.nn.logsumexp(wide, axis=-1) - picked, 0.0)


def binary_cross_entropy(logits: Float[Array, "*b"], targets: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """−t log σ(x) − (1 − t) log σ(−x)."""
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jax.nn.softplus(wide) - targets * wide


TOKEN_LOSSES = {"stablemax": stablemax_cross_entropy, "softmax": softmax_cross_entropy}
