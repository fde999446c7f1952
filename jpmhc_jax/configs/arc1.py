"""ARC-AGI-1, the full recipes: a 7M Tiny Recursive Model on the 800 public tasks, 1,000 augmentations each.

  jpmhc train --config=arc1:cayley --workdir=runs/arc1_cayley

Variants: trm (the official model: 4 inner cycles, constant learning rate, everything decays), cayley, sinkhorn,
grassmann (the published JPmHC recipe: 4 streams, 6 inner cycles, step decay, clip 1.0, each with its paper's norm and
read/write form), iso, identity, unconstrained (the same recipe with the shared form), urm (the official Universal
Reasoning Model: one latent, 4 layers, 2 x 6 loops, twice the steps of trm).
Published (JPmHC, 960 tasks with ConceptARC): exact 31.4 / 27.9 / 12.8 and pass@2 45.4 / 41.7 / 31.2 for cayley /
sinkhorn / grassmann; TRM 44.6 pass@2. For that data: --config.data.arc.dataset=arc1concept
--config.data.arc.concept_folder=<ConceptARC/corpus>. None of this has been re-run here: it needs accelerators.
Cost: 306 TFLOP a step for trm, 428 with 6 inner cycles, 1.6e20–2.2e20 FLOP in all: about 3 days on 4 H100 for trm. One
80 GB GPU needs --config.accumulation=8 at batch 768 (`--plan --topology=h100`).
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.sources import check_variant, Recipe
from jpmhc_jax.config.variants import set_connection, VARIANTS

RECIPES = (
  Recipe(
    ("trm",),
    "ARC-AGI-1, the official 7M Tiny Recursive Model",
    "3 days on 4 H100",
    "not run here (published: pass@2 44.6)",
  ),
  Recipe(
    ("urm",),
    "ARC-AGI-1, the official 14M Universal Reasoning Model",
    "accelerators",
    "not run here (published: pass@1 53.8)",
  ),
  Recipe(
    ("cayley", "sinkhorn", "grassmann"),
    "the published JPmHC recipe, each family with its paper's form",
    "2.2e20 FLOP",
    "not run here (published: pass@2 45.4, 41.7, 31.2)",
  ),
  Recipe(
    tuple(name for name in VARIANTS if name not in ("trm", "cayley", "sinkhorn", "grassmann")),
    "the same recipe with the shared form",
    "2.2e20 FLOP",
    "not run here",
  ),
)


def get_config(variant="cayley"):
  config = default()
  config.steps = 518_000  # what 100,000 passes over the groups give (measured with the official sampler)
  config.batch_size = 768
  config.precision.compute = "bfloat16"
  config.data.kind = "arc"
  config.data.arc.dataset = "arc1"
  config.data.epochs_per_interval = 10_000
  config.data.prefetch = 4
  check_variant(variant, RECIPES)
  set_connection(config, "trm" if variant == "urm" else variant, published=True)
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 2000
  config.optimizer.weight_decay = 0.1
  config.optimizer.ema_warmup = False  # as published; it makes no difference after the first percent of the run
  if variant == "trm":
    config.model.recursion.inner = 4
    config.optimizer.mixer.weight_decay = 0.1
  elif variant == "urm":
    config.model.kind, config.model.layers, config.model.convolution = "urm", 4, 2
    config.model.recursion.outer, config.model.recursion.inner, config.model.puzzle.slots = 2, 6, 1
    config.optimizer.puzzle.learning_rate = 1e-4
    config.steps *= 2
  else:
    config.model.recursion.inner = 6
    config.optimizer.schedule = "step"
    config.optimizer.clip_norm = 1.0
  config.evaluation.every = 51_800
  config.checkpoint.every = 5_000
  config.logging.every = 50
  config.logging.diagnostics_every = 1_000
  return config
