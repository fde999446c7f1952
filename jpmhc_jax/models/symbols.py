"""Tiny Recursive Model whose answer permutes with the symbols of its input, without a copy of the data for each order.

A latent has an axis of symbols, (batch, length, K, d), with streams (batch, length, K, n, d): at every position one
vector for each of the K tokens of the vocabulary. The first two tokens (padding; end of a grid or blank) have vectors
of their own, all others share one:

    x[b, i, k] = √d · e_kind(k) where token i is k, 0 elsewhere;  the puzzle's slots stand in front of every k alike
    block: attention over positions for each symbol, attention over symbols at each position, SwiGLU
    logits[b, i, k] = w · z_H[b, i, k],   q = q_head(mean over k of z_H[b, 0, k])

Nothing in it knows the number of a symbol, so that permuting those of the input permutes the logits. It costs K times
the memory and products of TRM at one width; the published one has d = 256 and 2M parameters. Source: symbol-equivariant
recurrent reasoning models, 2603.02193, and its code, github ml-jku/SE-RRM @ 1e1d5aa (one latent there, two as in TRM
here; RoPE along the row of positions, in two dimensions there; the puzzle's vector has no part by colour here).
"""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.models.blocks import Block, connection_of, Latent, Part
from jpmhc_jax.models.connections import sublayer_width
from jpmhc_jax.models.layers import Attention
from jpmhc_jax.models.trm import TRM

SPECIAL = 2  # tokens at the start of a vocabulary that no permutation moves


class SymbolBlock(Block):
  """Three sub-layers in post-norm form: attention over positions, attention over symbols, SwiGLU."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    length: int,
    layer: int | Int[Array, ""],
    rngs: nnx.Rngs,
    calls: int = 1,
  ):
    super().__init__(model, connection, length, layer, rngs, calls=calls)
    width = sublayer_width(connection, model.width)
    self.symbols = Attention(width, model.heads, rope_theta=None, rngs=rngs, implementation=model.attention)
    self.connect_symbols = connection_of(connection, model.width, 2 * layer, rngs)

  def parts(self, call: int | Int[Array, ""] = 0) -> tuple[Part, ...]:
    """The three in order."""
    tokens, features = super().parts(call)
    return (
      tokens._replace(sublayer=lambda h: jnp.moveaxis(_each(tokens.sublayer, jnp.moveaxis(h, 2, 1)), 1, 2)),
      Part("symbols", self.connect_symbols, lambda h: _each(self.symbols, h), self.feature_axes),
      features,
    )


def _each(attention: Callable[[Array], Array], h: Float[Array, "b m l d"]) -> Float[Array, "b m l d"]:
  """Attention along the third axis, for every one of the first two."""
  return attention(h.reshape(-1, *h.shape[2:])).reshape(h.shape)


class SymbolTRM(TRM):
  """The model without its puzzle table; see the module."""

  block = SymbolBlock

  def __init__(self, *groups: Any, vocab_size: int, **named: Any):
    self.symbols = vocab_size
    super().__init__(*groups, vocab_size=vocab_size, **named)

  @staticmethod
  def vectors_of(vocab_size: int) -> tuple[int, int]:
    """Rows of the embedding, the special tokens' and that of all others, and columns of the head."""
    return SPECIAL + 1, 1

  def initial_latents(self, batch: int, length: int) -> tuple[Latent, Latent | None]:
    """The same vector for every symbol."""

    def spread(z: Array | None) -> Array | None:
      return None if z is None else jnp.broadcast_to(z[:, :, None], (*z.shape[:2], self.symbols, *z.shape[2:]))

    z_h, z_l = super().initial_latents(batch, length)
    return spread(z_h), spread(z_l)  # type: ignore[return-value]

  def embed(self, inputs: Int[Array, "b s"], puzzle_rows: Float[Array, "b w"] | None) -> Float[Array, "b l k d"]:
    """√d · (puzzle slots, the symbol's vector where it stands and 0 elsewhere), for every symbol."""
    there = jax.nn.one_hot(inputs, self.symbols, dtype=self.dtype)
    kinds = jnp.minimum(jnp.arange(self.symbols), SPECIAL)
    tokens = there[..., None] * self.embedding[...].astype(self.dtype)[kinds][None, None]
    front = self.front(inputs.shape[0], puzzle_rows)[:, :, None]
    x = jnp.concatenate([jnp.broadcast_to(front, (*front.shape[:2], *tokens.shape[2:])), tokens], axis=1)
    if self.model.positions == "learned":
      x = (x + self.position_embedding[...].astype(self.dtype)[None, :, None]) * math.sqrt(0.5)
    return math.sqrt(self.model.width) * x

  def read(self, answer: Float[Array, "b l k d"]) -> tuple[Float[Array, "b s k"], Float[Array, "b 2"]]:
    """One number a symbol at every cell, and the halting logits of the mean over symbols."""
    cells = answer[:, self.model.puzzle.slots :]
    logits = jnp.einsum("blkd,d->blk", cells, self.lm_head[..., 0].astype(self.dtype))
    return logits, self.halting(jnp.mean(answer[:, 0], axis=1))
