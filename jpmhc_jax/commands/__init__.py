"""The verbs of the command line, one module each; importing this package imports no JAX.

A command has `name`, `help`, `takes_overrides` (config fields on the command line), `computes` (runs steps),
`add_arguments(parser)` and `run(options) -> exit code`; `joins` says that several processes run it as one. Its heavy
imports stand inside `run`, so that `jpmhc --help` answers at once.
"""

from typing import Any

from jpmhc_jax.commands import (
  completion,
  configs,
  describe,
  evaluate,
  exchange,
  figures,
  generate,
  init,
  latents,
  launch,
  predict,
  report,
  score,
  spectrum,
  sweep,
  train,
)
from jpmhc_jax.core.errors import UserError

__all__ = ["COMMANDS", "tell_other_processes"]

COMMANDS = (
  train.Train(),
  evaluate.Evaluate(),
  predict.Predict(),
  score.Score(),
  sweep.Sweep(),
  generate.Generate(),
  report.Report(),
  figures.Figures(),
  configs.Configs(),
  exchange.Import(),
  exchange.Export(),
  describe.Describe(),
  spectrum.Spectrum(),
  latents.Latents(),
  launch.Launch(),
  init.Init(),
  completion.Completion(),
)


def tell_other_processes(command: Any, error: UserError) -> None:
  """Ends the other processes of a command that several run as one; see `distributed.refuse`."""
  if getattr(command, "joins", False):
    from jpmhc_jax.training.hosts import distributed

    distributed.refuse(error)
