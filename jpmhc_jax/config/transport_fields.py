"""The fields of maps between latent spaces, a part of `config.schema`: name, type, default, meaning, bounds."""

import dataclasses

from jpmhc_jax.core.fields import field, group

MAPS = ("orthogonal", "linear", "spectral", "mlp", "flow", "attention")
_WEIGHT = "a number, or a schedule over the stage's steps: linear(1, 0), cosine(1, 0), decay(1, 0.1, rate=0.98)"
# Of fields whose default differs between stages.
_STEPS = "steps of the stage at most; 0 leaves it out, and the last stage lasts to the end"
_MAP = "factor on the learning rate of the map; 0 holds it"
_TRANSPORT = "weight of entropic transport from the image to the target"
_ISOMETRY = "weight of the isometry penalty of the Jacobian, two probes a row"
_FUSED = "the same of the fused map, which the loss `distil` trains"
_DISTIL = "weight of the mean squared distance of the fused map, one matrix, from the map, which stands still for it"
_EPSILON = "ε of transport in units of the mean cost"


@dataclasses.dataclass(frozen=True)
class AlignStage:
  steps: int = field(200, _STEPS, ge=0)
  patience: int = field(
    0, "the stage is over after so many windows of evaluation.every steps without a lower alignment loss; 0 = never",
    ge=0,
  )  # fmt: skip
  map: float = field(1.0, _MAP, ge=0)
  source: float = field(0.0, "the same of the source encoder", ge=0)
  target: float = field(0.0, "the same of the target encoder", ge=0)
  head: float = field(1.0, "the same of the head", ge=0)
  fused: float = field(0.0, _FUSED, ge=0)
  pairs: str = field("1", f"weight of the mean squared error of known pairs: {_WEIGHT}")
  contrastive: str = field("0", "weight of the symmetric InfoNCE of known pairs in the batch")
  transport: str = field("1", _TRANSPORT)
  mmd: str = field("0", "weight of the maximum mean discrepancy between image and target, Gaussian kernels")
  likelihood: str = field(
    "0", "weight of the negative log-likelihood, in nats a dimension: Gaussian image of the target's spread, log-volume"
  )
  isometry: str = field("0", _ISOMETRY)
  tangent: str = field("0", "weight of the same penalty in the leading directions of the neighbours of each row")
  volume: str = field("0", "weight of the squared log-volume of the Jacobian")
  task: str = field("0", "weight of the cross-entropy of a linear head on the image; takes labels")
  distil: str = field("0", _DISTIL)
  epsilon: str = field("decay(1, 0.05, rate=0.98)", _EPSILON)


@dataclasses.dataclass(frozen=True)
class JointStage(AlignStage):
  map: float = field(0.1, _MAP, ge=0)
  source: float = field(1.0, "the same of the source encoder", ge=0)
  target: float = field(1.0, "the same of the target encoder", ge=0)
  transport: str = field("linear(1, 0)", _TRANSPORT)
  isometry: str = field("linear(0.01, 0)", _ISOMETRY)
  epsilon: str = field("0.05", _EPSILON)


@dataclasses.dataclass(frozen=True)
class FinalStage(JointStage):
  steps: int = field(0, _STEPS, ge=0)
  transport: str = field("0", _TRANSPORT)
  isometry: str = field("0", _ISOMETRY)


@dataclasses.dataclass(frozen=True)
class DistilStage(FinalStage):
  map: float = field(0.0, _MAP, ge=0)
  source: float = field(0.0, "the same of the source encoder", ge=0)
  target: float = field(0.0, "the same of the target encoder", ge=0)
  head: float = field(0.0, "the same of the head", ge=0)
  fused: float = field(1.0, _FUSED, ge=0)
  pairs: str = field("0", "weight of the mean squared error of known pairs")
  distil: str = field("1", _DISTIL)


@dataclasses.dataclass(frozen=True)
class Transport:
  map: str = field("orthogonal", "the map from the source to the target space", MAPS)
  init: str = field(
    "fit",
    "fit = closed form from known pairs, where the map has one; random = as the map is drawn",
    ("fit", "random"),
  )
  scaled: bool = field(True, "learn the scale of an orthogonal map")
  low: float = field(0.5, "spectral: least singular value", gt=0)
  high: float = field(2.0, "spectral: largest singular value", gt=0)
  couplings: int = field(2, "flow: affine couplings, on the smaller side", ge=1)
  hidden: int = field(64, "flow: units of a coupling's network", ge=1)
  anchors: int = field(64, "attention: pairs (key, value)", ge=1)
  cost: str = field("sqeuclidean", "cost of transport", ("sqeuclidean", "cosine"))
  debiased: bool = field(True, "transport is the Sinkhorn divergence, zero for equal clouds; False = ⟨P, C⟩ + ε KL")
  sweeps: int = field(30, "Sinkhorn iterations a step", ge=1)
  bank: int = field(0, "rows of both clouds kept for transport, a multiple of batch_size; 0 = none", ge=0)
  momentum: float = field(
    0.0, "decay of an average of each encoder over steps, whose latents go into the bank; 0 = the encoder itself",
    ge=0, lt=1,
  )  # fmt: skip
  probed: float = field(
    0.5, "share of the rows of a batch at which isometry and tangent are estimated, without bias", gt=0, le=1
  )
  temperature: float = field(0.1, "of the contrastive loss", gt=0)
  collapse: float = field(
    0.5,
    "alarm where the image has less than this share of the target's spread, or of both clouds' directions",
    gt=0,
    lt=1,
  )
  source_run: str = field("", "workdir of the encoder whose inputs are the source rows; empty = latents", workdir=True)
  source_layer: str = field("", "its connection whose streams are the latents, such as block3.features")
  target_run: str = field("", "workdir of the encoder whose inputs are the target rows; empty = latents", workdir=True)
  target_layer: str = field("", "its connection whose streams are the latents")
  align: AlignStage = group(AlignStage, "first stage: the map alone")
  joint: JointStage = group(JointStage, "second stage: all, the map slowly, with the Jacobian's penalties")
  final: FinalStage = group(FinalStage, "third stage")
  distil: DistilStage = group(DistilStage, "last stage: the map, held, is distilled into one matrix")
