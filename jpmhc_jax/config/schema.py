"""Every field of a run's configuration: name, type, default, meaning, bounds. Data only; nothing here computes.

A config file fills these in (`jpmhc_jax/configs`), `config.load` locks and checks them, `jpmhc describe` prints them.
The rest of the package receives the frozen dataclasses, so that a misspelt field is an error at import time of its
reader.
"""

import dataclasses

from jpmhc_jax.config.data_fields import ArcData, Data, ImageData, MazeData, PairData, SudokuData, TextData  # noqa: F401
from jpmhc_jax.config.transport_fields import Transport
from jpmhc_jax.config.vision_fields import Vision
from jpmhc_jax.core.fields import field, group
from jpmhc_jax.core.scalars import LARGEST_SEED


@dataclasses.dataclass(frozen=True)
class Mesh:
  data: int = field(-1, "devices along the batch axis, all slices together; -1 takes what the other axes leave", ge=-1)
  fsdp: int = field(1, "devices over which parameters and optimiser state are split, and the batch too", ge=1)
  tensor: int = field(1, "devices over which heads and feed-forward columns are split", ge=1)
  slices: int = field(
    1, "TPU slices or hosts that a slower network joins; only the data axis crosses between them", ge=1
  )


@dataclasses.dataclass(frozen=True)
class Processes:
  heartbeat_s: float = field(60.0, "several processes: seconds of silence after which one counts as dead", ge=1)
  start_timeout_s: float = field(300.0, "several processes: seconds in which all must have started", gt=0)


@dataclasses.dataclass(frozen=True)
class Precision:
  compute: str = field(
    "float32", "dtype of activations and matmul inputs; parameters are always float32", ("float32", "bfloat16")
  )
  matmul: str = field(
    "default", "XLA matmul precision; 'highest' is full float32 on accelerators", ("default", "high", "highest")
  )
  deterministic: bool = field(
    False, "two runs on the same devices are bit-equal on GPUs too (slower); TPUs and CPUs always are"
  )


@dataclasses.dataclass(frozen=True)
class Recursion:
  outer: int = field(3, "T: cycles a supervision step; only the last one is differentiated", ge=1)
  inner: int = field(4, "n: z_L updates in a cycle; of urm: loops in a cycle", ge=1)
  no_gradient_dtype: str = field(
    "same",
    "dtype of activations in the cycles without a gradient: same = precision.compute, bfloat16 = half of their memory "
    "traffic on accelerators",
    ("same", "bfloat16"),
  )
  max_steps: int = field(
    16, "supervision steps after which a sequence always halts (and the number used in evaluation)", ge=1
  )
  call_embedding: bool = field(
    False,
    "add a learned vector for each of the n + 1 calls of a cycle, or each of model.loops, to what that call is given; "
    "it starts at zero",
  )
  exploration: float = field(
    0.1, "probability that a sequence is told to take at least a random number of steps", ge=0, le=1
  )


@dataclasses.dataclass(frozen=True)
class Puzzle:
  width: int = field(
    512, "numbers learned for each puzzle identifier; zero-padded into the slots. 0 = no puzzle embedding", ge=0
  )
  slots: int = field(16, "sequence positions in front of the grid that hold the puzzle embedding", ge=1)


@dataclasses.dataclass(frozen=True)
class Model:
  kind: str = field(
    "trm",
    "the task: trm = Tiny Recursive Model, trm_symbols = TRM whose answer permutes with colours or digits, urm = "
    "Universal Reasoning Model, decoder = causal language model over data.kind=text, vit = vision transformer and "
    "resnet = residual network over data.kind=images, transport = map between latent spaces over data.kind=pairs, or "
    "one that a plugin registers",
  )
  width: int = field(512, "d: features of one stream; resnet: in the first stage", ge=1)
  heads: int = field(8, "attention heads", ge=1)
  layers: int = field(2, "blocks (two sub-layers each) of the recursive network, or of the transformer", ge=1)
  loops: int = field(
    1,
    "decoder, vit: times that the stack of layers is applied, with the same sub-layers; connection.sharing says "
    "whether the connections repeat too",
    ge=1,
  )
  patch: int = field(4, "vit: side in pixels of the squares that an image is cut into", ge=1)
  expansion: float = field(
    4.0, "SwiGLU expansion; inner width = round(expansion*d*2/3) up to a multiple of `mlp_multiple`", gt=0
  )
  convolution: int = field(
    0,
    "trm, urm: taps of a convolution over positions inside SwiGLU, each feature by itself (2 = this position and the "
    "one before, as published for urm); 0 = none",
    ge=0,
  )
  mlp_multiple: int = field(256, "SwiGLU inner width is rounded up to a multiple of this", ge=1)
  token_mixer: str = field("attention", "how positions exchange information", ("attention", "mlp"))
  positions: str = field("rope", "positional encoding", ("rope", "learned", "none"))
  rope_theta: float = field(10000.0, "base of the RoPE frequencies", gt=0)
  norm_epsilon: float = field(1e-5, "epsilon of the parameter-free RMSNorm, and of the norms of resnet", ge=0)
  loss: str = field("stablemax", "cross-entropy of the answer tokens", ("stablemax", "softmax"))
  recursion: Recursion = group(Recursion, "recursion and deep supervision")
  puzzle: Puzzle = group(Puzzle, "puzzle embedding")
  transport: Transport = group(Transport, "maps between latent spaces")
  vision: Vision = group(Vision, "networks over images")
  attention: str = field(
    "auto",
    "auto = on accelerators a fused kernel that stores no scores, where one takes the dtype; xla = formulas everywhere",
    ("auto", "xla"),
  )
  rematerialise: str = field(
    "products",
    "what the backward pass recomputes instead of storing: products = the streams and all else but the results of "
    "matrix products and the mixing coefficients, coefficients = all but the mixing coefficients, block = a whole "
    "block, call = a whole network call or loop, none = nothing",
    ("none", "products", "coefficients", "block", "call"),
  )


@dataclasses.dataclass(frozen=True)
class Connection:
  mixer: str = field("cayley", "family of the residual mixer H_res; `jpmhc describe --mixers` compares them")
  options: str = field(
    "",
    "options of the mixer, e.g. 'alpha=0.1' or 'sweeps=20,adjoint=unrolled'; families inside it carry their own in "
    "parentheses: 'first=iso(method=newton_schulz),second=sinkhorn', 'families=cayley(alpha=1)/sinkhorn'",
  )
  streams: int = field(4, "n: residual streams; 1 = the plain residual network", ge=1)
  segments: int = field(
    1,
    "m: parts the sub-layer's vector is cut into; a stream is d/m wide. 1 = hyper-connections (n copies of d), "
    "m = streams = fractional (d is split, not expanded), between = virtual width (m of n segments)",
  )
  sublayer: str = field(
    "whole",
    "of m segments: whole = a sub-layer's vector is all of them side by side, stream = it is one vector as wide as a "
    "stream, d/m, read from all and written to all (JPmHC's code ports: segments = streams, read_write=softmax); "
    "model.heads are then those of that width",
    ("whole", "stream"),
  )
  read_write: str = field(
    "sigmoid",
    "softmax = n x n stochastic matrices (JPmHC), sigmoid = vectors sigma and 2 sigma (mHC), "
    "softmax_read = softmax vector and 2 sigma, linear = the logits themselves (HC, virtual width)",
    ("softmax", "sigmoid", "softmax_read", "linear"),
  )
  temperature: float = field(1.0, "tau of the softmax read and write", gt=0)
  read_epsilon: float = field(0.0, "added to the sigmoid read; 1e-6 in DeepSeek-V4", ge=0)
  generator: str = field(
    "dynamic",
    "where the logits come from: static = learned bias, dynamic = bias + projection of the token, "
    "gated = bias + gate * projection",
    ("static", "dynamic", "gated"),
  )
  gate_init: float = field(0.01, "initial value of the gates of generator=gated")
  activation: str = field("none", "of the projected logits, before gate and bias; tanh in HC", ("none", "tanh"))
  bias: bool = field(True, "learn the bias of the logits; without it they keep their initial value")
  projection: str = field(
    "joint",
    "what the logits are projected from: joint = all streams together, per_stream = each stream alone, normed alone, "
    "by one map for all, gives its part of read and write and its row of the mixer's logits (HC)",
    ("joint", "per_stream"),
  )
  norm: str = field(
    "rmsnorm",
    "norm of the flattened streams in front of the projection; rmsnorm_per_stream norms each on its own (HC)",
    ("rmsnorm", "layernorm", "rmsnorm_per_stream", "none"),
  )
  norm_epsilon: float = field(1e-6, "epsilon of that norm; 1e-5 in the JPmHC code", ge=0)
  transpose: bool = field(
    False, "apply H^T, the convention of DeepSeek-V4, mHC-lite and lucidrains: out[m] = sum_k H[k, m] x[k]"
  )
  parameterisation: str = field(
    "logits",
    "logits = the mixer is a projection of logits; manifold = a matrix stored on the manifold, "
    "trained by Riemannian steps",
    ("logits", "manifold"),
  )
  init: str = field(
    "random",
    "how stream symmetry is broken: random = small random projection (generator=static, projection=per_stream: as "
    "round_robin), zero = not at all, round_robin = read bias by layer index",
    ("random", "zero", "round_robin"),
  )
  init_scale: float = field(
    0.02, "standard deviation of the logits that the random projection gives at the start", ge=0
  )
  identity_bias: float = field(
    4.0,
    "logit that pulls soft families (Birkhoff, permutation mixtures) towards the identity at the start, and the reads "
    "and writes of several segments towards their own segment",
  )
  expand: str = field(
    "copy",
    "how one vector becomes n streams: copies, copies times a learned vector each (scale), or a learned matrix each "
    "(linear)",
    ("copy", "scale", "linear"),
  )
  stream_embedding: bool = field(False, "add a learned vector to each stream after the expansion")
  reduce: str = field(
    "mean",
    "how n streams become one vector: mean, sum, learned = learned weights, head = weights sigma(Norm(vec x) W + b) "
    "a token (DeepSeek-V4)",
    ("mean", "sum", "learned", "head"),
  )
  implementation: str = field(
    "auto",
    "who computes reads, mixes and the generator's products: xla = plain JAX, pallas_gpu = Triton kernels for NVIDIA "
    "GPUs, mosaic_gpu = Mosaic kernels for those from Hopper on, pallas_tpu = Mosaic kernels for TPUs, auto = what was "
    "measured to be the fastest on the device, and xla where nothing was",
    ("auto", "xla", "pallas_gpu", "mosaic_gpu", "pallas_tpu"),
  )
  single_pass: str = field(
    "off",
    "one pass over the streams from a connection to the next, which takes the norm and the next coefficients' sums "
    "along: off = no; own = the same numbers; previous = coefficients of the streams in front of the connection "
    "before, so that the read joins the pass (DeepSeek-V4.1): another network",
    ("off", "own", "previous"),
  )
  scope: str = field(
    "carry",
    "carry = streams live in the recursion's state; call = expand and reduce inside each network call",
    ("carry", "call"),
  )
  sharing: str = field(
    "all",
    "of the calls of trm and urm and the loops of decoder and vit: all = every call applies the same connections, "
    "per_call = each of the n + 1 calls of a cycle, or each loop, has connections of its own, while the sub-layers "
    "stay the same (2604.21254); cycles repeat them, since only the last one learns; none = sub-layers of its own too, "
    "the control of an experiment",
    ("all", "per_call", "none"),
  )


@dataclasses.dataclass(frozen=True)
class MixerOptimizer:
  learning_rate_multiplier: float = field(1.0, "factor on the learning rate of the connections' parameters", ge=0)
  weight_decay: float = field(
    0.0, "decay of the connections' parameters; decay pulls Sinkhorn to the mean matrix", ge=0
  )
  clip_norm: float = field(0.0, "global-norm clip of the connections' gradients alone; 0 = none", ge=0)
  manifold_learning_rate: float = field(
    0.01, "step size of the Riemannian optimiser for parameterisation=manifold", ge=0
  )
  stabilize_every: int = field(100, "re-project manifold parameters every so many steps; 0 = never", ge=0)


@dataclasses.dataclass(frozen=True)
class PuzzleOptimizer:
  learning_rate: float = field(1e-2, "sign-SGD step for the rows of the puzzle table", ge=0)
  weight_decay: float = field(0.1, "decay of the rows that a step touches", ge=0)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  name: str = field(
    "adam_atan2",
    "optimiser of trunk and connections: adam_atan2, adam_atan2_lucidrains, adamw, lion, muon (matrices; Adam moves "
    "the rest), sgd (with momentum beta1), or one that a plugin registers",
  )
  learning_rate: float = field(1e-4, "peak learning rate", gt=0)
  beta1: float = field(0.9, "decay of the first moment", ge=0, lt=1)
  beta2: float = field(0.95, "decay of the second moment", ge=0, lt=1)
  weight_decay: float = field(0.1, "decoupled weight decay of the trunk, scaled by the learning rate", ge=0)
  clip_norm: float = field(0.0, "global-norm gradient clip; 0 = none", ge=0)
  schedule: str = field("constant", "learning rate after warm-up", ("constant", "cosine", "step"))
  warmup_steps: int = field(2000, "linear warm-up; step 1 uses learning_rate / warmup_steps", ge=0)
  min_ratio: float = field(1.0, "final learning rate of the cosine schedule as a fraction of the peak", ge=0)
  step_boundaries: tuple[float, ...] = field(
    (0.8, 0.9), "fractions of the run at which schedule=step changes the factor", ge=0, le=1, rising=True
  )
  step_factors: tuple[float, ...] = field((0.316, 0.1), "factors on the peak learning rate after each boundary", ge=0)
  ema: float = field(
    0.999, "decay of the parameter average that is evaluated; 0 = evaluate the raw parameters", ge=0, lt=1
  )
  ema_warmup: bool = field(
    True,
    "the average's decay rises to `ema` as (1 + step) / (10 + step), so that it does not lag in a short run; False = "
    "`ema` from the first step, as published for the Tiny Recursive Model",
  )
  nonfinite: str = field(
    "stop",
    "what a NaN or infinite loss or gradient does (the parameters never take it): stop = end the run with a diagnosis, "
    "skip = drop that update and go on, rollback = go back to the last checkpoint and skip the batches since",
    ("stop", "skip", "rollback"),
  )
  nonfinite_limit: int = field(
    10, "skipped steps in a row, or rollbacks to one checkpoint, after which the run stops", ge=1
  )
  mixer: MixerOptimizer = group(MixerOptimizer, "the connections' parameters")
  puzzle: PuzzleOptimizer = group(PuzzleOptimizer, "the puzzle embedding table")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  every: int = field(1000, "steps between checkpoints; 0 saves only after evaluations and at the end", ge=0)
  keep: int = field(2, "latest checkpoints kept, beside the best one", ge=0)
  best_metric: str = field(
    "", "evaluation metric whose best checkpoint is kept; empty chooses the data kind's main metric"
  )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  every: int = field(1000, "steps between evaluations; 0 evaluates only at the end", ge=0)
  batch_size: int = field(0, "examples a device batch in evaluation; 0 uses batch_size", ge=0)
  max_examples: int = field(
    0, "evaluate on the first so many held-out examples and mark the results as partial; 0 uses all", ge=0
  )
  unaveraged: str = field(
    "end",
    "when the parameters themselves are evaluated beside their average, as unaveraged/…, in a second pass",
    ("never", "end", "always"),
  )
  trajectories: int = field(
    1,
    "trm, urm: K supervision rollouts of every example, the first as always, the others with Gaussian noise on the "
    "reasoning latent at every supervision step; one of their answers is chosen",
    ge=1,
  )
  noise: float = field(
    0.1, "standard deviation of the noise of the trajectories; the latent's entries have a root mean square of 1", ge=0
  )
  choice: str = field(
    "halting",
    "which trajectory answers: halting = the one of the largest halting logit, vote = the answer that most give (ARC "
    "votes over its augmented copies instead)",
    ("halting", "vote"),
  )
  pooled: bool = field(True, "ARC: also report votes pooled over all evaluations of the run")
  save_every: int = field(100, "batches between saves of a running evaluation, which resumes there; 0 = never", ge=0)


@dataclasses.dataclass(frozen=True)
class Logging:
  every: int = field(10, "steps between metric lines and progress updates", ge=0)
  tensorboard: bool = field(True, "write TensorBoard events")
  wandb: bool = field(False, "log to Weights & Biases (needs the extra `wandb`)")
  wandb_project: str = field("", "W&B project; empty takes WANDB_PROJECT or W&B's own")
  wandb_group: str = field("", "W&B group; empty takes WANDB_RUN_GROUP, which a sweep sets to its folder's name")
  wandb_tags: tuple[str, ...] = field((), "tags of the W&B run")
  wandb_notes: str = field("", "notes of the W&B run")
  wandb_checkpoints: bool = field(False, "keep the best checkpoint as a W&B artefact at the end of the run")
  diagnostics_every: int = field(100, "steps between mixer diagnostics; 0 = never", ge=0)
  peak_tflops: float = field(
    0.0, "peak TFLOP/s of one device, for the model FLOP utilisation; 0 = the known peak of the device's kind", ge=0
  )


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int = field(0, "root of every random stream of the run", ge=0, le=LARGEST_SEED)
  steps: int = field(1000, "optimiser steps", ge=1)
  budget_seconds: float = field(
    0.0,
    "stop, evaluate and save after this much wall time (all starts together, compilation included); 0 = no limit",
    ge=0,
  )
  init_from: str = field(
    "",
    "workdir of another run, whose parameters this one starts from where names and shapes fit; optimizer and steps "
    "start anew",
    workdir=True,
  )
  batch_size: int = field(768, "global batch", ge=1)
  plugins: tuple[str, ...] = field(
    (),
    "modules that register tasks, data sets, optimisers and mixers of your own: installed, beside the config file, on "
    "PYTHONPATH",
  )
  plugin_folder: str = field("", "where plugins lie that are no installed package: the config file's folder", path=True)
  accumulation: int = field(1, "micro-batches a step; each keeps its own slice of the carry", ge=1)
  mesh: Mesh = group(Mesh, "device mesh")
  processes: Processes = group(Processes, "processes of one run on several hosts")
  precision: Precision = group(Precision, "dtypes")
  data: Data = group(Data, "data")
  model: Model = group(Model, "model")
  connection: Connection = group(Connection, "hyper-connections around every sub-layer")
  optimizer: Optimizer = group(Optimizer, "optimisers and schedule")
  checkpoint: Checkpoint = group(Checkpoint, "checkpoints")
  evaluation: Evaluation = group(Evaluation, "evaluation")
  logging: Logging = group(Logging, "what is written while training")
