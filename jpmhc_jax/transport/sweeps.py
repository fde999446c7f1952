"""Passes over an entropic transport plan in blocks of rows: neither the cost nor the plan is ever stored.

With the cost C_ij = α_i + β_j − ⟨u_i, v_j⟩, which squared distances, cosines and the linearised Gromov–Wasserstein cost
all are, the plan of potentials f, g is

    P_ij = a_i b_j E_ij,   E_ij = exp((f_i + g_j − C_ij) / ε),

and a block of E is one matrix product and one exponential. Every pass below reads a block once.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = [
  "ENTRIES", "HELD", "Problem", "column_means", "cost_tangents", "exact_sweep", "held_scores", "moments",
  "row_entropies", "row_means", "scan_rows", "sweep", "there_and_back",
]  # fmt: skip

HELD = 2**22  # entries of ⟨u, v⟩ that the iteration keeps instead of computing them again: 16 MiB in float32
ENTRIES = 2**19  # of a block: it stays in the cache between its exponential and its sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """min ⟨P, C⟩ + ε KL(P | abᵀ) + ρ KL(P1 | a) + ρ KL(Pᵀ1 | b), C_ij = α_i + β_j − ⟨u_i, v_j⟩; ρ = ∞ fixes the
  marginals."""

  u: Float[Array, "n e"]
  v: Float[Array, "m e"]
  alpha: Float[Array, " n"]
  beta: Float[Array, " m"]
  a: Float[Array, " n"]
  b: Float[Array, " m"]
  epsilon: Float[Array, ""]
  rho: Float[Array, ""]

  @property
  def damping(self) -> Float[Array, ""]:
    """κ = 1 + ε/ρ: a potential is the soft minimum over κ; 1 where the marginals are fixed."""
    return 1 + self.epsilon / self.rho

  def mean_cost(self) -> Float[Array, ""]:
    """Σ a_i b_j C_ij / (Σ a Σ b), without the matrix."""
    a, b = self.a / jnp.sum(self.a), self.b / jnp.sum(self.b)
    return jnp.vdot(a, self.alpha) + jnp.vdot(b, self.beta) - jnp.vdot(a @ self.u, b @ self.v)

  def flipped(self) -> "Problem":
    """The same problem with both sides exchanged."""
    return Problem(self.v, self.u, self.beta, self.alpha, self.b, self.a, self.epsilon, self.rho)


def _product(u: Array, v: Array) -> Array:
  return jnp.matmul(u, v.T, precision=jax.lax.Precision.HIGHEST)


def _rows(problem: Problem) -> int:
  return max(1, min(len(problem.alpha), ENTRIES // len(problem.beta)))


def scan_rows(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, size: int) -> tuple[Any, Any]:
  """`jax.lax.scan` over blocks of `size` rows of the arrays, then one step over the rest; results row by row."""
  n = len(jax.tree.leaves(rows)[0])
  whole = n - n % size
  blocks = jax.tree.map(lambda x: x[:whole].reshape(whole // size, size, *x.shape[1:]), rows)
  carry, results = jax.lax.scan(step, carry, blocks)
  results = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), results)
  if whole < n:
    carry, rest = step(carry, jax.tree.map(lambda x: x[whole:], rows))
    results = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), results, rest)
  return carry, results


def held_scores(problem: Problem) -> Float[Array, "n m"] | None:
  """⟨u, v⟩ where it is small enough to be kept; None where blocks compute it."""
  return _product(problem.u, problem.v) if len(problem.alpha) * len(problem.beta) <= HELD else None


def sweep(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], epsilon: Float[Array, ""], scores: Array | None
) -> tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, ""], Bool[Array, ""]]:
  """One row update and one column update, (f, g, error, whether all is in range), from one exponential an entry.

      r = E b,  f' = (f − ε log r)/κ,  c = Eᵀ (a exp((f' − f)/ε)),  g' = (g − ε log c)/κ

  After a column update Σ a_i E_ij = 1, so that E cannot overflow where a_i > 0; r or c may underflow far from the
  solution, and then `exact_sweep` does the same without.
  """
  kappa, inverse = 1 + epsilon / problem.rho, 1 / epsilon
  shift = (g - problem.beta) * inverse

  def step(c: Array, row: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
    score, alpha, a, f = row
    score = _product(score, problem.v) if scores is None else score
    e = jnp.exp(score * inverse + ((f - alpha) * inverse)[:, None] + shift[None])
    r = e @ problem.b
    new = (f - epsilon * jnp.log(r)) / kappa
    return c + (a * jnp.exp((new - f) * inverse)) @ e, (new, r)

  rows = (problem.u if scores is None else scores, problem.alpha, problem.a, f)
  c, (new, r) = scan_rows(step, jnp.zeros_like(g), rows, _rows(problem))
  least = jnp.finfo(f.dtype).tiny * 1e6
  fine = (jnp.min(r) > least) & (jnp.max(r) < 1 / least) & (jnp.min(c) > least) & (jnp.max(c) < 1 / least)
  return new, (g - epsilon * jnp.log(c)) / kappa, _change(problem, f, new, epsilon), fine


def _change(problem: Problem, f: Array, new: Array, epsilon: Array) -> Array:
  """Σ a |exp((f − f')/ε) − 1|: for fixed marginals the distance of P1 to a before the update."""
  return jnp.sum(problem.a * jnp.abs(jnp.expm1(jnp.minimum((f - new) / epsilon, 80.0))))


def exact_sweep(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], epsilon: Float[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, ""]]:
  """The updates and the error of `sweep` by log-sum-exp, for potentials and ε of any size."""
  kappa = 1 + epsilon / problem.rho
  log_a, shift = jnp.log(problem.a), (g - problem.beta) / epsilon + jnp.log(problem.b)

  def step(c: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
    u, alpha, log_a = row
    cost = (_product(u, problem.v) - alpha[:, None]) / epsilon
    lse = jax.nn.logsumexp(cost + shift[None], axis=1)
    new = -lse * epsilon / kappa
    column = jax.nn.logsumexp(cost + (new / epsilon + log_a)[:, None], axis=0)
    return jnp.logaddexp(c, column), new

  start = jnp.full_like(g, -jnp.inf)
  c, new = scan_rows(step, start, (problem.u, problem.alpha, log_a), _rows(problem))
  return new, -(c - problem.beta / epsilon) * epsilon / kappa, _change(problem, f, new, epsilon)


def _entries(problem: Problem, f: Array, g: Array, row: tuple[Array, ...]) -> Array:
  """A block of E."""
  u, alpha, _, f = row
  logits = _product(u, problem.v) + (f - alpha)[:, None] + (g - problem.beta)[None]
  return jnp.exp(jnp.minimum(logits / problem.epsilon, 80.0))  # beyond: a point of weight zero, far from solved


def _over(problem: Problem, f: Array, g: Array, step: Callable[..., Any], start: Any, *rows: Array) -> tuple[Any, Any]:
  """`scan_rows` of step(carry, block of E, a, *rows); blocks are computed again in the backward pass."""

  @jax.checkpoint
  def inner(carry: Any, row: tuple[Array, ...]) -> tuple[Any, Any]:
    result: tuple[Any, Any] = step(carry, _entries(problem, f, g, row[:4]), row[2], *row[4:])
    return result

  return scan_rows(inner, start, (problem.u, problem.alpha, problem.a, f, *rows), _rows(problem))


def moments(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], row_values: Array, column_values: Array
) -> tuple[Array, Array, Array, Array]:
  """Of weights without those of their own side: row sums E b and E (b ∘ column_values), column sums Eᵀa and
  Eᵀ (a ∘ row_values), with values (n, k) and (m, l), in one pass."""
  columns = jnp.concatenate([problem.b[:, None], problem.b[:, None] * column_values], axis=1)

  def step(carry: Array, e: Array, a: Array, values: Array) -> tuple[Array, Array]:
    return carry + e.T @ jnp.concatenate([a[:, None], a[:, None] * values], axis=1), e @ columns

  start = jnp.zeros((len(g), 1 + row_values.shape[1]), columns.dtype)
  by_column, by_row = _over(problem, f, g, step, start, row_values)
  return by_row[:, 0], by_row[:, 1:], by_column[:, 0], by_column[:, 1:]


def row_means(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], values: Float[Array, "m k"]
) -> Float[Array, "n k"]:
  """R W, the mean of column values that each row sees, linear in `values`; R_i is the softmax of (g − C_i)/ε + log b.

  It does not depend on f: rows that a solver has not seen are as good.
  """
  del f
  log_b, inverse = jnp.log(problem.b), 1 / problem.epsilon
  shift = (g - problem.beta) * inverse + log_b

  @jax.checkpoint
  def step(carry: None, row: tuple[Array, Array]) -> tuple[None, Array]:
    u, alpha = row
    return None, jax.nn.softmax((_product(u, problem.v) - alpha[:, None]) * inverse + shift[None], axis=1) @ values

  result: Array = scan_rows(step, None, (problem.u, problem.alpha), _rows(problem))[1]
  return result


def row_entropies(problem: Problem, g: Float[Array, " m"]) -> Float[Array, " n"]:
  """−Σ_j R_ij log R_ij of the rows of `row_means`, in nats."""
  shift = (g - problem.beta) / problem.epsilon + jnp.log(problem.b)

  @jax.checkpoint
  def step(carry: None, row: tuple[Array, Array]) -> tuple[None, Array]:
    logits = (_product(row[0], problem.v) - row[1][:, None]) / problem.epsilon + shift[None]
    log_r = jax.nn.log_softmax(logits, axis=1)
    finite = jnp.where(log_r > -80, log_r, 0.0)  # a column of weight zero has −∞, whose product has no derivative
    return None, -jnp.sum(jnp.where(log_r > -80, jnp.exp(finite) * finite, 0.0), axis=1)

  result: Array = scan_rows(step, None, (problem.u, problem.alpha), _rows(problem))[1]
  return result


def there_and_back(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], values: Float[Array, " m"]
) -> Float[Array, " m"]:
  """Eᵀ diag(a / E b) E (b ∘ values): the mean of column values of each row, handed back to the columns, in one pass."""

  def step(carry: Array, e: Array, a: Array) -> tuple[Array, None]:
    seen = e @ jnp.stack([problem.b, problem.b * values], axis=1)
    return carry + (a * seen[:, 1] / jnp.maximum(seen[:, 0], jnp.finfo(e.dtype).tiny)) @ e, None

  result: Array = _over(problem, f, g, step, jnp.zeros_like(g))[0]
  return result


def column_means(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], values: Float[Array, "n k"]
) -> Float[Array, "m k"]:
  """The mean of row values that each column sees."""
  return row_means(problem.flipped(), g, f, values)


def cost_tangents(
  problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], change: Problem
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
  """Mean change of the cost that each row and each column sees, for a change of u, v, α and β."""

  # Means of the points and of their changes are separate passes: only the latter are linear in the change.
  def total(own: Array, moved: Array, features: Array, seen: Array, changes: Array) -> Array:
    return own + changes[:, 0] - jnp.sum(moved * seen, axis=1) - jnp.sum(features * changes[:, 1:], axis=1)

  beside = jnp.concatenate([change.beta[:, None], change.v], axis=1)
  rows = total(change.alpha, change.u, problem.u, row_means(problem, f, g, problem.v), row_means(problem, f, g, beside))
  beside = jnp.concatenate([change.alpha[:, None], change.u], axis=1)
  columns = total(
    change.beta, change.v, problem.v, column_means(problem, f, g, problem.u), column_means(problem, f, g, beside)
  )
  return rows, columns
