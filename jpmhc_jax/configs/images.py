"""Residual networks and vision transformers with streams, at published shapes and one small enough for a laptop.

  jpmhc train --config=images:tiny --workdir=runs/shapes
  jpmhc train --config=images:resnet20 --workdir=runs/cifar --config.data.images.folder=cifar-10-batches-bin
  jpmhc train --config=images:resnet50 --workdir=runs/imagenet --config.data.images.folder=/data/imagenet

Variants: tiny (ResNet-14 of width 8 on drawn shapes, 32×32), resnet20 and resnet56 (He et al.'s recipe for CIFAR, from
the files that you have), resnet18 and resnet50 (90 epochs of ImageNet, label smoothing 0.1), vit_s16 and vit_b16 (90
epochs of ImageNet at the shapes, with the schedule and the RandAugment of "Better plain ViT baselines", 2205.01580).
All have four streams with Cayley mixers and GroupNorm or RMSNorm: --config.connection.mixer=sinkhorn is another family,
--config.connection.streams=1 the plain network. Without the data, for --plan and for timing:
--config.data.images.folder= --config.data.images.builtin=noise
Expect of tiny: 61 % of 1,000 held-out pictures of ten shapes right after 400 steps (one seed), in 160 s of CPU time.
The others need accelerators and have not been run here; published: ResNet-20 91.3 %, ResNet-56 93.0 %, ResNet-18
69.8 %, ResNet-50 76.1 %, S/16 76.5 % without streams and, but for S/16, with BatchNorm.
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.sources import check_variant, Recipe

RECIPES = (
  Recipe(
    ("tiny",),
    "ResNet-14 with four streams on drawn 32×32 shapes",
    "160 s of CPU time",
    "61 % of 1,000 held-out shapes after 400 steps",
  ),
  Recipe(("resnet20", "resnet56"), "CIFAR-10 or CIFAR-100 from your files", "one GPU", "not run here"),
  Recipe(("resnet18", "resnet50"), "ImageNet from your folder, 90 epochs", "accelerators", "not run here"),
  Recipe(("vit_s16", "vit_b16"), "ImageNet from your folder, 90 epochs, mixup 0.2", "accelerators", "not run here"),
)
EPOCH = 1_281_167  # pictures of ImageNet to train on
_VIT = {"vit_s16": (384, 6), "vit_b16": (768, 12)}  # width, heads


def get_config(variant="tiny"):
  check_variant(variant, RECIPES)
  config = default()
  config.data.kind, config.model.kind, config.model.loss = "images", "resnet", "softmax"
  config.model.puzzle.width, config.model.recursion.max_steps = 0, 1
  config.optimizer.name, config.optimizer.ema = "sgd", 0.0
  if variant == "tiny":
    _tiny(config)
  elif variant in ("resnet20", "resnet56"):
    _cifar(config, int(variant[-2:]))
  else:
    _imagenet(config)
    if variant in _VIT:
      _transformer(config, *_VIT[variant])
    else:
      config.model.vision.depth = int(variant[-2:])
  return config


def _tiny(config):
  config.steps, config.batch_size = 400, 64
  config.data.images.builtin, config.data.images.mirror = "shapes", True
  config.data.epochs_per_interval = 10
  config.model.width, config.model.vision.depth, config.model.vision.order = 8, 14, "pre"
  config.optimizer.name, config.optimizer.schedule, config.optimizer.min_ratio = "adamw", "cosine", 0.0
  config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.weight_decay = 5e-3, 40, 1e-3
  config.evaluation.every, config.evaluation.batch_size, config.checkpoint.every = 200, 250, 200


def _cifar(config, depth):
  config.steps, config.batch_size = 64_000, 128
  config.data.images.folder = "cifar-10-batches-bin"
  config.data.images.shift, config.data.images.mirror, config.data.epochs_per_interval = 4, True, 20
  config.model.width, config.model.vision.depth = 16, depth
  config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.weight_decay = 0.1, 400, 1e-4
  config.optimizer.schedule = "step"
  config.optimizer.step_boundaries, config.optimizer.step_factors = (0.5, 0.75), (0.1, 0.01)
  config.evaluation.every, config.evaluation.batch_size, config.checkpoint.every = 4_000, 1000, 4_000


def _imagenet(config):
  config.batch_size, config.steps = 1024, 90 * EPOCH // 1024
  config.precision.compute = "bfloat16"
  config.data.images.folder, config.data.images.mirror = "imagenet", True
  config.data.epochs_per_interval, config.data.prefetch, config.data.workers = 1, 2, 8
  config.model.width, config.model.vision.form, config.model.vision.label_smoothing = 64, "imagenet", 0.1
  config.optimizer.learning_rate, config.optimizer.warmup_steps = 0.4, 5 * EPOCH // 1024
  config.optimizer.schedule, config.optimizer.min_ratio, config.optimizer.weight_decay = "cosine", 0.0, 5e-5
  config.evaluation.every, config.checkpoint.every = 12_510, 2_000
  config.logging.every, config.logging.diagnostics_every = 50, 1_000


def _transformer(config, width, heads):
  config.model.kind, config.model.positions, config.model.patch = "vit", "learned", 16
  config.model.layers, config.model.width, config.model.heads = 12, width, heads
  config.model.vision.label_smoothing, config.model.vision.mixup = 0.0, 0.2
  config.model.vision.randaugment, config.model.vision.magnitude = 2, 10.0
  config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay = "adamw", 1e-3, 0.1
  config.optimizer.beta2, config.optimizer.clip_norm, config.optimizer.warmup_steps = 0.999, 1.0, 10_000
