"""Sets of mixing matrices: projections from logits, exact derivatives, and the distance of any matrix to the set."""

from jpmhc_jax.manifolds.birkhoff import BirkhoffNewton, DoublyStochastic, EpsilonSinkhorn, Sinkhorn
from jpmhc_jax.manifolds.cayley import Cayley, CayleyIterative
from jpmhc_jax.manifolds.choice import Choice
from jpmhc_jax.manifolds.contract import Manifold, Traits
from jpmhc_jax.manifolds.differences import helmert
from jpmhc_jax.manifolds.families import FAMILIES, make, name_of, parse
from jpmhc_jax.manifolds.grassmann import Grassmann
from jpmhc_jax.manifolds.householder import Householder
from jpmhc_jax.manifolds.hybrid import Hybrid
from jpmhc_jax.manifolds.iso import Iso
from jpmhc_jax.manifolds.kronecker import Kronecker
from jpmhc_jax.manifolds.orthostochastic import Orthostochastic, OrthostochasticNewtonSchulz
from jpmhc_jax.manifolds.permutation import best_generators, Circulant, PermutationMixture, spectral_gap
from jpmhc_jax.manifolds.polar import Polar
from jpmhc_jax.manifolds.quaternion import Quaternion
from jpmhc_jax.manifolds.sphere import SpectralSphere
from jpmhc_jax.manifolds.transport import Transport
from jpmhc_jax.manifolds.trivial import Identity, Unconstrained

__all__ = [
  "BirkhoffNewton",
  "Cayley",
  "CayleyIterative",
  "Choice",
  "Circulant",
  "DoublyStochastic",
  "EpsilonSinkhorn",
  "FAMILIES",
  "Grassmann",
  "Householder",
  "Hybrid",
  "Identity",
  "Iso",
  "Kronecker",
  "Manifold",
  "Orthostochastic",
  "OrthostochasticNewtonSchulz",
  "PermutationMixture",
  "Polar",
  "Quaternion",
  "Sinkhorn",
  "SpectralSphere",
  "Traits",
  "Transport",
  "Unconstrained",
  "best_generators",
  "helmert",
  "make",
  "name_of",
  "parse",
  "spectral_gap",
]
