"""Plain JAX functions and optax: forty layers under `jax.lax.scan`, no module system at all.

    pip install scikit-learn; python examples/plain_functions.py

Parameters are a dictionary of arrays, stacked over the layers, and the connection is a function of them. The network
classifies handwritten digits (scikit-learn's 8x8 images). Expect the loss to fall from 2.9 to 0.1 in 200 steps, and
95 % of the held-out digits right, in 15 seconds on 2 CPU cores.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jpmhc_jax as jp

STREAMS, WIDTH, DEPTH = 4, 32, 40
CONNECTION = jp.HyperConnectionFn(jp.Cayley(), streams=STREAMS, width=WIDTH)


def matrix(key: jax.Array, fan_in: int, fan_out: int) -> jax.Array:
  return jax.random.normal(key, (fan_in, fan_out)) / jnp.sqrt(fan_in)


def init_layer(key: jax.Array) -> dict:
  connection, up, down = jax.random.split(key, 3)
  return {
    "connection": CONNECTION.init(connection),
    "up": matrix(up, WIDTH, 2 * WIDTH),
    "down": matrix(down, 2 * WIDTH, WIDTH),
  }


def init(key: jax.Array, depth: int) -> dict:
  first, last, layers = jax.random.split(key, 3)
  stacked = jax.vmap(init_layer)(jax.random.split(layers, depth))
  return {"first": matrix(first, 64, WIDTH), "layers": stacked, "last": matrix(last, WIDTH, 10)}


def normed(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def logits(parameters: dict, images: jax.Array) -> jax.Array:
  """Ten numbers an image."""

  def layer(streams, own):
    def mlp(x):
      return jax.nn.gelu(normed(x) @ own["up"]) @ own["down"]

    return CONNECTION(own["connection"], streams, mlp), None

  streams = jp.expand(images @ parameters["first"], STREAMS)
  streams, _ = jax.lax.scan(layer, streams, parameters["layers"])
  return normed(jp.reduce(streams)) @ parameters["last"]


def loss(parameters: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(parameters, images), labels))


def main(steps: int = 200, depth: int = DEPTH) -> tuple[list[float], float]:
  """Trains for some steps; returns the loss of each and the share of held-out digits that are right."""
  images, labels = load_digits(return_X_y=True)
  images, held_out = np.float32(images / 16), np.arange(len(labels)) % 5 == 0
  parameters, optimizer = init(jax.random.key(0), depth), optax.adam(2e-3)
  state = optimizer.init(parameters)

  @jax.jit
  def step(parameters, state, images, labels):
    value, gradients = jax.value_and_grad(loss)(parameters, images, labels)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(parameters, updates), state, value

  rng, losses = np.random.default_rng(0), []
  for _ in range(steps):
    rows = rng.choice(np.flatnonzero(~held_out), 64)
    parameters, state, value = step(parameters, state, images[rows], labels[rows])
    losses.append(float(value))
  answers = jnp.argmax(jax.jit(logits)(parameters, images[held_out]), axis=-1)
  return losses, float(np.mean(answers == labels[held_out]))


if __name__ == "__main__":
  losses, accuracy = main()
  print(f"loss: {losses[0]:.2f} at the start, {losses[-1]:.2f} at the end; held-out digits: {accuracy:.1%} right")
