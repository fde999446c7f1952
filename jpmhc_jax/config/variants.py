"""Connection settings by name, shared by the config files: `configs/arc1.py:sinkhorn` and the like.

`published=True` gives each family the norm and the read/write form that its paper used with it, which confounds the
mixer with the form. `published=False` gives all of them the same, so that the mixer is all that differs.
"""

import ml_collections

from jpmhc_jax.core.errors import check_choice

# Plain TRM, then every mixer family by its name (a test compares them with mixers.FAMILIES).
VARIANTS = (
  "trm", "cayley", "sinkhorn", "grassmann", "iso", "identity", "unconstrained",
  "birkhoff_newton", "sinkhorn_epsilon", "permutation", "circulant", "kronecker", "transport", "orthostochastic",
  "orthostochastic_newton_schulz", "cayley_iterative", "polar", "quaternion", "householder", "sphere", "hybrid",
  "choice",
)  # fmt: skip


def set_connection(config: ml_collections.ConfigDict, variant: str, *, published: bool) -> None:
  """Fills in `config.connection` for one of VARIANTS; 'trm' is the plain network without streams.

  Raises ConfigError for an unknown variant, with the nearest one.
  """
  check_choice("variant", variant, VARIANTS)
  connection = config.connection
  if variant == "trm":
    connection.streams = 1
    return
  connection.streams = 4
  connection.mixer = variant
  connection.parameterisation = "manifold" if variant == "grassmann" else "logits"
  if published and variant in ("cayley", "grassmann"):
    connection.read_write, connection.norm, connection.bias = "softmax", "layernorm", variant == "grassmann"
    connection.norm_epsilon = 1e-5
