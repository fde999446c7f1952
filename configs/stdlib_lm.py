"""A byte-level language model on the sources of Python's standard library: does depth pay, and which mixer bears it?

  jpmhc train --config=configs/stdlib_lm.py:tiny --workdir=runs/stdlib_lm
  jpmhc train --config=configs/stdlib_lm.py:depth_sinkhorn --workdir=runs/depth --config.model.layers=16

Variants: tiny (8 sub-layers, four Cayley streams), depth (50 sub-layers), and tiny_FAMILY, depth_FAMILY with FAMILY one
of trm (one stream: the plain transformer), cayley, sinkhorn, grassmann, iso, hybrid, identity, unconstrained. All share
one generator, norm and read/write form. A twentieth of the files is held out; the corpus is that of the running Python.

Expect of tiny: 2.86, 2.10 and 1.84 bits a byte of held-out files after 250, 500 and 1,000 steps (one seed; 3 minutes on
2 busy CPU cores).
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.variants import set_connection, VARIANTS
from jpmhc_jax.core.errors import check_choice

FAMILIES = (*VARIANTS, "hybrid")


def get_config(variant="tiny"):
  size, _, family = variant.partition("_")
  check_choice("variant", variant, [f"{s}{f}" for s in ("tiny", "depth") for f in ("", *(f"_{f}" for f in FAMILIES))])
  config = default()
  config.data.kind, config.data.epochs_per_interval = "text", 1
  config.model.kind, config.model.loss = "decoder", "softmax"
  set_connection(config, "iso" if family == "hybrid" else family or "cayley", published=False)
  if family == "hybrid":
    config.connection.mixer = "hybrid"
  config.model.layers = 4 if size == "tiny" else 25
  config.model.width, config.model.heads, config.model.mlp_multiple = 64, 4, 16
  config.model.puzzle.width, config.model.recursion.max_steps = 0, 1
  config.data.text.window = 128 if size == "tiny" else 64
  config.steps, config.batch_size = (1000, 32) if size == "tiny" else (300, 16)
  config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.ema = 3e-3, 50, 0.99
  config.evaluation.every, config.evaluation.batch_size, config.evaluation.max_examples = 250, 64, 1024
  config.checkpoint.every, config.logging.every = 500, 10
  return config
