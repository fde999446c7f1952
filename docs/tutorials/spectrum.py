"""Read a spectrum.

The singular values of a network's Jacobian say how gradients fare on their way back: far above 1 they explode, far
below they vanish. The law of a deep stack can be computed before anything is trained.
"""

import jax
import jax.numpy as jnp

import jpmhc_jax as jp

DEPTHS = (4, 12)

# ## Predict
#
# A layer is its mixer plus noise of strength σ, the sub-layer as a gradient sees it. `predict` solves the matrix Dyson
# equation for the product of all layers.
for depth in DEPTHS:
  for mixer in (jp.Cayley(), jp.Sinkhorn(), jp.Identity()):
    law = jp.spectral.predict(mixer, sigma=0.1, streams=4, depth=depth)
    name = type(mixer).__name__
    tail, median = law.quantile(0.1), law.quantile(0.5)
    print(f"{name:9s} depth {depth:2d}: top {law.top:.2f}, median {median:.2f}, lowest tenth {tail:.2f}")

# Rotations and the identity give one law: with independent noise nothing tells them apart. Doubly stochastic mixers
# drawn at random lose almost all differences of streams within four layers, which is their worst case; `draw="init"`
# takes mixers as a network starts, near the identity.

# ## Measure
#
# `measure` takes the Jacobian of any function at a point, by probes where it is large.
rule = jp.HyperConnectionFn(jp.Sinkhorn(), streams=4, width=16)
parameters = [rule.init(key) for key in jax.random.split(jax.random.key(0), DEPTHS[0])]
weights = jax.random.normal(jax.random.key(1), (DEPTHS[0], 16, 16)) / 40


def network(streams):
  for each, w in zip(parameters, weights, strict=True):
    streams = rule(each, streams, lambda u, w=w: jnp.tanh(u @ w))
  return streams


measured = jp.spectral.measure(network, jax.random.normal(jax.random.key(2), (4, 16)))
print(f"measured: top {measured.top:.2f}, median {measured.quantile(0.5):.2f}")

# ## What to make of it
#
# The spectrum is a warning, not a ranking: families whose laws differ train alike at a dozen layers in our experiments,
# and free mixers, whose top value grows with every layer, collapse at fifty. `jpmhc spectrum --workdir=runs/first`
# reads the mixers of a checkpoint and shows measured beside predicted.
