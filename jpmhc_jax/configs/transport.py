"""A map between two latent spaces of scikit-learn's digits: from all pairs, from 5 % of them, or of your own files.

  jpmhc train --config=transport:paired --workdir=runs/map
  jpmhc train --config=transport --workdir=runs/mine --config.data.pairs.source=a.npz --config.data.pairs.target=b.npz

Variants: paired knows the partner of every training row, few of 5 % of them, the others are two clouds; flow is paired
with a coupling flow before the orthogonal map; staged aligns a random linear map by transport and 20 % of the pairs,
then tunes it slowly. Files of latents come from `jpmhc latents`. Without files two random networks of 48 and 64
features see the digits, and 359 are held out; Procrustes on all pairs (`jp.transport.OrthogonalMap.fit`) has recall@1
85.2 % there, and ridge regression 93.9 %.
"""

from jpmhc_jax.config.load import default
from jpmhc_jax.config.sources import check_variant, Recipe

RECIPES = (
  Recipe(
    ("paired",),
    "linear map between two latent spaces, all pairs known",
    "20 s on 2 CPU cores",
    "recall@1 93.9 % of 359 held out after 400 steps",
  ),
  Recipe(
    ("staged",),
    "linear map, aligned by transport and 20 % of the pairs, then tuned",
    "30 s on 2 CPU cores",
    "recall@1 76.6 %, then 82.5 %",
  ),
  Recipe(("few",), "orthogonal map from 5 % of the pairs and the two clouds", "30 s on 2 CPU cores", "recall@1 70.2 %"),
  Recipe(("flow",), "coupling flow and orthogonal map, all pairs known", "50 s on 2 CPU cores", "recall@1 91.6 %"),
)


def get_config(variant="paired"):
  check_variant(variant, RECIPES)
  config = default()
  config.data.kind, config.model.kind, config.connection.streams = "pairs", "transport", 1
  config.steps, config.batch_size = 400, 64
  config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "adamw", 1e-2, 10
  config.optimizer.schedule, config.optimizer.min_ratio = "cosine", 0.01
  config.optimizer.weight_decay, config.optimizer.ema = 0.0, 0.0
  config.evaluation.every, config.evaluation.batch_size = 100, 120
  config.checkpoint.every, config.logging.every, config.logging.diagnostics_every = 200, 10, 50
  transport = config.model.transport
  transport.map = {"few": "orthogonal", "flow": "flow"}.get(variant, "linear")
  transport.align.transport = transport.joint.transport = transport.joint.isometry = "0"
  transport.align.steps = config.steps
  transport.joint.steps = 0
  if variant == "staged":
    transport.map, transport.init, config.data.pairs.known = "linear", "random", 0.2
    transport.align.steps, transport.align.transport, transport.align.epsilon = 100, "1", "decay(1, 0.1, rate=0.95)"
    transport.joint.steps, transport.joint.transport = 300, "linear(0.3, 0)"
    transport.joint.isometry, transport.joint.epsilon = "linear(0.001, 0)", "0.1"
  if variant == "few":
    config.data.pairs.known, transport.bank = 0.05, 128
    transport.align.transport = "0.3"
  return config
