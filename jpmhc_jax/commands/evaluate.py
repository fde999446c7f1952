"""jpmhc evaluate: any checkpoint of a workdir, on the held-out examples."""

import argparse
import dataclasses
from typing import Any

from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import ConfigError

_OPEN = ("evaluation", "mesh")  # groups of fields that do not belong to the run


@dataclasses.dataclass(frozen=True)
class Evaluate:
  name: str = "evaluate"
  help: str = "Evaluate a checkpoint of a workdir (the latest by default) and write evaluation/step_N.json."
  takes_overrides: bool = True
  computes: bool = True
  joins: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, type=arguments.path, help="folder of a run of `jpmhc train`")
    parser.add_argument(
      "--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest by default"
    )
    parser.epilog = (
      "Fields of the evaluation are overridden as --config.evaluation.wrong_puzzle=True; a causal ablation as "
      "--config.evaluation.ablation=identity --config.evaluation.ablation_layers=block0.tokens. The mesh of the run is "
      "fitted to the devices that are there; --config.mesh.fsdp=2 and its like choose another."
    )

  def run(self, options: argparse.Namespace) -> int:
    from jpmhc_jax.commands.session import on_these_devices, open_run, processes_of, restore
    from jpmhc_jax.config import load as configs
    from jpmhc_jax.evaluation.evaluator import results_folder
    from jpmhc_jax.training.hosts import distributed

    recorded = configs.restore(options.workdir / "config.json")
    config = configs.override(recorded, options.overrides, _OPEN)
    _refuse_less(recorded.evaluation, config.evaluation)
    with processes_of(config, step=options.step):
      run = open_run(on_these_devices(recorded, options.overrides, _OPEN), options.workdir, trains=False)
      restored = restore(run, options.step)
      metrics = run.evaluate(restored.state, restored.step)
      if distributed.is_primary():
        for name, value in metrics.items():
          print(f"{name:28s} {value:.6g}")
        if config.evaluation.ablation != "none":
          print(f"ABLATION: {config.evaluation.ablation} mixer in connections {config.evaluation.ablation_layers}")
        coverage = run.dataset.coverage(config.evaluation.max_examples)
        if coverage.partial:
          print(f"PARTIAL: {coverage}")
        folder = results_folder(config.evaluation, options.workdir)
        print(f"written: {folder / f'step_{restored.step}{coverage.suffix}.json'}")
    return 0


def _refuse_less(recorded: Any, asked: Any) -> None:
  """Raises ConfigError for results that would take the place of the run's own and lack some of their metrics.

  recorded, asked: `schema.Evaluation` of the run and of this command.
  """
  if (asked.max_examples, asked.ablation) != (recorded.max_examples, recorded.ablation):
    return  # these have files of their own
  for name in ("pooled", "wrong_puzzle"):
    if getattr(recorded, name) and not getattr(asked, name):
      raise ConfigError(
        f"evaluation.{name}=False: the run records True, and evaluation/step_N.json would lose these metrics; leave "
        "the field out, or set evaluation.max_examples: an evaluation of a part has a file of its own"
      )
