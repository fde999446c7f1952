"""The losses of a batch by name, unweighted: those to which a stage of `model.transport` gives weights."""

from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import optax

from jpmhc_jax import transport
from jpmhc_jax.config.transport_fields import Transport
from jpmhc_jax.core import sharding
from jpmhc_jax.training.tasks.pair_model import PairModel
from jpmhc_jax.training.tasks.pair_stages import PairCarry

NEIGHBOURS, DIRECTIONS = 8, 4  # of the tangent directions of a cloud
Clouds = tuple[Float[Array, "b m"], Float[Array, "b k"], Float[Array, "b k"]]  # source, its image, target


def losses(
  model: PairModel, carry: PairCarry, fields: Transport, clouds: Clouds, epsilon: Any, used: Set[str],
  key: Key[Array, ""] | None,
) -> dict[str, Float[Array, ""]]:  # fmt: skip
  """Those that are used in some stage, means over the batch; `key` draws the probes of Jacobians.

  Those that compare every row with every other see the clouds `whole`.
  """
  (x, image, y), known = clouds, carry.data["paired"]

  def probed(basis: Array | None) -> Array:
    assert key is not None
    draw = jax.random.fold_in(key, 0 if basis is None else 1)
    return transport.isometry_penalty(model.map, x, draw, share=fields.probed, basis=basis)

  def likelihood() -> Array:
    return transport.negative_log_likelihood(image, y, log_volumes(model.map, x), model.map.rule.rank)

  def task() -> Array:
    assert model.head is not None
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model.head(image), carry.data["labels"]))

  def distil() -> Array:
    assert model.fused is not None
    fixed, rows = jax.lax.stop_gradient((image, x))
    return jnp.mean(jnp.sum((model.fused(rows) - fixed) ** 2, axis=1))

  makers = {
    "pairs": lambda: jnp.sum(known * jnp.sum((image - y) ** 2, axis=1)) / jnp.maximum(jnp.sum(known), 1.0),
    "contrastive": lambda: transport.contrastive(whole(image), whole(y), fields.temperature),
    "transport": lambda: _transport(model, carry, fields, image, y, epsilon),
    "mmd": lambda: transport.mmd(whole(image), whole(y)),
    "likelihood": likelihood,
    "isometry": lambda: probed(None),
    "tangent": lambda: probed(tangents(whole(x))),
    "volume": lambda: jnp.mean(log_volumes(model.map, x) ** 2),
    "task": task,
    "distil": distil,
  }
  return {name: make() for name, make in makers.items() if name in used}


def whole(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
  """The rows on every device, gathered once: Sinkhorn's iterations over rows that are split exchange sums in each."""
  return sharding.constrain(rows, None, None)


def tangents(x: Float[Array, "b m"]) -> Float[Array, "b m r"]:
  """The leading directions around each point of a batch."""
  most = len(x) - 1
  return transport.tangent_basis(x, neighbours=min(NEIGHBOURS, most), rank=min(DIRECTIONS, most, x.shape[1]))


def log_volumes(function: transport.TransportMap, x: Float[Array, "b m"]) -> Float[Array, " b"]:
  """In closed form, or from the Jacobian at each row."""
  volumes = function.rule.log_volumes(function.parameters(), x)
  if volumes is not None:
    return volumes
  keys = jax.random.split(jax.random.key(0), len(x))
  return jax.vmap(lambda row, key: transport.log_volume(function, row, key)[0])(x, keys)


def _transport(
  model: PairModel, carry: PairCarry, fields: Transport, image: Array, y: Array, epsilon: Any
) -> Float[Array, ""]:
  """Between the batch with its bank, under the map of today, and the target with its own."""
  solver = transport.EntropicTransport(cost=fields.cost, iterations=fields.sweeps, tolerance=0.0, start=0.0)
  weights = None
  if model.kept:
    weights = jnp.concatenate([jnp.ones(len(y)), carry.bank_weights()])
    weights = weights / jnp.sum(weights)
    moved = jax.lax.stop_gradient(model.map(carry.source.reshape(-1, carry.source.shape[2])))
    image = jnp.concatenate([image, moved])
    y = jnp.concatenate([y, carry.target.reshape(-1, y.shape[1])])
  cost = solver.divergence if fields.debiased else solver.value
  return cost(whole(image), whole(y), weights, weights, epsilon=epsilon)
