"""Where each published method fails and by how much: relative L1 error of G(x + 0.05i) against the matrix Dyson
equation.

  python experiments/fig1_spectra/published_methods.py
Expect: the table of README.md; half a minute on 2 CPU cores.
"""

import argparse
import sys

import jax
import numpy as np
from run import mixer

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.spectral import dyson, published
from jpmhc_jax.spectral.layers import full_noise

METHODS = ("scalar", "operator", "z1_mapping", "subordination", "s_transform", "twisted")
Z = np.linspace(0.05, 4, 30) + 0.05j


def main() -> int:
  argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
  print("| mixers | layers | " + " | ".join(METHODS) + " |")
  print("|---" * (len(METHODS) + 2) + "|")
  for kind in ("haar", "bistochastic", "gaussian"):
    for depth, equal in ((1, True), (2, True), (2, False), (10, True), (10, False)):
      rng = np.random.default_rng(0)
      mixers = np.stack([mixer(kind, rng) for _ in range(depth)])
      mixers = np.stack([mixers[0]] * depth) if equal else mixers
      sigma = np.sqrt(0.3 / depth)
      with jax.enable_x64(True):
        exact = np.asarray(dyson.checked(full_noise(mixers, sigma), Z).g)
      cells = []
      for method in METHODS:
        if method == "twisted" and depth > 2:  # its dense Newton unrolls the layers: minutes to compile at depth 10
          cells.append("not run")
          continue
        try:
          found = published.resolvent(mixers, sigma, Z, method)
          error = np.sum(np.abs(found - exact)) / np.sum(np.abs(exact))
          cells.append("exact" if error < 1e-6 else f"{error:.0%}")
        except UserError as refusal:
          cells.append("–" if "not for" in str(refusal) else "diverges")
      print(
        f"| {kind} | {depth}{'' if depth == 1 else ' equal' if equal else ' unequal'} | " + " | ".join(cells) + " |",
        flush=True,
      )
  return 0


if __name__ == "__main__":
  sys.exit(main())
