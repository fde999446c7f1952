"""Real ARC-AGI-1 tasks with small grids: the whole job, data to report, in minutes on a CPU.

  jpmhc train --config=arc_tiny:cayley --workdir=runs/arc_tiny

Variants: trm (no streams), cayley, sinkhorn, grassmann, iso, identity, unconstrained: the tasks of ARC-1 whose
grids fit 6×6 (46 training and 13 evaluation tasks; the demonstrations of all are trained on, the test pairs of the 46
are held out and scored). All share one generator, norm and read/write form, so that the mixer is all that differs.
demo: cayley on the 25 + 6 tasks whose grids fit 5×5, which is what `make demo` runs.
symbols: trm with a latent for every colour (`model.kind=trm_symbols`): half the width, attention, copies by the seven
symmetries of the grid only, and 650 steps, which are the 37 TFLOP of trm's 3,000.
Larger grids: --config.data.arc.canvas=10 --config.data.arc.max_side=10.
Expect of demo: pass@2 from 0.17 to 0.26 on the 25 held-out tasks after 1,200 steps (one seed, 16 votes a test input;
0.26 on one processor, 0.21 on another, 0.17 to 0.23 by earlier versions that round otherwise); 3 to 5 minutes on 2 CPU
cores (measured 2026-11-22, AMD EPYC and Intel Xeon, shared).
Expect of the others: pass@2 0.18 (trm), 0.28 (cayley), 0.24 (sinkhorn; 0.30 at step 2,800) on the 46 held-out tasks
after 3,000 steps, in 7 and 14 minutes on the Xeon: one seed, equal steps, a task is 0.02; that orders no families.
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.sources import check_variant, Recipe
from jpmhc_jax.config.variants import set_connection, VARIANTS

RECIPES = (
  Recipe(
    ("demo",),
    "ARC-1 tasks up to 5×5: what `make demo` runs",
    "3 to 5 min on 2 CPU cores",
    "pass@2 0.17 to 0.26 of 25 tasks",
  ),
  Recipe(("trm",), "ARC-1 tasks up to 6×6, one stream", "7 min on 2 CPU cores", "pass@2 0.18 after 3,000 steps"),
  Recipe(("cayley",), "the same with four streams", "14 min on 2 CPU cores", "pass@2 0.28 (a task is 0.02)"),
  Recipe(("sinkhorn",), "the same with four streams", "14 min on 2 CPU cores", "pass@2 0.24 (0.30 at step 2,800)"),
  Recipe(
    ("symbols",),
    "the same with one stream and a latent for every colour",
    "as many FLOPs as trm",
    "not run to the end here",
  ),
  Recipe(
    tuple(name for name in VARIANTS if name not in ("trm", "cayley", "sinkhorn")),
    "the same with every other family of mixers",
    "as cayley",
    "not measured",
  ),
)


def get_config(variant="cayley"):
  check_variant(variant, RECIPES)
  config = default()
  set_connection(config, {"demo": "cayley", "symbols": "trm"}.get(variant, variant), published=False)
  side = 5 if variant == "demo" else 6
  config.steps, config.batch_size = (1200 if variant == "demo" else 3000), 64
  config.data.kind = "arc"
  config.data.arc.canvas, config.data.arc.max_side = side, side
  config.data.arc.test_subset = "training"
  config.data.arc.augmentations, config.data.arc.evaluation_augmentations = 15, 15
  config.data.arc.translate = False
  config.model.width, config.model.heads, config.model.mlp_multiple = 96, 4, 32
  config.model.token_mixer, config.model.positions, config.model.loss = "mlp", "none", "softmax"
  config.model.puzzle.width, config.model.puzzle.slots = 96, 1
  config.model.recursion.outer, config.model.recursion.inner, config.model.recursion.max_steps = 2, 2, 2
  config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.ema = 2e-3, 100, 0.99
  config.evaluation.every, config.evaluation.batch_size = 400, 128
  config.checkpoint.every, config.logging.every = 400, 10
  if variant == "symbols":
    config.model.kind, config.model.width, config.model.puzzle.width = "trm_symbols", 48, 48
    config.model.token_mixer, config.model.positions = "attention", "rope"
    config.data.arc.recolour, config.data.arc.augmentations, config.data.arc.evaluation_augmentations = False, 7, 7
    config.steps, config.evaluation.every, config.checkpoint.every = 650, 325, 325
  return config
