"""jpmhc evaluate: any checkpoint of a workdir, on the held-out examples."""

import argparse
import dataclasses

from jpmhc_jax.config import schema
from jpmhc_jax.core import arguments

_OPEN = ("evaluation", "mesh")  # groups of fields that do not belong to the run


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """The command `jpmhc evaluate`."""

  name: str = "evaluate"
  help: str = "Evaluate a checkpoint of a workdir (the latest by default) and write evaluation/step_N.json."
  takes_overrides: bool = True
  computes: bool = True
  joins: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--workdir", required=True, type=arguments.stored, help="folder of a run of `jpmhc train`")
    parser.add_argument(
      "--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest by default"
    )
    ablation = parser.add_argument_group("ablations", "what the network loses when a part of it is taken away")
    ablation.add_argument(
      "--ablation",
      default="none",
      help="what replaces the mixers: identity, mean or permutation (a shift by one stream); the results go to "
      "evaluation/ablation_…",
    )
    ablation.add_argument(
      "--layers",
      default="all",
      help="connections whose mixer is replaced: all, or names and patterns such as 'block0.tokens,block1.*'",
    )
    ablation.add_argument(
      "--wrong-puzzle",
      action="store_true",
      help="also evaluate with the puzzle identifiers permuted: wrong_puzzle/… in the same file",
    )
    parser.epilog = (
      "Fields of the evaluation are overridden as --config.evaluation.max_examples=100. The mesh of the run is fitted "
      "to the devices that are there; --config.mesh.fsdp=2 and its like choose another."
    )

  def run(self, options: argparse.Namespace) -> int:
    """Prints the metrics and where they are written; 0."""
    from jpmhc_jax import runs
    from jpmhc_jax.config import load as configs
    from jpmhc_jax.evaluation.ablations import Ablation
    from jpmhc_jax.training.hosts import distributed

    def asked(config: schema.Config) -> schema.Config:
      return configs.override(config, options.overrides, _OPEN)

    run = runs.load(options.workdir, options.step, change=asked)
    ablation = Ablation(options.ablation, options.layers, options.wrong_puzzle)
    result = run.evaluated(asked(run.config), ablation)
    if distributed.is_primary():
      for name, value in result.metrics.items():
        print(f"{name:28s} {value:.6g}")
      if ablation.mixer != "none":
        print(f"ABLATION: {ablation.mixer} mixer in connections {ablation.layers}")
      if result.coverage.partial:
        print(f"PARTIAL: {result.coverage}")
      print(f"written: {result.path}")
    return 0
