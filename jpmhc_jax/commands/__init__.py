"""The verbs of the command line, one module each; importing this package imports no JAX.

A command has `name`, `help`, `takes_overrides` (config fields on the command line), `computes` (runs steps),
`add_arguments(parser)` and `run(options) -> exit code`. Its heavy imports
stand inside `run`, so that `jpmhc --help` answers at once.
"""

from jpmhc_jax.commands import describe, evaluate, report, spectrum, sweep, train

COMMANDS = (
  train.Train(),
  evaluate.Evaluate(),
  sweep.Sweep(),
  report.Report(),
  describe.Describe(),
  spectrum.Spectrum(),
)
