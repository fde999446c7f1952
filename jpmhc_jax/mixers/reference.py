"""Reference vectors of every family in float64, for other implementers: logits, cotangent, H, vector-Jacobian product.

`reference.npz` holds, under `<family>/n<n>` or `<family>[<options>]/n<n>` with options as `parse` reads them: `logits`
(tokens, *logit_shape), `cotangent` and `H` (tokens, n, n), and `vjp` shaped like the logits, all with the tokens FIRST.
Inputs are NumPy draws (PCG64, seeds below), so nothing depends on JAX's generator. Regenerate with
`python -m jpmhc_jax.mixers.reference`; a test compares.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.mixers.registry import parse

__all__ = ["ALL", "CASES", "PATH", "TOKENS", "load", "vectors"]

PATH = pathlib.Path(__file__).with_name("reference.npz")
TOKENS = 4
CASES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
  ("unconstrained", "tanh=true", (4,)),
  ("sinkhorn", "", (2, 4, 8)),
  ("sinkhorn", "adjoint=gauss_seidel", (4,)),
  ("sinkhorn", "adjoint=unrolled", (4,)),
  ("birkhoff_newton", "", (2, 4, 8)),
  ("sinkhorn_epsilon", "", (4,)),
  ("permutation", "", (3, 4)),
  ("permutation", "basis=jpmhc", (4,)),
  ("permutation", "basis=generators", (8,)),
  ("circulant", "", (4,)),
  ("kronecker", "", (4, 8)),
  ("orthostochastic", "", (4,)),
  ("orthostochastic_newton_schulz", "", (4,)),
  ("transport", "", (4,)),
  ("cayley", "", (2, 3, 4, 8)),
  ("cayley", "alpha=1", (4,)),
  ("cayley_iterative", "", (4,)),
  ("polar", "", (4,)),
  ("quaternion", "", (4,)),
  ("householder", "gate=soft", (4,)),
  ("iso", "alpha=1", (4, 8)),
  ("iso", "method=express", (4,)),
  ("sphere", "", (4,)),
  ("grassmann", "", (4,)),
  ("hybrid", "", (4,)),
  ("choice", "", (4,)),
)

ALL = frozenset(case[0] for case in CASES)


def vectors(families: frozenset[str] = ALL) -> dict[str, np.ndarray]:
  """The content of `reference.npz` for the given families (all of them by default), computed anew."""
  arrays: dict[str, np.ndarray] = {}
  with jax.enable_x64(True):
    for k, (family, options, sizes) in enumerate(CASES):
      if family not in families:
        continue
      for n in sizes:
        label = f"{family}[{options}]/n{n}" if options else f"{family}/n{n}"
        arrays |= {f"{label}/{part}": array for part, array in _case(family, options, n, seed=100 * k + n).items()}
  return arrays


def _case(family: str, options: str, n: int, seed: int) -> dict[str, np.ndarray]:
  mixer, rng = parse(family, options), np.random.default_rng(seed)
  start = np.asarray(mixer.identity_logits(n, 2.0))
  # Two tokens of unit logits around zero and two around the identity start.
  around = np.stack([0 * start, 0 * start, start, start], axis=-1)
  logits = around + rng.standard_normal((*mixer.logit_shape(n), TOKENS))
  cotangent = rng.standard_normal((n, n, TOKENS))
  matrix, pullback = jax.vjp(jax.jit(lambda x: mixer.project(x, n)), jnp.asarray(logits))
  arrays = {"logits": logits, "cotangent": cotangent, "H": matrix, "vjp": pullback(jnp.asarray(cotangent))[0]}
  return {part: np.moveaxis(np.asarray(array), -1, 0) for part, array in arrays.items()}


def load() -> dict[str, np.ndarray]:
  """The published vectors."""
  with np.load(PATH) as archive:
    return dict(archive)


if __name__ == "__main__":
  np.savez_compressed(PATH, allow_pickle=False, **vectors())
  print(f"wrote {PATH}: {PATH.stat().st_size} bytes")
