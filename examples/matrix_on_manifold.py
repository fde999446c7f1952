"""Optax with a matrix on a manifold: principal components of handwritten digits, in ten lines.

    pip install scikit-learn; python examples/matrix_on_manifold.py

The two directions that keep most of the variance tr XᵀCX are a point of the Grassmann manifold, X (64, 2) with
orthonormal columns, whatever their rotation. Each step moves along the manifold, so that X stays on it to rounding;
the closed form is the sum of the largest two eigenvalues of C. Expect 28.51 % of the variance from both, in five
seconds on 2 CPU cores.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jpmhc_jax as jp


def main(steps: int = 200) -> tuple[list[float], float]:
  """Minimises the share of the variance that is lost; returns it after each step, and the least that there is."""
  images = jnp.asarray(load_digits(return_X_y=True)[0], jnp.float32)
  covariance = jnp.cov(images.T) / jnp.trace(jnp.cov(images.T))

  def lost(x: jax.Array) -> jax.Array:
    return 1 - jnp.trace(x.T @ covariance @ x)

  manifold = jp.manifolds.Grassmann()
  x = manifold.random(jax.random.key(0), (64, 2))
  optimizer = jp.optim.grassmann_adam(0.1)
  state = optimizer.init(x)

  @jax.jit
  def step(x, state):
    updates, state = optimizer.update(jax.grad(lost)(x), state, x)
    x = optax.apply_updates(x, updates)
    return x, state, lost(x)

  losses = []
  for _ in range(steps):
    x, state, value = step(x, state)
    losses.append(float(value))
  assert manifold.distance(x) < 1e-5  # XᵀX = I
  return losses, float(1 - jnp.linalg.eigvalsh(covariance)[-2:].sum())


if __name__ == "__main__":
  losses, least = main()
  print(f"variance: {1 - losses[0]:.2%} after a step, {1 - losses[-1]:.2%} at the end; closed form: {1 - least:.2%}")
