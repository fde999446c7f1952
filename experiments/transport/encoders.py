"""Two small vision models for 8 x 8 digits that share only the data: a transformer of width 64 and a ResNet of 96."""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

TRAINED = 1437  # images to learn from; 360 are held out


def digits(seed: int) -> dict[str, np.ndarray]:
  """Images (n, 8, 8) in [0, 1] and labels in an order that the seed draws, the held-out ones last."""
  images, labels = load_digits(return_X_y=True)
  order = np.random.default_rng(seed).permutation(len(images))
  return {"images": images[order].reshape(-1, 8, 8).astype(np.float32) / 16, "labels": labels[order].astype(np.int32)}


class VisionTransformer(nnx.Module):
  """Two blocks over sixteen 2 x 2 patches; the latent is the mean over patches."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.embed = nnx.Linear(4, width, rngs=rngs)
    self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (16, width)))
    self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(5)])
    self.attention = nnx.List(
      [nnx.MultiHeadAttention(num_heads=4, in_features=width, decode=False, rngs=rngs) for _ in range(2)]
    )
    self.up = nnx.List([nnx.Linear(width, 2 * width, rngs=rngs) for _ in range(2)])
    self.down = nnx.List([nnx.Linear(2 * width, width, rngs=rngs) for _ in range(2)])
    self.head = nnx.Linear(width, 10, rngs=rngs)

  def latents(self, images: jax.Array) -> jax.Array:
    """(n, width) of images (n, 8, 8)."""
    patches = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
    x = self.embed(patches) + self.position[...][None]
    for i in range(2):
      x = x + self.attention[i](self.norms[2 * i](x))
      x = x + self.down[i](jax.nn.gelu(self.up[i](self.norms[2 * i + 1](x))))
    return self.norms[4](jnp.mean(x, axis=1))


class ResNet(nnx.Module):
  """A convolution and two residual blocks; the latent is the mean over positions."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.stem = nnx.Conv(1, width, (3, 3), strides=2, rngs=rngs)
    self.convolutions = nnx.List([nnx.Conv(width, width, (3, 3), rngs=rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, 10, rngs=rngs)

  def latents(self, images: jax.Array) -> jax.Array:
    """(n, width) of images (n, 8, 8)."""
    x = self.stem(images[..., None])
    for convolution in self.convolutions:
      x = x + jax.nn.relu(convolution(jax.nn.relu(x)))
    return self.norm(jnp.mean(x, axis=(1, 2)))


@functools.cache
def _programs(make: Callable[[nnx.Rngs], nnx.Module], steps: int) -> tuple[Any, Any]:
  """(training, latents) of a kind of model, compiled once for all seeds."""
  graph, _, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

  def loss(state: nnx.State, images: jax.Array, labels: jax.Array) -> jax.Array:
    model = nnx.merge(graph, state, rest)
    return optax.softmax_cross_entropy_with_integer_labels(model.head(model.latents(images)), labels).mean()

  def run(state: nnx.State, images: jax.Array, labels: jax.Array, keys: jax.Array) -> nnx.State:
    def step(carry: tuple, key: jax.Array) -> tuple:
      state, moments = carry
      rows = jax.random.randint(key, (64,), 0, TRAINED)
      updates, moments = optimizer.update(jax.grad(loss)(state, images[rows], labels[rows]), moments)
      return (optax.apply_updates(state, updates), moments), None

    return jax.lax.scan(step, (state, optimizer.init(state)), keys)[0][0]

  return jax.jit(run), jax.jit(lambda state, images: nnx.merge(graph, state, rest).latents(images))


def trained(
  make: Callable[[nnx.Rngs], nnx.Module], seed: int, data: dict[str, np.ndarray], steps: int
) -> tuple[nnx.Module, Callable[[np.ndarray], np.ndarray], float]:
  """A model after some steps of Adam, its latents as a function of images, and its held-out accuracy."""
  model = make(nnx.Rngs(seed))
  run, encode = _programs(make, steps)
  images, labels = jnp.asarray(data["images"][:TRAINED]), jnp.asarray(data["labels"][:TRAINED])
  state = run(nnx.state(model, nnx.Param), images, labels, jax.random.split(jax.random.key(1000 + seed), steps))
  nnx.update(model, state)
  latents = np.asarray(encode(state, jnp.asarray(data["images"])))
  right = np.asarray(jnp.argmax(model.head(latents[TRAINED:]), axis=1)) == data["labels"][TRAINED:]
  return model, lambda images: np.asarray(encode(state, jnp.asarray(images))), float(right.mean())


def transformer(rngs: nnx.Rngs) -> VisionTransformer:
  """Of width 64."""
  return VisionTransformer(64, rngs)


def residual(rngs: nnx.Rngs) -> ResNet:
  """Of width 96."""
  return ResNet(96, rngs)
