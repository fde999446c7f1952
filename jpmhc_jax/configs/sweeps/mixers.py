"""Every main arm of the comparison, seeds included: the same network, norm, read and write; the mixer is what differs.

  jpmhc sweep --config=sudoku:tiny --sweep=mixers --workdir=sweeps/mixers

Variants: steps (default; `steps` of the config), flops (every run may spend what 1,000 steps of the plain network
cost on sudoku:tiny), two (Cayley and identity, 2 seeds: a trial of the machinery).
Arms: no streams; streams that do not mix; free; Sinkhorn (mHC); Cayley (JPmHC); Grassmann, stored on the manifold; Iso.
"""

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.sweeps import cases, product, seeds, Sweep, sweep

PLAIN = {"connection.streams": 1}
FAMILIES = ("identity", "unconstrained", "sinkhorn", "cayley", "iso")
ARMS = (
  PLAIN,
  *({"connection.streams": 4, "connection.mixer": family} for family in FAMILIES),
  {"connection.streams": 4, "connection.mixer": "grassmann", "connection.parameterisation": "manifold"},
)


def get_sweep(variant="steps"):
  check_choice("variant", variant, ("steps", "flops", "two"))
  if variant == "two":
    return product(sweep("connection.mixer", ["cayley", "identity"]), seeds(2))
  return Sweep(product(cases(*ARMS), seeds(5)), budget=("flops", 2.57e12) if variant == "flops" else None)
