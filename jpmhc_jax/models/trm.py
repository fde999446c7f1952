"""Tiny Recursive Model: one small network applied again and again to two latents, with residual streams.

One supervision step, from carried latents z_H (answer) and z_L (reasoning), with x the scaled input embedding:

    T − 1 times without gradient:  [ n times z_L ← f(z_L, z_H + x) ];  z_H ← f(z_H, z_L)
    once with gradient:            the same
    logits = lm_head(z_H) on the grid,  q = q_head(z_H[0])

f(h, v) adds v to h and runs the blocks, each sub-layer wrapped by a hyper-connection and followed by a weight-free
RMSNorm. With scope='carry' the latents are (batch, length, n, d): the streams are never reduced between calls, so the
mixer composes with itself over all T(n + 1) calls. With m segments a stream is d/m wide and the RMSNorm takes all
streams of a token together, so that equal copies are normed as the plain network norms its vector. n = 1 is the
published TRM. Source: 2510.04871 and its code.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, ClassVar, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand, StreamExpansion
from jpmhc_jax.core.sharding import constrain
from jpmhc_jax.models.blocks import (
  Block,
  call_vectors,
  in_one_pass,
  Latent,
  one_by_one,
  Part,
  recomputing,
  Visitor,
  with_vector,
)
from jpmhc_jax.models.connections import chain_of, stream_expansion_fn
from jpmhc_jax.models.layers import truncated_normal, weight

Network = Callable[[Array, Array, Array], Array]  # (h, injection, number of the call in its cycle)

_HALT_BIAS = -5.0  # q_head starts at σ(−5): nothing halts early until the model has learned to say so


class Buffer(nnx.Variable):
  """An array that belongs to the model but is never trained."""


class Output(NamedTuple):
  """What one supervision step returns; the latents carry no gradient."""

  z_h: Latent
  z_l: Latent | None  # None of a model with one latent
  logits: Float[Array, "b s vocab"]
  q: Float[Array, "b 2"]  # halt, continue


def supervision_step(
  network: Network, z_h: Array, z_l: Array, x: Array, recursion: schema.Recursion
) -> tuple[Array, Array]:
  """T cycles of n reasoning updates and one answer update; only the last cycle is differentiated.

  f sees the sum of its arguments, z_L + (z_H + x) or z_L + z_H: one scan body serves both updates, and the compiled
  program holds the network once per direction, whatever T and n are.
  """

  def call(network: Network, x: Array, latents: Array, turn: tuple[Array, Array]) -> tuple[Array, None]:
    updated, number = turn
    injected = latents[1 - updated] + jnp.where(updated == 1, x, jnp.zeros_like(x))
    new = network(latents[updated], injected, number)
    return jax.lax.dynamic_update_index_in_dim(latents, new, updated, 0), None

  # One array holds z_H at 0 and z_L at 1, so that a call writes the latent it updates and copies neither.
  numbers = jnp.arange(recursion.inner + 1, dtype=jnp.int32)
  cycle = (numbers < recursion.inner).astype(jnp.int32), numbers
  latents = jnp.stack([z_h, z_l])
  if recursion.outer > 1:
    turns = jax.tree.map(lambda each: jnp.tile(each, recursion.outer - 1), cycle)
    latents = still(call, network, latents, latents[0], x, turns, recursion)
  learning = functools.partial(call, network, x)
  latents, _ = jax.lax.scan(learning, jax.lax.stop_gradient(latents), cycle)
  return latents[0], latents[1]


def still(
  call: Callable[..., tuple[Any, None]],
  network: Network,
  latents: Any,
  latent: Array,
  x: Array,
  turns: Any,
  recursion: schema.Recursion,
) -> Any:
  """The latents after these turns of `call(network, x, latents, turn)`, without a gradient, in a dtype of their own.

  latent: one as the network takes it.
  """
  dtype = latent.dtype if recursion.no_gradient_dtype == "same" else jnp.dtype(recursion.no_gradient_dtype)
  cheap = without_gradient(network, latent.astype(dtype))
  turn = functools.partial(call, cheap, jax.lax.stop_gradient(x).astype(dtype))
  return jax.lax.scan(turn, latents.astype(dtype), turns)[0].astype(latent.dtype)


def without_gradient(network: Network, latent: Array) -> Network:
  """The network with constant parameters. What is merely thrown away in the end (a stopped result) still goes through
  the rules of differentiation, and pays for the marks of what a backward pass would save.
  """
  pure, parameters = jax.closure_convert(network, latent, latent, jnp.zeros((), jnp.int32))
  return lambda h, v, number: pure(h, v, number, *jax.lax.stop_gradient(parameters))


class TRM(nnx.Module):
  """The model without its puzzle table: rows of the table come in as an argument, so that nothing is dense in it."""

  latents: ClassVar[tuple[str, ...]] = ("h", "l")  # of the answer, and of the reasoning
  block: ClassVar[type[Block]] = Block

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
    width, length, calls = model.width, sequence_length + model.puzzle.slots, self.calls_of(model.recursion)
    self.model, self.connection, self.dtype = model, connection, jnp.dtype(dtype)
    rows, columns = self.vectors_of(vocab_size)
    self.embedding = weight(rngs, (rows, width), width, ("vocab", "embed"))
    self.lm_head = weight(rngs, (width, columns), width, ("embed", "vocab"))
    self.q_kernel = nnx.Param(jnp.zeros((width, 2), jnp.float32), axes=("embed", None), role="trunk")
    self.q_bias = nnx.Param(jnp.full((2,), _HALT_BIAS, jnp.float32), axes=(None,), role="trunk")
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (length, width), width, ("positions", "embed"))
    for layer in range(model.layers):
      setattr(self, f"block{layer}", self.block(model, connection, length, layer, rngs, calls=calls))
    if model.recursion.call_embedding:
      self.call_embedding = call_vectors(calls, width)
    self.chain = chain_of(connection, model.norm_epsilon)
    if connection.streams > 1:
      self.ends = StreamExpansion(stream_expansion_fn(connection, width), rngs=rngs)
    for name in self.latents:
      setattr(self, f"{name}_init", Buffer(truncated_normal(rngs.params(), (width,), 1.0), axes=("embed",)))

  @staticmethod
  def calls_of(recursion: schema.Recursion) -> int:
    """Network calls of a cycle. Only those of the last cycle learn, so that what differs from call to call repeats."""
    return recursion.inner + 1

  @staticmethod
  def vectors_of(vocab_size: int) -> tuple[int, int]:
    """Rows of the embedding and columns of the head."""
    return vocab_size, vocab_size

  @property
  def carried_streams(self) -> int:
    """Streams in the latents: n, or 1 when each network call expands and reduces on its own."""
    return self.connection.streams if self.connection.scope == "carry" else 1

  def initial_latents(self, batch: int, length: int) -> tuple[Latent, Latent | None]:
    """h_init and l_init at every position and stream, in the compute dtype; None for a latent that there is not."""

    def fill(name: str) -> Array:
      # The official buffers are generated in bfloat16; the rounding is part of the model.
      vector = getattr(self, f"{name}_init")[...].astype(self.dtype)
      if self.carried_streams > 1:
        vector = expand(vector, self.carried_streams, self.connection.segments)
      return jnp.broadcast_to(vector[None, None], (batch, length, *vector.shape))

    z_h, *others = map(fill, self.latents)
    return z_h, others[0] if others else None

  def embed(self, inputs: Int[Array, "b s"], puzzle_rows: Float[Array, "b w"] | None) -> Float[Array, "b l d"]:
    """√d · (puzzle slots, token embeddings): slot 0.. hold the zero-padded puzzle vector."""
    tokens = constrain(self.embedding[...].astype(self.dtype), "vocab", "features")[inputs]
    x = jnp.concatenate([self.front(inputs.shape[0], puzzle_rows), tokens], axis=1)
    if self.model.positions == "learned":
      x = (x + self.position_embedding[...].astype(self.dtype)[None]) * math.sqrt(0.5)
    return constrain(math.sqrt(self.model.width) * x, "batch", "positions", "features")

  def front(self, batch: int, puzzle_rows: Float[Array, "b w"] | None) -> Float[Array, "b slots d"]:
    """The puzzle slots: the zero-padded puzzle vector, or zeros."""
    width, slots = self.model.width, self.model.puzzle.slots
    if puzzle_rows is None:
      return jnp.zeros((batch, slots, width), self.dtype)
    padding = slots * width - puzzle_rows.shape[-1]
    return jnp.pad(puzzle_rows.astype(self.dtype), ((0, 0), (0, padding))).reshape(-1, slots, width)

  def injected(self, x: Float[Array, "b l *k d"]) -> Latent:
    """The embedding as the latents meet it: expanded where they are streams (one axis of size 1 for equal copies)."""
    if self.carried_streams == 1:
      return x
    c = self.connection
    copies = c.expand == "copy" and not c.stream_embedding and c.segments == 1
    return x[..., None, :] if copies else self.ends.expand(x)

  @property
  def connections_of_its_own(self) -> int:
    """How many calls of a cycle have connections of their own; 1 where all share theirs."""
    return 1 if self.connection.sharing == "all" else self.calls_of(self.model.recursion)

  def parts(self, call: int | Int[Array, ""] = 0) -> tuple[Part, ...]:
    """Every part of one network call in order, named as `visit` names them."""
    blocks = [(layer, getattr(self, f"block{layer}")) for layer in range(self.model.layers)]
    return tuple(
      part._replace(name=f"block{layer}.{part.name}") for layer, block in blocks for part in block.parts(call)
    )

  def entering(self, h: Latent, call: int | Int[Array, ""]) -> Latent:
    """h, and the vector of this call where calls have one."""
    if not self.model.recursion.call_embedding:
      return h
    return with_vector(h, self.call_embedding, call, self.injected)

  def network(
    self, h: Latent, injection: Latent, call: int | Int[Array, ""] = 0, visit: Visitor | None = None
  ) -> Latent:
    """f(h, v): add v, then the blocks. One network serves both latents; `call` numbers the calls of a cycle.

    `visit` sees every connection ("block0.tokens", …) with its streams; it is for diagnostics, not for training.
    """
    h = self.entering(h + injection, call)
    inside_call = self.connection.streams > 1 and self.connection.scope == "call"
    h = self.ends.expand(h) if inside_call else h
    if visit is not None:
      seen = h if self.chain is not None and self.chain.lags else None
      h, _ = one_by_one(self.parts(call), h, self.model.norm_epsilon, visit, seen)
    elif self.chain is not None:
      h = recomputing(functools.partial(self._in_one_pass, call), self.model.rematerialise)(h)
    else:
      for layer in range(self.model.layers):
        block = getattr(self, f"block{layer}")
        h = recomputing(functools.partial(block, call=call), self.model.rematerialise)(h)
    return self.ends.reduce(h) if inside_call else h

  def _in_one_pass(self, call: int | Int[Array, ""], h: Latent) -> Latent:
    assert self.chain is not None, "connection.single_pass"
    return in_one_pass(self.chain, self.parts(call), h, self.model.norm_epsilon)

  def reason(self, network: Network, z_h: Latent, z_l: Latent | None, x: Array) -> tuple[Latent, Latent | None]:
    """The latents after one supervision step."""
    assert z_l is not None, "both latents"
    return supervision_step(network, z_h, z_l, x, self.model.recursion)

  def look(self, z_h: Latent, z_l: Latent | None, x: Array, call: int, visit: Visitor) -> None:
    """One call of the network with the cycle's `call`-th connections, for diagnostics: a reasoning update."""
    assert z_l is not None, "both latents"
    self.network(z_l, z_h + x, call, visit)

  def __call__(
    self, z_h: Latent, z_l: Latent | None, inputs: Int[Array, "b s"], puzzle_rows: Float[Array, "b w"] | None
  ) -> Output:
    """One supervision step."""
    x = self.injected(self.embed(inputs, puzzle_rows))
    network = jax.checkpoint(self.network) if self.model.rematerialise == "call" else self.network
    z_h, z_l = self.reason(network, z_h, z_l, x)
    answer = self.ends.reduce(z_h) if self.carried_streams > 1 else z_h
    return Output(*jax.lax.stop_gradient((z_h, z_l)), *self.read(answer))

  def read(self, answer: Float[Array, "b l d"]) -> tuple[Float[Array, "b s vocab"], Float[Array, "b 2"]]:
    """(logits of the grid, halting logits) of the reduced answer."""
    cells = answer[:, self.model.puzzle.slots :]
    return jnp.einsum("bld,dv->blv", cells, self.lm_head[...].astype(self.dtype)), self.halting(answer[:, 0])

  def halting(self, first: Float[Array, "b d"]) -> Float[Array, "b 2"]:
    """q of the first position, in float32 or wider."""
    q = jnp.einsum("bd,dk->bk", first, self.q_kernel[...].astype(self.dtype))
    return (q + self.q_bias[...].astype(self.dtype)[None]).astype(jnp.promote_types(self.dtype, jnp.float32))
