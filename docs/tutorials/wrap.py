"""Wrap your network.

Any module that maps (…, d) to (…, d) goes inside a hyper-connection. Here a plain residual network becomes one with
four streams, by three lines.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import optax

import jpmhc_jax as jp

STEPS = 300
WIDTH, DEPTH, STREAMS = 32, 6, 4


# Each layer has a connection of its own, for a connection has parameters: it reads, writes and mixes per token.
class Network(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(1, WIDTH, rngs=rngs)
    self.layers = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH))
    self.connections = nnx.List(
      jp.HyperConnection(jp.Cayley(alpha=0.5), streams=STREAMS, width=WIDTH, rngs=rngs) for _ in range(DEPTH)
    )
    self.last = nnx.Linear(WIDTH, 1, rngs=rngs)

  def __call__(self, x):
    streams = jp.expand(self.first(x), STREAMS)  # (…, d) -> (…, n, d)
    for layer, connection in zip(self.layers, self.connections, strict=True):
      streams = connection(streams, lambda u, layer=layer: jnp.tanh(layer(u)))  # instead of x = x + tanh(layer(x))
    return self.last(jp.reduce(streams))  # (…, n, d) -> (…, d)


# At the start the network is the plain residual one up to a small perturbation that lets the streams separate, so that
# learning rates and schedules carry over.
model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
x = jnp.linspace(-1, 1, 128)[:, None]
y = jnp.sin(6 * x)


@nnx.jit
def step(model, optimizer):
  loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
  optimizer.update(model, gradients)
  return loss


losses = [float(step(model, optimizer)) for _ in range(STEPS)]
print(f"mean squared error: {losses[0]:.3f} at the start, {losses[-1]:.5f} at the end")

# ## Without Flax
#
# `jp.HyperConnectionFn` is the same as a function of parameters, which are a dictionary of arrays.
rule = jp.HyperConnectionFn(jp.Iso(), streams=STREAMS, width=WIDTH)
parameters = rule.init(jax.random.key(0))
streams = rule(parameters, jp.expand(jnp.ones((5, WIDTH)), STREAMS), jnp.tanh)
print(streams.shape)
