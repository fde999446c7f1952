"""The published pipeline by name, to be compared with `spectral.dyson`: exact where its assumptions hold, only there.

`choose` is the choice that the publication makes between its methods.
"""

import numpy as np

from jpmhc_jax.core.errors import check_choice, UserError
from jpmhc_jax.spectral.published import one_layer, products, twisted

__all__ = ["METHODS", "choose", "resolvent"]

METHODS = ("auto", "scalar", "operator", "z1_mapping", "s_transform", "subordination", "twisted")


def choose(streams: int, depth: int, equal: bool) -> str:
  """scalar for one layer of at most 8 streams, operator beyond (it exploits low rank); z1_mapping for equal layers;
  subordination for two unequal layers, s_transform for more."""
  if depth == 1:
    return "scalar" if streams <= 8 else "operator"
  if equal:
    return "z1_mapping"
  return "subordination" if depth == 2 else "s_transform"


def resolvent(mixers: np.ndarray, sigmas: np.ndarray | float, z: np.ndarray, method: str = "auto") -> np.ndarray:
  """G(z) of JᵀJ for a stack of layers with full noise, by a published method. Host code, NumPy complex128.

  mixers: (L, n, n); sigmas: number or (L,). Raises UserError when the method does not apply to the stack.
  """
  check_choice("method", method, METHODS)
  mixers = np.asarray(mixers, float)
  depth, streams, _ = mixers.shape
  sigmas = np.broadcast_to(np.asarray(sigmas, float), depth)
  equal = bool(np.all(mixers == mixers[0]) and np.all(sigmas == sigmas[0]))
  if method == "auto":
    method = choose(streams, depth, equal)
  limits = {
    "scalar": depth == 1,
    "operator": depth == 1,
    "z1_mapping": equal,
    "s_transform": True,
    "subordination": depth == 2,
    "twisted": True,
  }
  if not limits[method]:
    raise UserError(
      f"method={method!r}: not for {depth} {'equal' if equal else 'unequal'} layers; 's_transform' takes any stack"
    )
  if method == "scalar":
    return one_layer.scalar_resolvent(mixers[0], float(sigmas[0]), z)
  if method == "operator":
    return one_layer.operator_resolvent(mixers[0], float(sigmas[0]), z)
  if method == "z1_mapping":
    return products.z1_mapping(mixers[0], float(sigmas[0]), depth, z)
  if method == "s_transform":
    return products.s_transform(mixers, sigmas, z)
  if method == "twisted":
    return twisted.resolvent(mixers, sigmas, z)
  laws = [lambda at, k=k: one_layer.scalar_resolvent(mixers[k], float(sigmas[k]), at) for k in range(2)]
  return products.subordination(laws[0], laws[1], z)
