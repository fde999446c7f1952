"""Connection settings by name, shared by the config files: `arc1:sinkhorn` and the like.

`published=True` gives each family the norm and the read/write form that its paper used with it, which confounds the
mixer with the form. `published=False` gives all of them the same, so that the mixer is all that differs.
"""

from typing import Any

import ml_collections

from jpmhc_jax.core.errors import check_choice

# Plain TRM, then every mixer family by its name (a test compares them with mixers.FAMILIES).
VARIANTS = (
  "trm", "cayley", "sinkhorn", "grassmann", "iso", "identity", "unconstrained",
  "birkhoff_newton", "sinkhorn_epsilon", "permutation", "circulant", "kronecker", "transport", "orthostochastic",
  "orthostochastic_newton_schulz", "cayley_iterative", "polar", "quaternion", "householder", "sphere", "hybrid",
  "choice",
)  # fmt: skip


# What a variant sets beside its mixer, and what its paper used with it.
_FIELDS: dict[str, dict[str, Any]] = {"trm": {"streams": 1}, "grassmann": {"parameterisation": "manifold"}}
_JPMHC = {"read_write": "softmax", "norm": "layernorm", "norm_epsilon": 1e-5}
_PUBLISHED: dict[str, dict[str, Any]] = {"cayley": {**_JPMHC, "bias": False}, "grassmann": {**_JPMHC, "bias": True}}


def set_connection(config: ml_collections.ConfigDict, variant: str, *, published: bool) -> None:
  """Fills in `config.connection` for one of VARIANTS; 'trm' is the plain network without streams.

  Raises ConfigError for an unknown variant, with the nearest one.
  """
  check_choice("variant", variant, VARIANTS)
  named = {} if variant == "trm" else {"mixer": variant, "parameterisation": "logits"}
  fields = {"streams": 4, **named, **_FIELDS.get(variant, {}), **(_PUBLISHED.get(variant, {}) if published else {})}
  config.connection.update(fields)
