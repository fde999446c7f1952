"""Add a mixer.

A mixer turns logits into n × n matrices, one per token. Here is one of our own: each stream keeps most of itself and
takes a share of the mean of all.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jpmhc_jax as jp


# Five methods make a mixer. The traits say what holds of every matrix: connections, diagnostics and tests go by them.
@jp.register_mixer("share")
@dataclasses.dataclass(frozen=True)
class Share(jp.Mixer):
  """H = (1 - s) I + s 11ᵀ/n with s = most · sigmoid(logit)."""

  most: float = 1.0

  @property
  def traits(self):
    return jp.Traits("I to mean", row_sums_one=True, column_sums_one=True, nonnegative=True, contains_identity=False)

  def logit_shape(self, n):
    return (1,)

  def dimension(self, n):
    return 1

  def identity_logits(self, n, strength):
    return jnp.full((1,), -strength)

  # Tokens come last, (1, *tokens) -> (n, n, *tokens): many tiny matrices are fast that way on every device.
  def _project(self, logits, n):
    share = self.most * jax.nn.sigmoid(logits)[None]
    identity, mean = (m.reshape(n, n, *(1,) * (share.ndim - 2)) for m in (jnp.eye(n), jnp.full((n, n), 1 / n)))
    return identity + share * (mean - identity)


# ## Does it hold?
#
# The distance to the set is computed from the traits, the derivative by JAX.
mixer = Share(most=0.5)
logits = jax.random.normal(jax.random.key(0), (*mixer.logit_shape(4), 100))
h = mixer.project(logits, 4)
print(f"shape {h.shape}, distance to the doubly stochastic matrices {mixer.distance(h).max():.1e}")

ends = [mixer.project(logits + shift, 4)[0, 0, 0] for shift in (-1e-2, 1e-2)]
slope = jax.grad(lambda logits: mixer.project(logits, 4)[0, 0, 0])(logits)[0, 0]
np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-2, rtol=1e-2)

# ## Use it
#
# In a network it stands where ours do; in a config its name does: `--config.plugins=my_module` and
# `--config.connection.mixer=share`, with `--config.connection.options=most=0.5`.
rule = jp.HyperConnectionFn(mixer, streams=4, width=8)
print(rule(rule.init(jax.random.key(1)), jp.expand(jnp.ones((3, 8)), 4), jnp.tanh).shape)
