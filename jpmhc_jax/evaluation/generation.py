"""Text written on by a decoder: one token after another, drawn or the likeliest, a function of prompt and seed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from jpmhc_jax.core import rng
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.core.examples import PAD
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.state import Setup, TrainState


def written_on(
  setup: Setup, dataset: Any, state: TrainState, prompt: str, *, tokens: int, temperature: float, top_k: int, seed: int
) -> str:
  """The prompt and `tokens` more tokens; see `Run.generate`."""
  if setup.config.data.kind != "text":
    raise ConfigError(f"data.kind={setup.config.data.kind!r}: expected a run on 'text', which can be written on")
  require(tokens >= 1, "tokens", tokens, "at least 1")
  require(temperature >= 0, "temperature", temperature, "at least 0; 0 takes the likeliest token")
  require(0 <= top_k < dataset.vocab_size, "top_k", top_k, f"0 for all, or up to {dataset.vocab_size - 1}")
  window = dataset.sequence_length
  given = dataset.encoded(prompt)
  context = given[-window:]
  inputs = np.zeros(window, np.int32)
  inputs[: len(context)] = context
  keys = jax.random.split(rng.key_for(seed, "generation"), tokens)
  write = jax.jit(meshes.on_mesh(setup.mesh, functools.partial(_write, setup, top_k)))
  new = write(state.evaluated, state.buffers, inputs, len(context), keys, float(temperature))
  return dataset.decoded(np.concatenate([given, np.asarray(new)]))


def _write(
  setup: Setup,
  top_k: int,
  params: Any,
  buffers: Any,
  inputs: Int[Array, "window"],
  length: Int[Array, ""],
  keys: Key[Array, "tokens"],
  temperature: Float[Array, ""],
) -> Int[Array, "tokens"]:
  """The next tokens. The window is filled, then moves on by a token: the model sees at most `window` of them."""
  model, rows = setup.model(params, buffers), meshes.ways(setup.mesh)

  def one(
    carry: tuple[Int[Array, "window"], Int[Array, ""]], key: Key[Array, ""]
  ) -> tuple[tuple[Int[Array, "window"], Int[Array, ""]], Int[Array, ""]]:
    inputs, length = carry
    logits = model(jnp.broadcast_to(inputs, (rows, inputs.size)))[0, length - 1]  # each device has a row
    token = _drawn(logits.astype(jnp.float32), key, temperature, top_k)
    full = length == inputs.size
    inputs = jnp.where(full, jnp.roll(inputs, -1), inputs)
    inputs = inputs.at[length - full].set(token)
    return (inputs, jnp.minimum(length + 1, inputs.size)), token

  return jax.lax.scan(one, (inputs, jnp.asarray(length, jnp.int32)), keys)[1]


def _drawn(
  logits: Float[Array, "vocab"], key: Key[Array, ""], temperature: Float[Array, ""], top_k: int
) -> Int[Array, ""]:
  """From softmax(logits / temperature) over the top_k likeliest tokens (0: all); the likeliest at temperature 0."""
  logits = logits.at[PAD].set(-jnp.inf)
  if top_k:
    logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][-1], -jnp.inf, logits)
  drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
  return jnp.where(temperature > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)
