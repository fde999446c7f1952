"""Sets of mixing matrices: projections from logits, exact derivatives, and the distance of any matrix to the set."""

from jpmhc_jax.linalg.differences import helmert
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.birkhoff import BirkhoffNewton, DoublyStochastic, EpsilonSinkhorn, Sinkhorn
from jpmhc_jax.mixers.blend import Blend, Choice, Hybrid, scheduled
from jpmhc_jax.mixers.cayley import Cayley, CayleyIterative
from jpmhc_jax.mixers.grassmann import Grassmann
from jpmhc_jax.mixers.householder import Householder
from jpmhc_jax.mixers.iso import Iso
from jpmhc_jax.mixers.kronecker import Kronecker
from jpmhc_jax.mixers.orthostochastic import Orthostochastic, OrthostochasticNewtonSchulz
from jpmhc_jax.mixers.permutation import best_generators, Circulant, PermutationMixture, spectral_gap
from jpmhc_jax.mixers.polar import Polar
from jpmhc_jax.mixers.quaternion import Quaternion
from jpmhc_jax.mixers.registry import FAMILIES, make, name_of, parse, register_mixer
from jpmhc_jax.mixers.sphere import SpectralSphere
from jpmhc_jax.mixers.transport import Transport
from jpmhc_jax.mixers.trivial import Identity, Unconstrained

__all__ = [
  "BirkhoffNewton",
  "Blend",
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
  "Mixer",
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
  "register_mixer",
  "scheduled",
  "spectral_gap",
]
