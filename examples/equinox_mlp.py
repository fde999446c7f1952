"""Equinox through the pure-function form: an adapter of ten lines around `jp.HyperConnectionFn`.

    pip install equinox; python examples/equinox_mlp.py

A deep MLP fits y = sin(9 x) on the line; as is the custom of Equinox, the model takes one point, and `jax.vmap` makes
it take a batch. Expect the mean squared error to fall from 0.65 to below 0.001 in 500 steps, in ten seconds on 2 CPU
cores.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jpmhc_jax as jp

STREAMS, WIDTH, DEPTH = 4, 16, 4


class HyperConnection(eqx.Module):
  """The adapter: the parameters are leaves of the module, the rule that uses them is static."""

  parameters: dict[str, jax.Array]
  rule: jp.HyperConnectionFn = eqx.field(static=True)

  def __init__(self, mixer: jp.Mixer, *, key: jax.Array, **fields: Any):
    self.rule = jp.HyperConnectionFn(mixer, **fields)
    self.parameters = self.rule.init(key)

  def __call__(self, streams: jax.Array, sublayer: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return self.rule(self.parameters, streams, sublayer)


class Network(eqx.Module):
  """A number in, a number out."""

  first: eqx.nn.Linear
  layers: list[tuple[HyperConnection, eqx.nn.MLP]]
  last: eqx.nn.Linear

  def __init__(self, key: jax.Array):
    first, last, *keys = jax.random.split(key, 2 + DEPTH)
    self.first, self.last = eqx.nn.Linear(1, WIDTH, key=first), eqx.nn.Linear(WIDTH, 1, key=last)
    self.layers = [
      (
        HyperConnection(jp.Iso(), streams=STREAMS, width=WIDTH, key=key),
        eqx.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, depth=1, activation=jax.nn.gelu, key=key),
      )
      for key in keys
    ]

  def __call__(self, x: jax.Array) -> jax.Array:
    streams = jp.expand(self.first(x), STREAMS)
    for connection, mlp in self.layers:
      streams = connection(streams, mlp)
    return self.last(jp.reduce(streams))


def main(steps: int = 500) -> list[float]:
  """Trains for some steps; returns the loss of each."""
  x = jnp.linspace(-1, 1, 128)[:, None]
  y, network, optimizer = jnp.sin(9 * x), Network(jax.random.key(0)), optax.adam(3e-3)
  state = optimizer.init(eqx.filter(network, eqx.is_array))

  @eqx.filter_value_and_grad
  def loss(network: Network) -> jax.Array:
    return jnp.mean((jax.vmap(network)(x) - y) ** 2)

  @eqx.filter_jit
  def step(network: Network, state: optax.OptState):
    value, gradients = loss(network)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(network, updates), state, value

  losses = []
  for _ in range(steps):
    network, state, value = step(network, state)
    losses.append(float(value))
  return losses


if __name__ == "__main__":
  losses = main()
  print(f"mean squared error: {losses[0]:.3f} at the start, {losses[-1]:.4f} at the end")
