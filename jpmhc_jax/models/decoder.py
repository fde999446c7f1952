"""The decoder language model: a causal transformer with residual streams over bytes; see `transformer`.

x = √d · embedding(bytes);   logits = W y
"""

import math

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.core.sharding import constrain
from jpmhc_jax.models.layers import weight
from jpmhc_jax.models.transformer import Hidden, Transformer


class Decoder(Transformer):
  """Next-token logits of a token sequence. `sequence_length` only matters for learned positions."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    *,
    vocab_size: int,
    sequence_length: int,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.dtype = jnp.dtype(dtype)
    self.embedding = weight(rngs, (vocab_size, model.width), model.width, ("vocab", "embed"))
    self.lm_head = weight(rngs, (model.width, vocab_size), model.width, ("embed", "vocab"))
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (sequence_length, model.width), model.width, ("positions", "embed"))
    super().__init__(model, connection, length=sequence_length, causal=True, rngs=rngs)

  def embed(self, inputs: Int[Array, "b l"]) -> Hidden:
    """√d · embedding, expanded into the streams."""
    x = constrain(self.embedding[...].astype(self.dtype), "vocab", "features")[inputs]
    if self.model.positions == "learned":
      x = (x + self.position_embedding[...].astype(self.dtype)[None]) * math.sqrt(0.5)
    return self.expanded(math.sqrt(self.model.width) * x)

  def head(self, h: Hidden) -> Float[Array, "b l vocab"]:
    """Logits from the reduced, normed streams."""
    return jnp.einsum("bld,dv->blv", self.reduced(h), self.lm_head[...].astype(self.dtype))

  def __call__(self, inputs: Int[Array, "b l"]) -> Float[Array, "b l vocab"]:
    """Logits of the token behind each position, from it and the positions before."""
    return self.head(self.run(self.embed(inputs))[0])
