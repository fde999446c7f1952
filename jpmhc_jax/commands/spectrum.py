"""jpmhc spectrum: what free probability says of a depth and a mixer before any run."""

import argparse
import dataclasses


@dataclasses.dataclass(frozen=True)
class Spectrum:
  name: str = "spectrum"
  help: str = "Predict the Jacobian's singular values for mixer families, depths and an activation; recommend a mixer."
  takes_overrides: bool = False
  computes: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    from jpmhc_jax.spectral import command

    command.add_arguments(parser)

  def run(self, options: argparse.Namespace) -> int:
    from jpmhc_jax.spectral import command

    return command.run(options)
