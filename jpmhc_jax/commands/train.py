"""jpmhc train: from a config to a trained model and its report."""

import argparse
import dataclasses
import pathlib
import sys

EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 75


@dataclasses.dataclass(frozen=True)
class Train:
  name: str = "train"
  help: str = "Train the model of a config, or resume it; evaluates, saves and writes report.html in the workdir."
  takes_overrides: bool = True
  computes: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="config file and variant, such as configs/arc_tiny.py:cayley")
    parser.add_argument(
      "--workdir", required=True, type=pathlib.Path, help="folder of the run; an existing run resumes"
    )
    parser.add_argument("--profile", default=None, metavar="START:STOP", help="trace these steps into workdir/profile")
    parser.epilog = "Any field is overridden as --config.optimizer.learning_rate=3e-4; `jpmhc describe` lists them."

  def run(self, options: argparse.Namespace) -> int:
    from jpmhc_jax.commands.session import open_run, processes_of
    from jpmhc_jax.core import config as configs
    from jpmhc_jax.core.errors import ConfigError
    from jpmhc_jax.reporting.report import write_report
    from jpmhc_jax.training import distributed, loop
    from jpmhc_jax.training.profiling import parse_window

    config = configs.load(options.config, options.overrides)
    if config.evaluation.ablation != "none":
      raise ConfigError(
        f"evaluation.ablation={config.evaluation.ablation!r}: an ablation is no evaluation to train by; expected "
        "'none'. Train first, then: jpmhc evaluate --workdir=… --config.evaluation.ablation=…"
      )
    profile = parse_window(options.profile) if options.profile else range(0)
    with processes_of(config):
      loop.claim_workdir(config, options.workdir)
      try:
        run = dataclasses.replace(open_run(config, options.workdir), profile=profile)
        loop.train(run, options.arguments)
      except loop.NonFiniteLossError as error:
        print(f"jpmhc train: {error}", file=sys.stderr)
        return EXIT_DIVERGED
      except loop.Interrupted as notice:
        print(f"jpmhc train: {notice}", file=sys.stderr)
        return EXIT_INTERRUPTED
      if distributed.is_primary():
        print(f"report: {write_report([options.workdir], options.workdir / 'report.html')}")
    return 0
