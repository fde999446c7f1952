"""How exact are the published approximations: backward rules and sweeps of Sinkhorn, truncated Cayley; n = 4.

  python -m experiments.mixer_accuracy.run [--quick] [--check] [--record]

Logits are b·I + 0.5·N(0, 1) for the Birkhoff polytope (b is where an initialisation near the identity starts) and
s·N(0, 1) for the Cayley iteration; float64, so that what is measured is the truncation and not the rounding.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

from experiments.claim import Cache, Claim, Number, table
from jpmhc_jax import mixers
from jpmhc_jax.linalg import scaling

FOLDER = pathlib.Path(__file__).resolve().parent
N, DRAWS = 4, 2000
BIASES = (0.0, 2.0, 4.0, 6.0, 8.0)
ADJOINTS = ("unrolled", "implicit", "gauss_seidel")  # the first is the default
PUBLISHED = {1: 0.432, 2: 0.281, 4: 0.115, 8: 0.028, 16: 0.0008}  # relative error of the backward sweeps, JPmHC
SIZES = (0.1, 0.3, 1.0, 3.0)


def gauss_seidel_error(bias: float, sweeps: int, draws: int) -> float:
  """Mean over draws of ‖X̄_k − X̄‖/‖X̄‖, the published sweeps against the direct solve, at the converged matrix."""
  keys = jax.random.split(jax.random.key(0))
  logits = bias * jnp.eye(N)[..., None] + 0.5 * jax.random.normal(keys[0], (N, N, draws))
  matrix = scaling.newton(jnp.clip(logits, -10, 10), 20, 16)
  cotangent = jax.random.normal(keys[1], matrix.shape)
  exact = scaling.implicit_vjp(matrix, cotangent)
  error = scaling.gauss_seidel_vjp(matrix, cotangent, sweeps) - exact
  return float(jnp.mean(jnp.linalg.norm(error, axis=(0, 1)) / jnp.linalg.norm(exact, axis=(0, 1))))


def gradient_error(adjoint: str, bias: float, draws: int) -> float:
  """‖⟨X̄, D⟩ − differences‖ over ‖differences‖: central differences of the 20 sweeps along D, all draws together."""
  keys = jax.random.split(jax.random.key(0), 3)
  logits = bias * jnp.eye(N)[..., None] + 0.3 * jax.random.normal(keys[0], (N, N, draws))
  direction, cotangent = (jax.random.normal(key, logits.shape) for key in keys[1:])
  project = functools.partial(mixers.Sinkhorn(adjoint=adjoint).project, n=N)
  step = 1e-5 * direction
  difference = jnp.sum(cotangent * (project(logits + step) - project(logits - step)) / 2e-5, axis=(0, 1))
  slope = jnp.sum(direction * jax.vjp(project, logits)[1](cotangent)[0], axis=(0, 1))
  return float(jnp.linalg.norm(slope - difference) / jnp.linalg.norm(difference))


def sinkhorn_residual(bias: float, sweeps: int, draws: int) -> float:
  """Mean over draws of the largest |row or column sum − 1| after `sweeps` forward sweeps."""
  logits = bias * jnp.eye(N)[..., None] + 0.5 * jax.random.normal(jax.random.key(0), (N, N, draws))
  manifold = mixers.Sinkhorn(sweeps=sweeps)
  return float(jnp.mean(manifold.distance(manifold.project(logits, N))))


def cayley_error(size: float, steps: int, draws: int) -> tuple[float, float]:
  """(mean, largest) over draws of max |Y Yᵀ − I| of the published iteration, α = 0.1."""
  logits = size * jax.random.normal(jax.random.key(0), (N, N, draws))
  distance = mixers.Cayley().distance(mixers.CayleyIterative(steps=steps).project(logits, N))
  return float(jnp.mean(distance)), float(jnp.max(distance))


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """All errors by name. They are exact numbers of fixed draws: a rerun must agree to a thousandth of each."""
  del cache
  draws = 100 if quick else DRAWS
  values: dict[str, float] = {}
  default: dict[str, float] = {}
  with jax.enable_x64(True):
    for bias in BIASES:
      values |= {f"gauss_seidel/b={bias:g}/k={k}": gauss_seidel_error(bias, k, draws) for k in PUBLISHED}
      for rule in ADJOINTS:
        into = default if rule == ADJOINTS[0] else values
        into[f"gradient/{rule}/b={bias:g}"] = gradient_error(rule, bias, draws)
      values |= {f"sinkhorn/b={bias:g}/T={t}": sinkhorn_residual(bias, t, draws) for t in (5, 20, 80)}
    for size in SIZES:
      for steps in (1, 2, 4):
        mean, largest = cayley_error(size, steps, draws)
        values |= {f"cayley/std={size:g}/s={steps}/mean": mean, f"cayley/std={size:g}/s={steps}/max": largest}
  _show(values | default)
  # The default's error is the rounding of the differences.
  bounds = {name: Number.bounded(value, most=1e-6) for name, value in default.items()}
  return bounds | {name: Number(value, 1e-3 * value + 1e-12) for name, value in values.items()}


def _show(values: dict[str, float]) -> None:
  rows = [[f"k = {k}", PUBLISHED[k], *(values[f"gauss_seidel/b={b:g}/k={k}"] for b in BIASES)] for k in PUBLISHED]
  print("relative error of the Gauss–Seidel backward by diagonal bias b")
  print(table(["sweeps", "published", *(f"b = {b:g}" for b in BIASES)], rows))
  print("\nrelative error of Sinkhorn's gradient beside central differences of its 20 sweeps")
  rows = [[rule, *(values[f"gradient/{rule}/b={b:g}"] for b in BIASES)] for rule in ADJOINTS]
  print(table(["adjoint", *(f"b = {b:g}" for b in BIASES)], rows))
  print("\nlargest |sum − 1| after T Sinkhorn sweeps")
  rows = [[f"T = {t}", *(values[f"sinkhorn/b={b:g}/T={t}"] for b in BIASES)] for t in (5, 20, 80)]
  print(table(["sweeps", *(f"b = {b:g}" for b in BIASES)], rows))
  print("\nmax |YYᵀ − I| of the Cayley iteration by standard deviation of the logits: mean (largest) over draws")
  rows = [
    [
      f"s = {s}",
      *(f"{values[f'cayley/std={z:g}/s={s}/mean']:.1e} ({values[f'cayley/std={z:g}/s={s}/max']:.1e})" for z in SIZES),
    ]
    for s in (1, 2, 4)
  ]
  print(table(["steps", *(f"std {z:g}" for z in SIZES)], rows))


CLAIM = Claim(FOLDER, measure, seeds="jax.random.key(0)", budget=f"{DRAWS} matrices a number, float64")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
