"""What every recorded scalar means: its name in words, one sentence, which way is good, and its size of rounding."""

import dataclasses
import re
from typing import Literal

Better = Literal["lower is better", "higher is better", ""]
LOWER: Better = "lower is better"
HIGHER: Better = "higher is better"


@dataclasses.dataclass(frozen=True)
class Meaning:
  """Of one scalar. tolerance: values that lie no further apart are one value, up to rounding; None: a millionth."""

  title: str
  words: str = ""
  better: Better = ""
  tolerance: float | None = None


ROUNDING = 1e-5  # of float32 products of a few small matrices, with room
ANGLE = 0.05  # degrees: arccos turns a rounding of 1e-7 near 1 into 0.03

LEARNING = {
  "loss": Meaning("Loss", "What training minimises, mean over the batch.", LOWER),
  "lm_loss": Meaning("Loss of the answer", "Cross-entropy of the answer's tokens, without the halting term.", LOWER),
  "q_halt_loss": Meaning("Halting loss", "Cross-entropy of “this answer is right”, by which the model halts.", LOWER),
  "accuracy": Meaning("Accuracy", "Share of tokens, or of examples, that are right.", HIGHER),
  "exact_accuracy": Meaning("Exact accuracy", "Share of examples whose whole answer is right.", HIGHER),
  "q_halt_accuracy": Meaning("Halting accuracy", "Share of examples that halt exactly when they are right.", HIGHER),
  "byte_accuracy": Meaning("Byte accuracy", "Share of bytes whose likeliest prediction is right.", HIGHER),
  "bits_per_byte": Meaning("Bits per byte", "Cross-entropy in bits of one byte of text.", LOWER),
  "perplexity": Meaning("Perplexity", "e to the loss: choices between which the model still wavers.", LOWER),
  "calibration_error": Meaning("Calibration error", "Mean distance of confidence and accuracy, ten bins.", LOWER),
  "steps": Meaning("Supervision steps until halting", "Reasoning updates spent on an example."),
  "learning_rate": Meaning("Learning rate", "Of the main parameter group, after warm-up and decay."),
  "gradient_norm": Meaning(
    "Gradient norm", "Length of the whole gradient before clipping; spikes and growth are a warning."
  ),
  "layer_norm": Meaning(
    "Gradient norm", "Of one sub-layer; a steep profile means that depths train at different speeds."
  ),
}
COSTS = {
  "step_ms": Meaning("Step time (ms)", "Wall time of one training step, median since the record before.", LOWER),
  "diagnostics_ms": Meaning(
    "Diagnostics (ms a step)", "Time of all mixer diagnostics but the first, over the steps between them.", LOWER
  ),
  "examples_per_s": Meaning("Examples a second", "Batch size over step time.", HIGHER),
  "tflops_per_s": Meaning("TFLOP/s", "Model arithmetic a second, over all devices.", HIGHER),
  "mfu": Meaning("Share of the peak FLOP/s", "Model arithmetic over what the devices could do at most.", HIGHER),
  "host_peak_gib": Meaning("Host memory, peak (GiB)", "Most main memory that the process has held.", LOWER),
  "device_peak_gib": Meaning("Device memory, peak (GiB)", "Most memory that one device has held.", LOWER),
}
STREAMS = {
  "cosine": Meaning("Cosine", "Mean cosine of two streams of a token; at 1 they are copies.", LOWER, ROUNDING),
  "stream_cosine": Meaning("Stream cosine", "Mean cosine of two streams; at 1 they are copies.", LOWER, ROUNDING),
  "effective_rank": Meaning(
    "Effective rank", "Directions that the streams of a token span: 1 for copies, n at most.", HIGHER, ROUNDING
  ),
  "difference_energy": Meaning(
    "Difference energy", "Share of the energy in which the streams differ; at 0 they are copies.", HIGHER, ROUNDING
  ),
  "equal_streams": Meaning("Equal streams (alarm)", "1 when all streams are copies of each other.", LOWER),
}
MIXERS = {
  "singular_value": Meaning(
    "Singular values",
    "Of the mixer, mean over tokens: below 1 fades the streams, above 1 lets them grow.",
    tolerance=ROUNDING,
  ),
  "largest_singular_value": Meaning(
    "Largest singular value", "Over all tokens: above 1 the mixer amplifies.", tolerance=ROUNDING
  ),
  "smallest_singular_value": Meaning(
    "Smallest singular value", "Over all tokens: near 0 the mixer forgets a direction.", tolerance=ROUNDING
  ),
  "angle_deg": Meaning("Rotation angles (degrees)", "How far the mixer turns the streams; 0 leaves them.", "", ANGLE),
  "max_angle_deg": Meaning("Largest rotation angle (degrees)", "0 for the identity, 180 for a reflection.", "", ANGLE),
  "distance_to_set": Meaning(
    "Distance to the set", "How far mixers lie outside of their manifold; rounding alone gives 1e-6.", LOWER, ROUNDING
  ),
  "distance_to_identity": Meaning(
    "Distance to the identity", "Frobenius norm of H − I: how much is mixed at all.", "", ROUNDING
  ),
  "forward_gain": Meaning(
    "Forward gain",
    "Largest absolute row sum of the product of all mixers: bounds the growth of activations.",
    tolerance=ROUNDING,
  ),
  "backward_gain": Meaning(
    "Backward gain",
    "Largest absolute column sum of the product of all mixers: bounds the growth of gradients.",
    tolerance=ROUNDING,
  ),
  "composite_gain": Meaning("Composite gain", "Gain of the product of all mixers.", tolerance=ROUNDING),
}
ROUTING = {
  "read_dominance": Meaning("Read dominance", "Weight of the stream that is read most; 1/n reads all alike.", "", 1e-6),
  "write_dominance": Meaning(
    "Write dominance", "Weight of the stream that is written most; 1/n writes all alike.", "", 1e-6
  ),
  "routing_sensitivity": Meaning(
    "Routing sensitivity", "How strongly reads and writes answer their logits; near 0 they no longer learn.", HIGHER
  ),
  "mixer_sensitivity": Meaning(
    "Mixer sensitivity", "How strongly the mixer answers its logits; near 0 it no longer learns.", HIGHER
  ),
  "logit_saturation": Meaning("Logit saturation", "Share of logits that have no effect any more.", LOWER, 1e-6),
  "frozen_gradient": Meaning("Frozen gradient (alarm)", "1 when coefficients no longer answer their logits.", LOWER),
}
LATENTS = {
  "pairs": Meaning("Error of known pairs", "Mean squared distance of the image from its partner.", LOWER),
  "contrastive": Meaning("Contrastive loss", "Symmetric InfoNCE of known pairs in the batch, in nats.", LOWER),
  "transport": Meaning(
    "Transport", "Entropic cost of moving the image onto the target; 0 for equals if debiased.", LOWER
  ),
  "mmd": Meaning("Maximum mean discrepancy", "Between image and target, unbiased: 0 or less for equals.", LOWER),
  "likelihood": Meaning("NLL", "Negative log-likelihood of the source in the batch, in nats a dimension.", LOWER),
  "isometry": Meaning("Isometry penalty", "Estimate of Σ (σ² − 1)² over the Jacobian's singular values.", LOWER),
  "tangent": Meaning("Isometry along the data", "The same penalty in directions of nearest neighbours only.", LOWER),
  "volume": Meaning("Volume penalty", "Squared log-volume of the Jacobian.", LOWER),
  "task": Meaning("Loss of the head", "Cross-entropy of the classes, in nats.", LOWER),
  "distil": Meaning("Distillation", "Mean squared distance of the fused map from the map.", LOWER),
  "epsilon": Meaning("ε of transport", "Blur of the plan, in units of the mean cost."),
  "stage": Meaning("Stage", "0 for the first stage of the run."),
  "image_rank": Meaning("Effective rank of the image", "Directions that the image spans.", HIGHER),
  "source_rank": Meaning("Effective rank of the source", "Directions that the source latents span."),
  "target_rank": Meaning("Effective rank of the target", "Directions that the target latents span."),
  "image_spread": Meaning("Spread of the image", "Root mean square distance from its mean, over the target's."),
  "collapsed": Meaning("Collapsed (alarm)", "1 when the image shrinks, or spans few directions of both clouds.", LOWER),
  "median_rank": Meaning("Median rank", "Of the right partner among all held-out targets; 1 is right.", LOWER),
  "median_rank_back": Meaning("Median rank, back", "Of the right source among the images of all.", LOWER),
  "plan_entropy": Meaning("Plan entropy", "Of a row of the plan over log n: 0 names one partner, 1 none.", LOWER),
  "effective_support": Meaning("Effective support", "Partners between which a row of the plan wavers.", LOWER),
  "neighbour_overlap": Meaning("Neighbour overlap", "Share of nearest neighbours that the map keeps.", HIGHER),
  "cka": Meaning("CKA", "Linear centred kernel alignment of image and target; 1 for an isometry.", HIGHER),
  "procrustes_distance": Meaning("Procrustes distance", "What no rotation and scale can mend; 0 for none.", LOWER),
  "dispersion": Meaning("Dispersion", "Largest over smallest singular value of the Jacobian; 1 is an isometry.", LOWER),
  "log_volume": Meaning("Log-volume", "Sum of the logarithms of the Jacobian's singular values, mean over points."),
  "log_volume_std": Meaning("Spread of the log-volume", "Standard deviation over points.", LOWER),
  "nll": Meaning("NLL", "Negative log-likelihood of the held-out source, nats a dimension; image Gaussian.", LOWER),
  "fused_recall@1": Meaning("Recall@1 of the fused map", "Of the one matrix that a stage distils.", HIGHER),
  "fused_distortion": Meaning("Distortion of the fused map", "Its distance from the map over its spread.", LOWER),
  "distortion_mean": Meaning("Local distortion", "Length of the image of a small step along the data over its own."),
  "distortion_p5": Meaning("Local distortion, 5th percentile", "Steps along the data that shrink most."),
  "distortion_p50": Meaning("Local distortion, median", "Length of the image of a small step over its own."),
  "distortion_p95": Meaning("Local distortion, 95th percentile", "Steps along the data that grow most."),
}
RECORDS = {
  "examples": Meaning("Examples", "Held-out examples that the evaluation has looked at."),
  "augmentations_voted": Meaning("Augmentations voted", "Votes on a test input, mean over the inputs."),
  "count": Meaning("Count", "Examples of the batch that ended at this step, over which its means are taken."),
  "elapsed_s": Meaning("Elapsed (s)", "Wall time of all starts."),
  "compile_s": Meaning("Compilation (s)", "Wall time until the first step of a start had run.", LOWER),
  "eta_s": Meaning("Time left (s)", "Steps that remain times the step time."),
}
MEANINGS = LEARNING | COSTS | STREAMS | MIXERS | ROUTING | LATENTS | RECORDS | {"halt_loss": LEARNING["q_halt_loss"]}
# Of scalars that have one for each layer or activity, by the first part of the name.
GROUPS = {
  "gradient_norm": LEARNING["layer_norm"].words,
  "update_ratio": "Length of a layer's update over that of its parameters; 1e-3 is usual, near 1 nothing is kept.",
  "goodput": "Share of the wall time of all starts that went there; the shares sum to 1.",
}


def meaning(name: str) -> Meaning:
  """Of a scalar by its full name, such as train/loss or mixer/block0.tokens/angle_deg_1; its own words if unknown.

  >>> meaning("train/gradient_norm").title, meaning("evaluation/rmse").title
  ('Gradient norm', 'Rmse')
  """
  last = name.rsplit("/", 1)[-1]
  if entry := re.fullmatch(r"(singular_value|angle_deg)_(\d+)", last):
    whole = MEANINGS[entry[1]]
    title = {"singular_value": "Singular value {}", "angle_deg": "Rotation angle {} (degrees)"}[entry[1]]
    return dataclasses.replace(whole, title=title.format(entry[2]))
  if "pass@" in last:
    k = last.rpartition("@")[2]
    what = "test inputs" if "outputs/" in name else "tasks"
    return Meaning(name.removeprefix("evaluation/"), f"Share of {what} solved by one of the {k} best answers.", HIGHER)
  if match := re.fullmatch(r"recall@(\d+)(_back)?", last):
    way = "sources, from the image of each," if match[2] else "targets"
    words = f"Share of held-out pairs whose partner is among the {match[1]} nearest {way} by cosine."
    return Meaning(f"Recall@{match[1]}{', back' if match[2] else ''}", words, HIGHER)
  group, _, rest = name.partition("/")
  words = (rest or group).replace("_", " ").replace("/", ": ")
  return MEANINGS.get(last) or Meaning(words[:1].upper() + words[1:], GROUPS.get(group, ""))
