"""How a run of this project is set: four streams, the mixer of my_mixer.py, the task and the data of my_task.py.

    jpmhc train --config=config.py --workdir=runs/first
    jpmhc train --config=config.py:cayley --workdir=runs/cayley --config.data.curve.frequency=8
    jpmhc report runs/first runs/cayley --out=both.html
    jpmhc describe --config=config.py

Variants: any family of `jpmhc describe --mixers`, and leak, which is this project's.
"""

import jpmhc_jax as jp


def get_config(variant="leak"):
  config = jp.default_config()
  config.plugins = ("my_mixer", "my_task")
  config.data.kind, config.model.kind = "curve", "fit"
  config.model.width, config.model.layers = 32, 4
  config.connection.mixer, config.connection.streams = variant, 4
  config.steps, config.batch_size = 300, 64
  config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "adamw", 3e-3, 20
  config.optimizer.ema = 0.95
  config.evaluation.every, config.checkpoint.every, config.logging.every = 100, 100, 10
  return config
