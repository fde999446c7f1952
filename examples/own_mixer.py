"""A mixer of your own: every stream keeps most of itself and takes a share of the mean of all streams.

    python examples/own_mixer.py
    PYTHONPATH=examples jpmhc train --config=sudoku:tiny --workdir=runs/own_mixer \\
      --config.plugins=own_mixer --config.connection.mixer=leak

H = (1 - s) I + s 11ᵀ/n, s = most · sigmoid(logit), takes one number per token, where a Sinkhorn mixer takes n². The
mean of the streams passes unchanged; what they differ by shrinks by 1 - s. The first command fits sin(9 x): expect a
mean squared error of 0.02 after 300 steps, in ten seconds on 2 CPU cores. The second trains a recipe of the package.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import jpmhc_jax as jp

STREAMS, WIDTH, DEPTH = 4, 16, 4


@jp.register_mixer("leak")
@dataclasses.dataclass(frozen=True)
class Leak(jp.Mixer):
  """The segment from the identity to the mean; `most`: the largest share s."""

  most: float = 1.0

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


CONNECTION = jp.HyperConnectionFn(Leak(), streams=STREAMS, width=WIDTH)


def init(key: jax.Array) -> dict:
  first, last, *layers = jax.random.split(key, 2 + DEPTH)
  return {
    "first": jax.random.normal(first, (2, WIDTH)),
    "layers": [{"w": jax.random.normal(k, (WIDTH, WIDTH)) / 4, "connection": CONNECTION.init(k)} for k in layers],
    "last": jax.random.normal(last, (WIDTH, 1)) / WIDTH,
  }


def loss(parameters: dict, x: jax.Array, y: jax.Array) -> jax.Array:
  streams = jp.expand(jnp.concatenate([x, jnp.ones_like(x)], axis=-1) @ parameters["first"], STREAMS)
  for layer in parameters["layers"]:
    streams = CONNECTION(layer["connection"], streams, lambda u, w=layer["w"]: jnp.tanh(u @ w))
  return jnp.mean((jp.reduce(streams) @ parameters["last"] - y) ** 2)


def main(steps: int = 300) -> list[float]:
  """Trains for some steps; returns the loss of each."""
  x = jnp.linspace(-1, 1, 128)[:, None]
  parameters, optimizer = init(jax.random.key(0)), optax.adam(1e-2)
  state = optimizer.init(parameters)

  @jax.jit
  def step(parameters, state):
    value, gradients = jax.value_and_grad(loss)(parameters, x, jnp.sin(9 * x))
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(parameters, updates), state, value

  losses = []
  for _ in range(steps):
    parameters, state, value = step(parameters, state)
    losses.append(float(value))
  return losses


if __name__ == "__main__":
  losses = main()
  print(f"mean squared error: {losses[0]:.3f} at the start, {losses[-1]:.4f} at the end")
