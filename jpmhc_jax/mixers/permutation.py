"""Convex mixtures of permutations: doubly stochastic to rounding, because every term is."""

import dataclasses
import functools
import itertools
import math

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.linalg import linear
from jpmhc_jax.mixers.base import refuse_streams, Traits
from jpmhc_jax.mixers.birkhoff import DoublyStochastic

__all__ = [
  "Circulant", "Permutation", "PermutationMixture", "best_generators", "generators", "permutation_matrices",
  "spectral_gap",
]  # fmt: skip

Permutation = tuple[int, ...]
_LARGEST_FULL_BASIS = 5


@dataclasses.dataclass(frozen=True)
class PermutationMixture(DoublyStochastic):
  """H = Σ_k softmax(logits)_k Π_k, (Π x)[i] = x[π(i)].

  project: logits (K, *tokens) -> H (n, n, *tokens). basis "full": all n! permutations in lexicographic order (n <= 5;
  the whole Birkhoff polytope; mHC-lite, 2601.05732); "jpmhc": the six of JPmHC for n = 4; "generators": identity, the
  shifts by ±1 and the n − 1 adjacent transpositions, for any n. `permutations="0123/1032/…"` names any others (identity
  first), for instance those of `best_generators`.

  Raises ConfigError for an unknown basis, one that does not exist for n, and text that names no permutations.

  >>> jp.PermutationMixture(permutations="01/10").project(jnp.array([0.0, jnp.log(3.0)]), 2).round(2).tolist()
  [[0.25, 0.75], [0.75, 0.25]]
  """

  basis: str = "full"
  permutations: str = ""

  def __post_init__(self) -> None:
    check_choice("basis", self.basis, ("full", "jpmhc", "generators"))

  @property
  def traits(self) -> Traits:
    """Doubly stochastic; all of the polytope only with all permutations."""
    whole = self.basis == "full" and not self.permutations
    return dataclasses.replace(
      super().traits, set="Birkhoff polytope" if whole else "hull of K permutations", contains_identity=False
    )

  def terms(self, n: int) -> tuple[Permutation, ...]:
    """The permutations for n streams; the identity comes first. Raises ConfigError where the basis does not exist."""
    if self.permutations:
      return _parse(self.permutations, n)
    if self.basis == "jpmhc":
      if n != 4:
        raise refuse_streams("permutation", n, "4 streams with basis=jpmhc", "use streams=4 or basis=generators")
      return _JPMHC
    if self.basis == "generators":
      return generators(n)
    if n > _LARGEST_FULL_BASIS:
      raise refuse_streams("permutation", n, f"{math.factorial(n)} logits with basis=full", "use basis=generators")
    return tuple(itertools.permutations(range(n)))

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """One per permutation. Raises ConfigError as `terms` does."""
    return (len(self.terms(n)),)

  def dimension(self, n: int) -> int:
    """Affine dimension of the hull: the rank of the differences of its vertices."""
    vertices = permutation_matrices(self.terms(n)).reshape(-1, n * n)
    return int(np.linalg.matrix_rank(vertices[1:] - vertices[0])) if len(vertices) > 1 else 0

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    """`strength` for the identity, which is the first permutation."""
    return jnp.zeros(self.logit_shape(n)).at[0].set(strength)

  def _project(self, logits: Array, n: int) -> Array:
    # One product with a matrix of zeros and ones: it only adds weights.
    sums = permutation_matrices(self.terms(n)).reshape(-1, n * n).T
    weights = jax.nn.softmax(logits, axis=0)
    mixed = jnp.tensordot(jnp.asarray(sums, logits.dtype), weights, axes=1, precision=jax.lax.Precision.HIGHEST)
    return mixed.reshape(n, n, *logits.shape[1:])


def permutation_matrices(permutations: tuple[Permutation, ...]) -> np.ndarray:
  """The matrices (K, n, n) with Π[i, π(i)] = 1."""
  result: np.ndarray = np.eye(len(permutations[0]))[np.asarray(permutations)]
  return result


def generators(n: int) -> tuple[Permutation, ...]:
  """Identity, shifts by +1 and −1 and the adjacent transpositions, without repeats: they generate all permutations of
  n."""
  streams = tuple(range(n))
  permutations = [streams, streams[1:] + streams[:1], streams[-1:] + streams[:-1]]
  for i in range(n - 1):
    swapped = list(streams)
    swapped[i], swapped[i + 1] = i + 1, i
    permutations.append(tuple(swapped))
  return tuple(dict.fromkeys(permutations))


# JPmHC's Perm Mix: identity, two transpositions, two shifts and "one random permutation with seed 42". The generator is
# not named there; this is numpy's legacy RandomState(42).permutation(4).
_JPMHC: tuple[Permutation, ...] = (
  (0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (1, 2, 3, 0), (3, 0, 1, 2), (1, 3, 0, 2),
)  # fmt: skip


def _parse(text: str, n: int) -> tuple[Permutation, ...]:
  try:
    permutations = tuple(tuple(int(digit) for digit in word) for word in text.split("/"))
  except ValueError:
    permutations = ()
  streams = tuple(range(n))
  if not permutations or permutations[0] != streams or any(tuple(sorted(word)) != streams for word in permutations):
    raise ConfigError(
      f"options: permutations={text!r}: expected permutations of the digits 0 to {n - 1} separated by '/', "
      f"the identity first, e.g. {''.join(map(str, streams))!r}."
    )
  return permutations


@functools.lru_cache(maxsize=4)
def _group(n: int) -> tuple[tuple[Permutation, ...], np.ndarray]:
  """All permutations of n and, for each, its matrix on the n! permutations (left multiplication)."""
  members = tuple(itertools.permutations(range(n)))
  index = {member: k for k, member in enumerate(members)}
  images = np.asarray([[index[tuple(g[i] for i in h)] for h in members] for g in members])
  return members, np.eye(len(members))[images]


def spectral_gap(permutations: tuple[Permutation, ...]) -> float:
  """1 − |λ₂| of the random walk on all n! permutations that takes each given permutation with equal probability.

  Zero when the walk does not reach every permutation, or only in alternation. Needs n <= 5 (an n! x n! matrix).
  """
  members, matrices = _group(_checked_size(len(permutations[0])))
  chosen = [members.index(tuple(permutation)) for permutation in permutations]
  return float(_gaps(matrices, np.asarray([chosen]))[0])


def best_generators(n: int, size: int) -> tuple[tuple[Permutation, ...], float]:
  """The set of `size` permutations of n with the largest spectral gap, first in lexicographic order, and its gap.

  Exhaustive, as in JPmHC: n = 4 and size 4 look at 10,626 sets in seconds. Raises ValueError for more than a million
  sets.
  """
  members, matrices = _group(_checked_size(n))
  candidates = math.comb(len(members), size)
  if not 1 <= size <= len(members) or candidates > 1_000_000:
    raise ValueError(f"best_generators: {candidates} sets of {size} permutations of {n}; expected 1 to 1,000,000 sets.")
  best: tuple[Permutation, ...] = ()
  best_gap = -1.0
  remaining = itertools.combinations(range(len(members)), size)
  while chunk := list(itertools.islice(remaining, 2048)):
    gaps = _gaps(matrices, np.asarray(chunk))
    k = int(np.argmax(gaps > gaps.max() - 1e-9))
    if gaps[k] > best_gap + 1e-9:
      best, best_gap = tuple(members[i] for i in chunk[k]), float(gaps[k])
  return best, best_gap


def _gaps(matrices: np.ndarray, sets: np.ndarray) -> np.ndarray:
  walks = sum(matrices[sets[:, k]] for k in range(sets.shape[1])) / sets.shape[1]
  sizes = np.sort(np.abs(np.linalg.eigvals(walks)), axis=-1)
  return sizes[:, -1] - sizes[:, -2] if sizes.shape[1] > 1 else np.ones(len(sizes))


def _checked_size(n: int) -> int:
  if n > _LARGEST_FULL_BASIS:
    raise ValueError(f"spectral gap: n={n} has {math.factorial(n)} permutations; expected n <= {_LARGEST_FULL_BASIS}.")
  return n


@dataclasses.dataclass(frozen=True)
class Circulant(DoublyStochastic):
  """H = Σ_k c_k Π^k with c = (1 − γ) e₀ + γ softmax(logits): commuting doubly stochastic mixers that leak at most γ.

  project: logits (n, *tokens) -> H (n, n, *tokens), H[i, j] = c[(j − i) mod n]. Every eigenvalue is at least 1 − 2γ in
  size, so L layers with γ = β/2L keep (1 − β/L)^L of every stream difference. γ = 1 gives all circulant mixers. Source:
  C-mHC, which uses β = 4 (γ = 1/4 at eight layers).

  Raises ConfigError for a leak outside of 0 to 1.

  >>> jp.Circulant(leak=0.25).project(jnp.zeros(2), 2).tolist()
  [[0.875, 0.125], [0.125, 0.875]]
  """

  leak: float = 0.25

  def __post_init__(self) -> None:
    if not 0 < self.leak <= 1:
      raise ConfigError(f"leak={self.leak}: expected a fraction above 0 and at most 1.")

  @property
  def traits(self) -> Traits:
    """Doubly stochastic; differences keep at least 1 − 2γ of their length."""
    return dataclasses.replace(
      super().traits, set="circulant, leak <= γ", contains_identity=False, eigenvalues="1 − 2γ <= |λ| <= 1",
      norm=f"mean kept, differences keep at least {max(1 - 2 * self.leak, 0):g}",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n,): one per shift."""
    return (n,)

  def dimension(self, n: int) -> int:
    """n − 1."""
    return n - 1

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n}"]:
    """`strength` for no shift."""
    return jnp.zeros((n,)).at[0].set(strength)

  def distance(self, matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
    """Largest violation of doubly stochastic, of H[i, j] = H[0, (j − i) mod n] and of H[0, 0] >= 1 − γ."""
    structure = jnp.max(jnp.abs(matrix - _circulant(matrix[0])), axis=(0, 1))
    leak = jnp.maximum(1 - self.leak - matrix[0, 0], 0)
    return jnp.maximum(super().distance(matrix), jnp.maximum(structure, leak))

  def _project(self, logits: Array, n: int) -> Array:
    first = linear.over_tokens(np.eye(n)[0], logits, axes=1)
    return _circulant((1 - self.leak) * first + self.leak * jax.nn.softmax(logits, axis=0))


def _circulant(c: Array) -> Array:
  return jnp.stack([jnp.roll(c, i, axis=0) for i in range(c.shape[0])])
