"""A byte-level language model on the sources of Python's standard library: does depth pay, and which mixer bears it?

  jpmhc train --config=stdlib_lm:tiny --workdir=runs/stdlib_lm
  jpmhc train --config=stdlib_lm:depth_sinkhorn --workdir=runs/depth --config.model.layers=16
  jpmhc train --config=stdlib_lm:looped --workdir=runs/looped --config.connection.sharing=all

Variants: tiny (8 sub-layers, four Cayley streams), depth (50 sub-layers), looped (4 sub-layers, applied four times,
with connections and a vector of each loop's own), and tiny_FAMILY, depth_FAMILY, looped_FAMILY with FAMILY trm (one
stream: the plain transformer) or a family of `jpmhc describe --mixers`. All share one generator, norm and read/write
form. A twentieth of the files is held out; the corpus is that of the running Python.

Expect of tiny: 2.86, 2.10 and 1.84 bits a byte of held-out files after 250, 500 and 1,000 steps (one seed; 3 minutes on
2 busy CPU cores).
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.sources import check_variant, Recipe
from jpmhc_jax.config.variants import set_connection, VARIANTS

RECIPES = (
  Recipe(
    ("tiny",),
    "byte-level decoder on Python's standard library, 8 sub-layers",
    "3 min on 2 CPU cores",
    "1.84 bits a byte of held-out files after 1,000 steps",
  ),
  Recipe(tuple(f"tiny_{name}" for name in VARIANTS), "the same with other mixers", "as tiny", "not measured"),
  Recipe(
    ("looped", *(f"looped_{name}" for name in VARIANTS)),
    "a looped decoder: 4 sub-layers, applied four times, connections of each loop's own",
    "twice that of tiny",
    "not measured",
  ),
  Recipe(
    ("depth", *(f"depth_{name}" for name in VARIANTS)),
    "50 sub-layers: what experiments/isohc_depth trains",
    "300 steps",
    "perplexity 14 at 100 steps, 127 for unconstrained (3 seeds)",
  ),
)
_LAYERS = {"tiny": 4, "looped": 2, "depth": 25}


def get_config(variant="tiny"):
  size, _, family = variant.partition("_")
  check_variant(variant, RECIPES)
  config = default()
  config.data.kind, config.data.epochs_per_interval = "text", 1
  config.model.kind, config.model.loss = "decoder", "softmax"
  set_connection(config, family or "cayley", published=False)
  config.model.layers = _LAYERS[size]
  if size == "looped":
    config.model.loops, config.model.recursion.call_embedding = 4, True
    config.connection.sharing = "per_call" if config.connection.streams > 1 else "all"
  config.model.width, config.model.heads, config.model.mlp_multiple = 64, 4, 16
  config.model.puzzle.width, config.model.recursion.max_steps = 0, 1
  config.data.text.window = 64 if size == "depth" else 128
  config.steps, config.batch_size = (300, 16) if size == "depth" else (1000, 32)
  config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.ema = 3e-3, 50, 0.99
  config.evaluation.every, config.evaluation.batch_size, config.evaluation.max_examples = 250, 64, 1024
  config.checkpoint.every, config.logging.every = 500, 10
  return config
