"""jpmhc launch: a run on SLURM, on Cloud TPUs, on GKE, or as several processes of this machine."""

import argparse
from collections.abc import Sequence
import dataclasses

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.launch import commands, gke, local, slurm, tpu

LAUNCHERS = {"slurm": slurm, "tpu": tpu, "gke": gke, "local": local}
LOOKS = ("logs", "status", "stop", "delete")  # options that start no run


@dataclasses.dataclass(frozen=True)
class Launch:
  """The command `jpmhc launch PLACE … -- ARGUMENTS OF jpmhc train`."""

  name: str = "launch"
  help: str = "Start a run on SLURM, Cloud TPUs or GKE, or as several processes here; --dry-run prints the commands."
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares a parser a place."""
    places = parser.add_subparsers(dest="place", required=True, metavar="PLACE")
    for name, launcher in LAUNCHERS.items():
      summary, _, text = (launcher.__doc__ or "").partition("\n")
      place = places.add_parser(
        name, help=summary, description=f"{summary}\n{text}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
      )  # fmt: skip
      launcher.add_arguments(place)
      commands.add_arguments(place)
      place.set_defaults(launcher=launcher)

  def run(self, options: argparse.Namespace) -> int:
    """Prints or runs the commands of the place; the exit code of the first that failed.

    Raises ConfigError for a run without a folder, which would wait for its machines and then refuse to start.
    """
    if not any(getattr(options, name, False) for name in LOOKS):
      _check_run(options.train)
    code: int = options.launcher.run(options)
    return code


def _check_run(words: Sequence[str]) -> None:
  given = {word.partition("=")[0] for word in words}
  for name, example in (("--config", "arc1:cayley"), ("--workdir", "/shared/runs/arc1")):
    if name not in given:
      raise ConfigError(f"{name} is missing behind --, where the arguments of the run stand: {name}={example}")
