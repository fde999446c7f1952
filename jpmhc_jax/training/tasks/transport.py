"""Maps between latent spaces as the trainer sees them: `model.kind=transport` over `data.kind=pairs`.

A batch holds source rows x, target rows y, whether row by row they are a known pair, and perhaps classes. A run goes
through the stages of `model.transport`: each has its loss weights, its ε and the learning rates of map, encoders and
head.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jpmhc_jax import transport
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import require
from jpmhc_jax.manifolds.retractions import settled
from jpmhc_jax.training.tasks import pair_losses, pair_model, pair_stages
from jpmhc_jax.training.tasks.base import Batch, Outputs, register_task, Sums, Task
from jpmhc_jax.training.tasks.pair_geometry import geometry, look, record
from jpmhc_jax.training.tasks.pair_model import PairModel
from jpmhc_jax.training.tasks.pair_prices import prices
from jpmhc_jax.training.tasks.pair_stages import Moment, PairCarry

COLLAPSED = (
  "the image shrinks, or spans few of the directions that both clouds have, and recall will fall; raise the weight of "
  "pairs, contrastive or isometry in this stage, lower its ε, set "
  "model.transport.debiased=True, or hold the encoders (source=0)"
)
LEAST_VALUE = 1e-30  # of a singular value in a log-volume
ENTRIES, PRODUCTS = 2**24, 2**31  # of Jacobians that are written out for a batch of held-out rows, and of their SVDs
FUSED = ("fused_recall@1", "fused_distortion")  # metrics of a map that a stage distils


@register_task("transport")
class MapBetweenSpaces(Task):
  """See `Task`. Loss and cosine are means over held-out rows; recall and geometry are of all of them together."""

  data_kinds = ("pairs",)
  per_example = ("loss", "cosine")
  main_metric, higher_is_better = "recall@1", True
  collected = ("source", "image", "target", "singular_values", "log_volume", "distortion", "label")
  judged = (
    "recall@1", "recall@5", "recall@10", "recall@1_back", "recall@5_back", "recall@10_back", "median_rank",
    "median_rank_back", "image_rank", "plan_entropy", "effective_support", "neighbour_overlap", "cka",
    "procrustes_distance", "dispersion", "log_volume", "log_volume_std", "distortion_mean", "nll",
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
      blind = known == 0 and not any(pair_stages.weighs(stage, loss) for loss in ("transport", "mmd", "task"))
      alone = stage.name == "align"
      words = "a positive weight: data.pairs.known=0 leaves no other loss"
      require(not (blind and alone), f"{name}.transport", stage_fields.transport, words)
      for loss in ("volume", "likelihood") if fields.map == "attention" else ():
        words = "0: an attention map may send a volume to 0"
        require(not pair_stages.weighs(stage, loss), f"{name}.{loss}", getattr(stage_fields, loss), words)
    held = pair_model.encoders(fields)
    averages = fields.bank > 0 and any(held.values())
    words = "0: only latents of encoders in a bank are averaged; set model.transport.bank and an encoder's workdir"
    require(fields.momentum == 0 or averages, "model.transport.momentum", fields.momentum, words)

  def outputs(self, config: schema.Config) -> Outputs:
    """With those of the map that a stage distils, and of the head that one trains."""
    used, plain = pair_stages.used(pair_stages.stages(config.model.transport)), super().outputs(config)
    if "distil" in used:
      plain = plain.extended(collected=("fused",), judged=FUSED)
    if "task" in used:
      answers = {"kept": ("truth", "answer", "confidence"), "collected": ("accuracy", "confidence")}
      plain = plain.extended(per_example=("accuracy",), judged=("calibration_error",), **answers)
    return plain

  def build(self, config: schema.Config, dataset: Any, rngs: nnx.Rngs) -> PairModel:
    """Encoders, map and head. Raises ConfigError for a weight of `task` without labels."""
    classes, listed = 0, pair_stages.stages(config.model.transport)
    used = pair_stages.used(listed)
    if "task" in used:
      stage = next(stage.name for stage in listed if pair_stages.weighs(stage, "task"))
      weight, words = getattr(config.model.transport, stage).task, "0: the source has no `labels`, whole numbers (n,)"
      require("labels" in dataset.element_spec, f"model.transport.{stage}.task", weight, words)
      classes = int(max(batch["labels"].max() for batch in dataset.evaluation_batches(256))) + 1
    return pair_model.build(config, dataset, rngs, classes, "distil" in used)

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
    """The new batch; the latents of the last one, by averaged encoders where there are some, go into the bank."""
    if not model.kept:
      return dataclasses.replace(carry, data=batch)
    return carry.pushed(*model.latents(carry.data, averaged=True), batch)

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
    used, fields = pair_stages.used(listed), config.model.transport
    values = pair_losses.losses(model, carry, fields, (x, image, y), epsilon, used, key)
    loss = sum((weights[name] * value for name, value in values.items()), jnp.zeros(()))
    alignment = sum((values[name] for name in ("pairs", "transport") if name in values), jnp.zeros(()))
    later = moment.later(listed, jax.lax.stop_gradient(alignment), max(config.evaluation.every, 1))
    shown = values | {"cosine": cosine, "epsilon": epsilon, "stage": moment.clock.stage.astype(jnp.float32)}
    count = len(image)
    sums = {name: value * count for name, value in ({"loss": loss} | shown).items()}
    return sums["loss"], (dataclasses.replace(carry, moment=later.spread(count)), sums)

  def adjust(self, params: Any, updates: Any, carry: PairCarry, config: schema.Config) -> Any:
    """Each group's learning rate is that of the stage, and the map stays on its set."""
    listed, clock = pair_stages.stages(config.model.transport), carry.moment.scalar().clock
    factors = {group: pair_stages.multiplier(listed, clock, group) for group in updates}
    scaled = {
      group: jax.tree.map(lambda leaf, factor=factors[group]: leaf * factor, part) for group, part in updates.items()
    }
    moved = {side: _averaged(params[side], scaled[side], config) for side in ("source", "target") if side in scaled}
    return scaled | moved | {"map": _on_their_sets(config, params["map"], scaled["map"], factors["map"])}

  def look(self, model: PairModel, carry: PairCarry, config: schema.Config) -> dict[str, Float[Array, ""]]:
    """Geometry of the batch under the map, and the alarm `map/collapsed`."""
    return look(model, carry.data, config)

  def predict(
    self, model: PairModel, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> dict[str, Array]:
    """Squared error and cosine of each pair; its latents, the image, and what the Jacobian does there."""
    x, y = model.latents(batch)
    image, (singular, volumes) = model.map(x), _of_jacobians(model.map, x)
    along = pair_losses.tangents(pair_losses.whole(x))
    predicted = {
      "loss": jnp.sum((image - y) ** 2, axis=1), "cosine": _cosines(image, y), "predictions": image,
      "source": x, "image": image, "target": y, "singular_values": singular, "log_volume": volumes,
      "distortion": transport.local_distortion(model.map, x, along, jax.random.key(0)),
      "label": batch.get("labels", jnp.zeros(len(x), jnp.int32)),
    }  # fmt: skip
    if model.fused is not None:
      predicted["fused"] = model.fused(x)
    if model.head is None:
      return predicted
    logits, truth = model.head(image), batch["labels"]
    answer = jnp.argmax(logits, axis=1).astype(jnp.int32)
    right = {"accuracy": (answer == truth).astype(jnp.float32), "truth": truth, "answer": answer}
    return predicted | right | {"confidence": jnp.max(jax.nn.softmax(logits, axis=1), axis=1)}

  def spaces(self, model: PairModel, batch: Batch) -> dict[str, Float[Array, "b d"]]:
    """The source and its image; rows of the target have ids of their own where pairs are not known."""
    x, _ = model.latents(batch)
    return {"source": x, "image": model.map(x)}

  def judge(
    self, model: PairModel, dataset: Any, arrays: Mapping[str, np.ndarray], config: schema.Config, step: int
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """Recall and geometry over all held-out pairs; the page's clouds and histograms, and at the end its prices."""
    judged: dict[str, Any] = {"latents": record(arrays)}
    if step >= config.steps:
      judged["cost"] = {"maps": prices(model, pair_model.known_pairs(dataset), arrays)}
    return geometry(arrays, config), judged


def _cosines(image: Float[Array, "b k"], y: Float[Array, "b k"]) -> Float[Array, " b"]:
  lengths = jnp.linalg.norm(image, axis=1) * jnp.linalg.norm(y, axis=1)
  return jnp.sum(image * y, axis=1) / jnp.maximum(lengths, 1e-12)


def _of_jacobians(
  function: transport.TransportMap, x: Float[Array, "b m"]
) -> tuple[Float[Array, "b r"], Float[Array, " b"]]:
  """Singular values and log-volume of the Jacobian at each row; NaN without a closed form, in rows beyond bounds."""
  rule, parameters = function.rule, function.parameters()
  values, volumes = rule.singular_values(parameters), rule.log_volumes(parameters, x)
  if values is not None:
    values = jnp.broadcast_to(values[None], (len(x), len(values)))
  else:
    entries = rule.source * rule.target
    rows = min(len(x), max(1, min(ENTRIES, PRODUCTS // rule.rank) // entries))
    written = jax.vmap(lambda row: transport.singular_values(function, row))(x[:rows])
    values = jnp.pad(written, ((0, len(x) - rows), (0, 0)), constant_values=jnp.nan)
  volumes = jnp.sum(jnp.log(values), axis=1) if volumes is None else volumes
  return values, jnp.maximum(volumes, rule.rank * math.log(LEAST_VALUE))


def _averaged(params: Any, updates: Any, config: schema.Config) -> Any:
  """With the step of an average of an encoder towards its network of today."""
  if "average" not in updates:
    return updates
  rate = 1 - config.model.transport.momentum
  step = lambda network, update, average: rate * (network + update - average)  # noqa: E731
  return updates | {"average": jax.tree.map(step, params["network"], updates["network"], params["average"])}


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
    return jax.lax.cond(short, lambda: settled(old + update) - old, lambda: update)

  frames = [name for name in updates if name.endswith("frame")]
  return updates | {name: back(params[name], updates[name]) for name in frames}
