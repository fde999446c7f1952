"""Fields of networks over images, a part of `config.schema`: name, type, default, meaning, bounds."""

import dataclasses

from jpmhc_jax.core.fields import field


@dataclasses.dataclass(frozen=True)
class Vision:
  form: str = field(
    "cifar",
    "resnet: cifar = 3x3 stem and three stages of width, 2 width, 4 width; imagenet = 7x7 stem, max pool and four "
    "stages",
    ("cifar", "imagenet"),
  )
  depth: int = field(
    20, "resnet: layers with weights, 6k + 2 of form=cifar; 18, 34, 50, 101 or 152 of form=imagenet", ge=8
  )
  order: str = field(
    "post",
    "resnet: post = norm behind each convolution and ReLU behind the sum, as published and in torchvision; pre = norm "
    "and ReLU in front of each convolution, nothing behind the sum, so that the streams are carried linearly",
    ("post", "pre"),
  )
  norm: str = field(
    "group",
    "resnet: group = each image, stream and group of features by itself; batch = over all positions and images of the "
    "batch, in evaluation with running averages",
    ("group", "batch"),
  )
  group: int = field(
    16, "features of a group of norm=group; of a width that it does not divide, the largest common divisor", ge=1
  )
  momentum: float = field(0.9, "share of the running averages of norm=batch that a step keeps", ge=0, lt=1)
  change: str = field(
    "shared",
    "resnet: the streams where a stage changes width or resolution: shared = all go through one shortcut, unmixed; "
    "reduce = they become their mean, and n copies of the result go on",
    ("shared", "reduce"),
  )
  streams: tuple[int, ...] = field(
    (),
    "resnet: streams of each stage behind the first, which has connection.streams; empty = as many in all. Where their "
    "number changes a learned matrix with orthonormal columns or rows mixes them",
  )
  scales: tuple[int, ...] = field(
    (),
    "vit: streams begin in turn from squares of so many times model.patch around their position, each by an embedding "
    "of its own, such as (1, 2); empty = all from the patch",
  )
  pooling: str = field(
    "mean",
    "vit: what the class is read from: mean = all patches, token = a learned position in front",
    ("mean", "token"),
  )
  drop_path: float = field(
    0.0,
    "stochastic depth: probability that training leaves the last sub-layer out; it rises linearly from 0",
    ge=0,
    lt=1,
  )
  label_smoothing: float = field(0.0, "share of the target that training spreads over all classes evenly", ge=0, lt=1)
  mixup: float = field(
    0.0, "training blends each image and its class with another by a share from Beta(a, a) of this a; 0 = never", ge=0
  )
  cutmix: float = field(
    0.0,
    "training pastes a box of another image, whose area follows Beta(a, a), and mixes the classes by it; 0 = never. "
    "With mixup too, each step draws one of the two",
    ge=0,
  )
  randaugment: int = field(
    0, "RandAugment: operations that training draws for each image, one after the other; 0 = none", ge=0
  )
  magnitude: float = field(9.0, "of the operations of RandAugment", ge=0, le=10)
