"""What a map does to two clouds: diagnostics of a batch, metrics of all held-out pairs, and what the page draws."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax import transport
from jpmhc_jax.config import schema
from jpmhc_jax.training.tasks.pair_losses import tangents, whole
from jpmhc_jax.training.tasks.pair_model import PairModel

SHOWN = 150  # points of a cloud on the page
BINS = 24  # of a histogram
HISTOGRAMS = ("singular_values", "log_volume", "distortion")
PERCENTILES = (5, 50, 95)
NEIGHBOURS = 10
KEPT = 4  # significant digits on the page


def look(model: PairModel, batch: dict[str, Array], config: schema.Config) -> dict[str, Float[Array, ""]]:
  """map/… of a batch: effective ranks, plan, slopes of the map along the data, and the alarm map/collapsed."""
  latents = model.latents(batch)
  x, image, y = (whole(rows) for rows in (latents[0], model.map(latents[0]), latents[1]))
  ranks = {name: transport.effective_rank(rows) for name, rows in (("source", x), ("image", image), ("target", y))}
  share, least = config.model.transport.collapse, jnp.minimum(ranks["source"], ranks["target"])
  spread = _spread(image) / jnp.maximum(_spread(y), 1e-12)
  collapsed = (spread < share) | (ranks["image"] < share * (least - 1) + 1)  # ranks count from 1, a line
  slopes = transport.local_distortion(model.map, x, tangents(x), jax.random.key(0))
  entropy = _solver(config)(image, y).row_entropy()
  values = {
    **{f"{name}_rank": value for name, value in ranks.items()},
    "plan_entropy": jnp.mean(entropy),
    "effective_support": jnp.mean(len(y) ** entropy),
    "image_spread": spread,
    "collapsed": collapsed.astype(jnp.float32),
  }
  values |= {f"distortion_p{p}": jnp.percentile(slopes, p) for p in PERCENTILES}
  return {f"map/{name}": value for name, value in values.items()}


def _spread(rows: Float[Array, "n d"]) -> Float[Array, ""]:
  """Root mean square distance from the mean."""
  return jnp.sqrt(jnp.mean(jnp.sum((rows - jnp.mean(rows, axis=0, keepdims=True)) ** 2, axis=1)))


def _solver(config: schema.Config) -> transport.EntropicTransport:
  return transport.EntropicTransport(cost=config.model.transport.cost, epsilon=0.05, iterations=200)


@functools.partial(jax.jit, static_argnums=3)
def _of_pairs(
  x: Float[Array, "n m"], image: Float[Array, "n k"], y: Float[Array, "n k"], solver: transport.EntropicTransport
) -> dict[str, Array]:
  neighbours, entropy = min(NEIGHBOURS, len(x) - 1), solver(image, y).row_entropy()
  return transport.recall(image, y) | {
    "image_rank": transport.effective_rank(image),
    "neighbour_overlap": transport.neighbour_overlap(x, image, neighbours),
    "cka": transport.cka(image, y),
    "procrustes_distance": transport.procrustes_distance(image, y),
    "plan_entropy": jnp.mean(entropy),
    "effective_support": jnp.mean(len(y) ** entropy),
  }


def geometry(arrays: Mapping[str, np.ndarray], config: schema.Config) -> dict[str, float]:
  """Recall both ways, geometry of the image against both clouds, plan and Jacobian, over all held-out pairs."""
  clouds = (arrays[name] for name in ("source", "image", "target"))
  values = {name: float(value) for name, value in _of_pairs(*clouds, _solver(config)).items() if name != "cosine"}
  values |= _of_jacobians(arrays) | {"distortion_mean": float(arrays["distortion"].mean())}
  return values | _of_fused(arrays) | _of_head(arrays)


def _of_jacobians(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Dispersion, log-volume and likelihood, over the points at which each of them is known."""
  singular, volumes = arrays["singular_values"], arrays["log_volume"]
  written, known = np.isfinite(singular[:, 0]), np.isfinite(volumes)
  singular = np.maximum(singular[written].astype(np.float64), 1e-30)
  rows = jnp.asarray(arrays["image"][known]), jnp.asarray(arrays["target"]), jnp.asarray(volumes[known])
  nll = jax.jit(transport.negative_log_likelihood, static_argnums=3)(*rows, singular.shape[1])
  return {
    "dispersion": float((singular.max(axis=1) / singular.min(axis=1)).mean()),
    "log_volume": float(volumes[known].mean(dtype=np.float64)),
    "log_volume_std": float(volumes[known].std(dtype=np.float64)),
    "nll": float(nll),
  }


def _of_fused(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Of a map that a stage distils: its recall, and its distance from the map over the spread of the image."""
  if "fused" not in arrays:
    return {}
  image = arrays["image"]
  gap = np.sqrt(((arrays["fused"] - image) ** 2).mean() / np.maximum(image.var(axis=0).mean(), 1e-30))
  recalls = transport.recall(jnp.asarray(arrays["fused"]), jnp.asarray(arrays["target"]))
  return {"fused_recall@1": float(recalls["recall@1"]), "fused_distortion": float(gap)}


def _of_head(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Of a head that a stage trains: its expected calibration error."""
  if "confidence" not in arrays:
    return {}
  confidence, wrong = (jnp.asarray(each) for each in (arrays["confidence"], 1 - arrays["accuracy"]))
  answer_and_rest = jnp.stack([confidence, jnp.zeros_like(confidence)], axis=1)  # class 0 is the answer
  return {"calibration_error": float(transport.calibration_error(answer_and_rest, wrong.astype(jnp.int32)))}


def record(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """What the page draws: both clouds in two dimensions, and histograms."""
  return {
    "points": _points(arrays),
    "histograms": {name: _histogram(arrays[name]) for name in HISTOGRAMS},
  }


def _points(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The source along its own two main axes; image and target along those of the target; classes."""
  own, common = _axes(arrays["source"]), _axes(arrays["target"])
  clouds = {"source": own, "image": common, "target": common}
  points = {name: _rounded((arrays[name] - mean)[:SHOWN] @ axes) for name, (mean, axes) in clouds.items()}
  return points | {"labels": arrays["label"][:SHOWN].astype(int).tolist()}


def _axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  mean = rows.mean(axis=0)
  axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:2].T
  return mean, axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
  """Share of the values in each of `BINS` bins between their extremes, or around them where they are nearly equal."""
  finite = values[np.isfinite(values)].astype(np.float64)
  low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
  size = max(abs(low), abs(high), 1e-6)
  room = 0.05 * size if high - low < 0.05 * size else 0.0  # edges of finer bins have the same digits
  counts, edges = np.histogram(finite, BINS, (low - room, high + room))
  return {"edges": _rounded(edges), "shares": _rounded(counts / max(finite.size, 1))}


def _rounded(values: np.ndarray) -> Any:
  return np.vectorize(lambda value: float(f"{value:.{KEPT}g}"))(values).tolist()
