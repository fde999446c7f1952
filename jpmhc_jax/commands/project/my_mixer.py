"""A mixer of your own: every stream keeps most of itself and takes a share of the mean of all streams."""

import dataclasses

import jax
import jax.numpy as jnp

import jpmhc_jax as jp


@jp.register_mixer("leak")
@dataclasses.dataclass(frozen=True)
class Leak(jp.Mixer):
  """H = (1 - s) I + s 11ᵀ/n with s = most · sigmoid(logit): doubly stochastic, one number per token."""

  most: float = 1.0  # the largest share; --config.connection.options=most=0.5

  @property
  def traits(self) -> jp.Traits:
    return jp.Traits("I to mean", row_sums_one=True, column_sums_one=True, nonnegative=True, contains_identity=False)

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (1,)

  def dimension(self, n: int) -> int:
    return 1

  def identity_logits(self, n: int, strength: float) -> jax.Array:
    return jnp.full((1,), -strength)

  def _project(self, logits: jax.Array, n: int) -> jax.Array:
    share = self.most * jax.nn.sigmoid(logits)[None]  # (1, 1, *tokens): tokens come last
    identity, mean = (m.reshape(n, n, *(1,) * (share.ndim - 2)) for m in (jnp.eye(n), jnp.full((n, n), 1 / n)))
    return identity + share * (mean - identity)
