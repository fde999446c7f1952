"""Maps between latent spaces as the trainer sees them: `model.kind=transport` over `data.kind=pairs`.

A batch holds source rows x, target rows y, whether row by row they are a known pair, and perhaps classes. A run goes
through the stages of `model.transport`: each has its loss weights, its ε and the learning rates of map, encoders and
head.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np
import optax

from jpmhc_jax import transport
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import require
from jpmhc_jax.manifolds import Stiefel
from jpmhc_jax.training.tasks import pair_model, pair_stages
from jpmhc_jax.training.tasks.base import Batch, register_task, Sums, Task
from jpmhc_jax.training.tasks.pair_geometry import geometry, look, prices, record
from jpmhc_jax.training.tasks.pair_model import PairModel
from jpmhc_jax.training.tasks.pair_stages import Moment, PairCarry

COLLAPSED = (
  "the image shrinks, or spans few of the directions that both clouds have, and recall will fall; raise the weight of "
  "pairs, contrastive or isometry in this stage, lower its ε, set "
  "model.transport.debiased=True, or hold the encoders (source=0)"
)


@register_task("transport")
class MapBetweenSpaces(Task):
  """See `Task`. Loss and cosine are means over held-out rows; recall and geometry are of all of them together."""

  data_kinds = ("pairs",)
  per_example: tuple[str, ...] = ("loss", "cosine")
  main_metric, higher_is_better = "recall@1", True
  collected = ("source", "image", "target", "singular_values", "distortion", "label")
  judged = (
    "recall@1", "recall@5", "recall@10", "recall@1_back", "recall@5_back", "recall@10_back", "median_rank",
    "median_rank_back", "image_rank", "plan_entropy", "effective_support", "neighbour_overlap", "cka",
    "procrustes_distance", "dispersion", "log_volume", "log_volume_std", "distortion_mean",
  )  # fmt: skip
  alarms = {"collapsed": COLLAPSED}
  connected = False

  def check(self, config: schema.Config) -> None:
    """Raises ConfigError for a stage that has no loss with the pairs that are known, and for a bank of other sizes."""
    fields, known, listed = config.model.transport, config.data.pairs.known, pair_stages.stages(config.model.transport)
    require(config.batch_size >= 2, "batch_size", config.batch_size, "at least 2 rows: one point is no cloud")
    require(config.accumulation == 1, "accumulation", config.accumulation, "1: transport sees the batch as a whole")
    words = f"0 or a multiple of batch_size={config.batch_size}"
    require(fields.bank % config.batch_size == 0, "model.transport.bank", fields.bank, words)
    require(fields.high >= fields.low, "model.transport.high", fields.high, f"at least low={fields.low}")
    for stage in listed:
      name, stage_fields = f"model.transport.{stage.name}", getattr(fields, stage.name)
      contrast = pair_stages.weighs(stage, "contrastive")
      require(not contrast or known == 1, f"{name}.contrastive", stage_fields.contrastive, "0, or data.pairs.known=1")
      blind = known == 0 and not any(pair_stages.weighs(stage, loss) for loss in ("transport", "task"))
      alone = stage.name == "align"
      words = "a positive weight: data.pairs.known=0 leaves no other loss"
      require(not (blind and alone), f"{name}.transport", stage_fields.transport, words)
      volume = fields.map == "attention" and pair_stages.weighs(stage, "volume")
      require(not volume, f"{name}.volume", stage_fields.volume, "0: an attention map may send a volume to 0")
    pair_model.encoders(fields)
    if self._task_weight(config):
      self.per_example = ("loss", "cosine", "accuracy")
      self.kept = ("truth", "answer", "confidence")

  def _task_weight(self, config: schema.Config) -> bool:
    return any(pair_stages.weighs(stage, "task") for stage in pair_stages.stages(config.model.transport))

  def build(self, config: schema.Config, dataset: Any, rngs: nnx.Rngs) -> PairModel:
    """Encoders, map and head. Raises ConfigError for a weight of `task` without labels."""
    classes = 0
    if self._task_weight(config):
      words = "0 everywhere: the source file has no labels"
      require("labels" in dataset.element_spec, "model.transport.align.task", config.model.transport.align.task, words)
      classes = int(max(batch["labels"].max() for batch in dataset.evaluation_batches(256))) + 1
    return pair_model.build(config, dataset, rngs, classes)

  def initial_carry(self, model: PairModel, batch: Batch) -> PairCarry:
    """The batch at the first moment of the first stage, with banks of zeros."""
    rows, rule = len(batch["x"]), model.map.rule
    source, target = (
      jnp.zeros((rows, model.kept, d), jnp.float32) if model.kept else None for d in (rule.source, rule.target)
    )
    return PairCarry(batch, Moment.start(rows), source, target, jnp.full((rows,), -1, jnp.int32))

  def restart(self, model: PairModel, carry: PairCarry, batch: Batch) -> PairCarry:
    """The first carry at the moment of today: a step that is no number empties the bank, not the clock."""
    return dataclasses.replace(self.initial_carry(model, batch), moment=carry.moment)

  def refresh(self, model: PairModel, carry: PairCarry, batch: Batch) -> PairCarry:
    """The new batch; the latents of the last one go into the bank."""
    if not model.kept:
      return dataclasses.replace(carry, data=batch)
    return carry.pushed(*model.latents(carry.data), batch)

  def objective(
    self, model: PairModel, rows: Float[Array, "b w"] | None, carry: PairCarry, config: schema.Config,
    key: Key[Array, ""] | None,
  ) -> tuple[Float[Array, ""], tuple[PairCarry, Sums]]:  # fmt: skip
    """Weighted losses of the stage, and each of them unweighted."""
    listed = pair_stages.stages(config.model.transport)
    moment, known = carry.moment.scalar(), carry.data["paired"]
    x, y = model.latents(carry.data)
    image = model.map(x)
    cosine = jnp.sum(known * _cosines(image, y)) / jnp.maximum(jnp.sum(known), 1.0)
    weights, epsilon = pair_stages.now(listed, moment.clock, jnp.maximum(jax.lax.stop_gradient(cosine), 0.0))
    used = {loss for stage in listed for loss in pair_stages.LOSSES if pair_stages.weighs(stage, loss)}
    values = self._losses(model, carry, config, (x, image, y), epsilon, used, key)
    loss = sum((weights[name] * value for name, value in values.items()), jnp.zeros(()))
    alignment = sum((values[name] for name in ("pairs", "transport") if name in values), jnp.zeros(()))
    later = moment.later(listed, jax.lax.stop_gradient(alignment), max(config.evaluation.every, 1))
    shown = values | {"cosine": cosine, "epsilon": epsilon, "stage": moment.clock.stage.astype(jnp.float32)}
    count = len(image)
    sums = {name: value * count for name, value in ({"loss": loss} | shown).items()}
    return sums["loss"], (dataclasses.replace(carry, moment=later.spread(count)), sums)

  def _losses(
    self, model: PairModel, carry: PairCarry, config: schema.Config, clouds: tuple[Array, Array, Array],
    epsilon: Array, used: set[str], key: Key[Array, ""] | None,
  ) -> dict[str, Float[Array, ""]]:  # fmt: skip
    """Every loss that has weight in some stage."""
    (x, image, y), known, fields = clouds, carry.data["paired"], config.model.transport

    def isometry() -> Array:
      assert key is not None
      keys = jax.random.split(key, len(x))
      return jnp.mean(jax.vmap(lambda row, key: transport.isometry_estimate(model.map, row, key))(x, keys))

    def task() -> Array:
      assert model.head is not None
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model.head(image), carry.data["labels"]))

    losses = {
      "pairs": lambda: jnp.sum(known * jnp.sum((image - y) ** 2, axis=1)) / jnp.maximum(jnp.sum(known), 1.0),
      "contrastive": lambda: transport.contrastive(image, y, fields.temperature),
      "transport": lambda: _transport(model, carry, config, image, y, epsilon),
      "isometry": isometry,
      "volume": lambda: jnp.mean(_log_volumes(model.map, x) ** 2),
      "task": task,
    }
    return {name: loss() for name, loss in losses.items() if name in used}

  def adjust(self, params: Any, updates: Any, carry: PairCarry, config: schema.Config) -> Any:
    """Each group's learning rate is that of the stage, and the map stays on its set."""
    listed, clock = pair_stages.stages(config.model.transport), carry.moment.scalar().clock
    factors = {group: pair_stages.multiplier(listed, clock, group) for group in updates}
    scaled = {
      group: jax.tree.map(lambda leaf, factor=factors[group]: leaf * factor, part) for group, part in updates.items()
    }
    return scaled | {"map": _on_their_sets(config, params["map"], scaled["map"], factors["map"])}

  def look(self, model: PairModel, carry: PairCarry, config: schema.Config) -> dict[str, Float[Array, ""]]:
    """Geometry of the batch under the map, and the alarm `map/collapsed`."""
    return look(model, carry.data, config)

  def predict(
    self, model: PairModel, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> dict[str, Array]:
    """Squared error and cosine of each pair; its latents, the image, and what the Jacobian does there."""
    x, y = model.latents(batch)
    image = model.map(x)
    basis = transport.tangent_basis(x, neighbours=min(8, len(x) - 1), rank=min(4, len(x) - 1, x.shape[1]))
    predicted = {
      "loss": jnp.sum((image - y) ** 2, axis=1), "cosine": _cosines(image, y), "predictions": image,
      "source": x, "image": image, "target": y, "singular_values": _singular_values(model.map, x),
      "distortion": transport.local_distortion(model.map, x, basis, jax.random.key(0)),
      "label": batch.get("labels", jnp.zeros(len(x), jnp.int32)),
    }  # fmt: skip
    if model.head is None:
      return predicted
    logits, truth = model.head(image), batch["labels"]
    answer = jnp.argmax(logits, axis=1).astype(jnp.int32)
    right = {"accuracy": (answer == truth).astype(jnp.float32), "truth": truth, "answer": answer}
    return predicted | right | {"confidence": jnp.max(jax.nn.softmax(logits, axis=1), axis=1)}

  def judge(
    self, model: PairModel, arrays: Mapping[str, np.ndarray], config: schema.Config, step: int
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """Recall and geometry over all held-out pairs; the page's clouds and histograms, and at the end its prices."""
    cost = {"cost": {"maps": prices(model, arrays)}} if step >= config.steps else {}
    return geometry(arrays, config), {"latents": record(arrays)} | cost


def _cosines(image: Float[Array, "b k"], y: Float[Array, "b k"]) -> Float[Array, " b"]:
  lengths = jnp.linalg.norm(image, axis=1) * jnp.linalg.norm(y, axis=1)
  return jnp.sum(image * y, axis=1) / jnp.maximum(lengths, 1e-12)


def _transport(
  model: PairModel, carry: PairCarry, config: schema.Config, image: Array, y: Array, epsilon: Array
) -> Float[Array, ""]:
  """Between the batch with its bank, under the map of today, and the target with its own."""
  fields = config.model.transport
  solver = transport.EntropicTransport(cost=fields.cost, iterations=fields.sweeps, tolerance=0.0, start=0.0)
  weights = None
  if model.kept:
    weights = jnp.concatenate([jnp.ones(len(y)), carry.bank_weights()])
    weights = weights / jnp.sum(weights)
    moved = jax.lax.stop_gradient(model.map(carry.source.reshape(-1, carry.source.shape[2])))
    image = jnp.concatenate([image, moved])
    y = jnp.concatenate([y, carry.target.reshape(-1, y.shape[1])])
  cost = solver.divergence if fields.debiased else solver.value
  return cost(image, y, weights, weights, epsilon=epsilon)


def _log_volumes(function: transport.TransportMap, x: Float[Array, "b m"]) -> Float[Array, " b"]:
  """In closed form, or from the Jacobian at each row."""
  volumes = function.rule.log_volumes(function.parameters(), x)
  if volumes is not None:
    return volumes
  keys = jax.random.split(jax.random.key(0), len(x))
  return jax.vmap(lambda row, key: transport.log_volume(function, row, key)[0])(x, keys)


def _singular_values(function: transport.TransportMap, x: Float[Array, "b m"]) -> Float[Array, "b r"]:
  values = function.rule.singular_values(function.parameters())
  if values is not None:
    return jnp.broadcast_to(values[None], (len(x), len(values)))
  return jax.vmap(lambda row: transport.singular_values(function, row))(x)


def _on_their_sets(config: schema.Config, params: dict[str, Array], updates: dict[str, Array], factor: Array) -> Any:
  """Frames shortened by a factor stay on the Stiefel manifold; the kernel of a spectral map in its band."""
  if config.model.transport.map == "spectral":
    fields = config.model.transport
    m, k = params["kernel"].shape
    band = transport.SpectralMap(m, k, low=fields.low, high=fields.high)
    new = band.project({name: params[name] + updates[name] for name in params})
    return {name: new[name] - params[name] for name in params}

  def back(old: Array, update: Array) -> Array:
    short = (factor > 0) & (factor != 1)
    return jax.lax.cond(short, lambda: Stiefel().project(old + update) - old, lambda: update)

  frames = [name for name in updates if name.endswith("frame")]
  return updates | {name: back(params[name], updates[name]) for name in frames}
