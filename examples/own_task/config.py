"""How far diabetes goes in a year, by a network with four Cayley streams: the task and the data set of diabetes.py.

    jpmhc train --config=examples/own_task/config.py --workdir=runs/own_task
    jpmhc train --config=examples/own_task/config.py --workdir=runs/robust --config.model.regression.delta=0.1
    jpmhc describe --config=examples/own_task/config.py

Expect a squared error of 0.45 on the patients held out after 100 steps (1 is a guess of the mean), in 15 seconds on 2
CPU cores, and runs/own_task/report.html.
"""

import jpmhc_jax as jp


def get_config():
  config = jp.default_config()
  config.plugins = ("diabetes",)
  config.data.kind, config.model.kind = "diabetes", "regression"
  config.model.width, config.model.layers = 16, 3
  config.steps, config.batch_size = 100, 32
  config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "adamw", 1e-3, 10
  config.optimizer.ema = 0.9
  config.evaluation.every, config.checkpoint.every, config.logging.every = 25, 50, 10
  return config
