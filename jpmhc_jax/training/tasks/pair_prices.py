"""The page's table of maps: the run's, its fused forms, and baselines fitted to known pairs, by recall and price."""

from collections.abc import Callable, Mapping
from typing import Any
import warnings

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from jpmhc_jax import transport
from jpmhc_jax.training.tasks.pair_model import LEAST, PairModel
from jpmhc_jax.transport.maps import Parameters

ANCHORS = 512  # pairs that an entropic map or a relative representation holds
RIDGE = 0.05  # of the mean variance of a feature
BLUR = 0.02  # ε of an entropic map, in units of the mean cost
OTT, RELATIVE = "entropic map of ott-jax", "relative representations"
Held = tuple[transport.MapRule, Parameters]


def prices(
  model: PairModel, known: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
  """Recall@1, distortion from the run's map, milliseconds and FLOPs of each map on the held-out source rows.

  An entropic map is the one of a plan between the Procrustes image of the known pairs and their target, ours and that
  of ott-jax, which has a `note` in place of numbers where it is not installed; relative representations are cosines to
  known pairs on both sides, which are no map into the target space: no distortion.
  """
  x, y = jnp.asarray(arrays["source"]), jnp.asarray(arrays["target"])
  pairs = _latents(model, known) if len(known["x"]) >= LEAST else None
  maps = _of_the_run(model, x) | ({} if pairs is None else _baselines(*pairs))
  functions = {name: transport.compiled(*held) for name, held in maps.items()}
  if pairs is not None:
    functions |= _others(*pairs, maps["Procrustes"])
  images, costs = transport.timed(functions, x)
  first = next(iter(images.values()))
  spread = jnp.sqrt(jnp.mean((first - jnp.mean(first, axis=0, keepdims=True)) ** 2))
  rows: dict[str, dict[str, Any]] = {}
  recall_of = jax.jit(transport.recall)
  for name, image in images.items():
    into = name != RELATIVE
    recall = recall_of(image, y if into else _relative(y, pairs[1] if pairs else y))["recall@1"]
    distortion = {"distortion": float(jnp.sqrt(jnp.mean((image - first) ** 2)) / spread)} if into else {}
    rows[name] = {"recall@1": float(recall)} | distortion | costs[name]
  missing = pairs is not None and OTT not in rows
  return rows | ({OTT: {"note": "not installed; pip install 'jpmhc-jax[ott]'"}} if missing else {})


def _latents(model: PairModel, known: Mapping[str, np.ndarray]) -> tuple[Array, Array]:
  """Of the known pairs, on this process alone, however the run's arrays are laid out."""
  graph, state = nnx.split(model)
  local: PairModel = nnx.merge(graph, jax.tree.map(np.asarray, state))
  return local.latents({name: jnp.asarray(known[name]) for name in ("x", "y")})


def _of_the_run(model: PairModel, x: Array) -> dict[str, Held]:
  """The map, its best affine and orthogonal forms on the held-out points, and the one that a stage has distilled."""

  def held(function: transport.TransportMap) -> Held:
    return function.rule, {name: jnp.asarray(np.asarray(value)) for name, value in function.parameters().items()}

  own = held(model.map)
  maps: dict[str, Held] = {"as trained": own}
  rule, linear = own[0], transport.LinearMap(model.map.rule.source, model.map.rule.target)
  for kind in ("affine", "orthogonal"):
    folded = jax.jit(lambda parameters, x, kind=kind: transport.fuse(rule, parameters, x, kind)[1])
    maps[f"fused, {kind}"] = linear, folded(own[1], x)
  return maps | ({} if model.fused is None else {"fused, distilled in training": held(model.fused)})


def _baselines(x: Array, y: Array) -> dict[str, Held]:
  """Fitted to known pairs in closed form, and the entropic map behind Procrustes."""
  m, k = x.shape[1], y.shape[1]
  orthogonal, ridge = transport.OrthogonalMap(m, k), transport.LinearMap(m, k, RIDGE)
  entropic = transport.BarycentricMap(k, k, points=min(len(y), ANCHORS))
  solver = transport.EntropicTransport(epsilon=BLUR, iterations=200)

  @jax.jit
  def fitted(x: Array, y: Array) -> tuple[dict[str, Array], ...]:
    aligned = orthogonal.fit(x, y)
    solved = entropic.fit(orthogonal(aligned, x)[:ANCHORS], y[:ANCHORS], solver)
    return aligned, solved, ridge.fit(x, y)

  aligned, solved, regressed = fitted(x, y)
  chain = transport.Chain.of(orthogonal, entropic)
  parts = {f"part{i}_{name}": value for i, part in enumerate((aligned, solved)) for name, value in part.items()}
  return {"Procrustes": (orthogonal, aligned), "ridge": (ridge, regressed), "entropic map": (chain, parts)}


def _others(x: Array, y: Array, procrustes: Held) -> dict[str, "jax.stages.Wrapped"]:
  """Baselines that are no rules: relative representations, and ott-jax's entropic map where it is installed."""
  functions: dict[str, jax.stages.Wrapped] = {RELATIVE: jax.jit(lambda rows: _relative(rows, x))}
  rule, parameters = procrustes
  if (entropic := ott_map(rule(parameters, x)[:ANCHORS], y[:ANCHORS])) is not None:
    functions[OTT] = jax.jit(lambda rows: entropic(rule(parameters, rows)))
  return functions


def ott_map(x: Array, y: Array) -> Callable[[Array], Array] | None:
  """The entropic map of ott-jax between two clouds of one space, for any rows of it; None where it is not installed."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", DeprecationWarning)  # of jaxopt, at its import
      from ott.geometry import pointcloud
      from ott.problems.linear import linear_problem
      from ott.solvers.linear import sinkhorn
  except ModuleNotFoundError:
    return None
  with jax.numpy_rank_promotion("allow"):  # ott-jax broadcasts, whatever the caller has set
    problem = linear_problem.LinearProblem(pointcloud.PointCloud(x, y, epsilon=BLUR, relative_epsilon="mean"))
    entropic: Callable[[Array], Array] = sinkhorn.Sinkhorn()(problem).to_dual_potentials().transport

  def image(rows: Array) -> Array:
    with jax.numpy_rank_promotion("allow"):
      return entropic(rows)

  return image


def _relative(rows: Array, anchors: Array) -> Array:
  """Cosines to anchors."""
  unit = [p / jnp.maximum(jnp.linalg.norm(p, axis=1, keepdims=True), 1e-12) for p in (rows, anchors[:ANCHORS])]
  return unit[0] @ unit[1].T
