"""jpmhc train: from a config to a trained model and its report."""

import argparse
import dataclasses
import os
from typing import Any

from jpmhc_jax.core import arguments
from jpmhc_jax.core.terminal import fail

EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 75


@dataclasses.dataclass(frozen=True)
class Train:
  """The command `jpmhc train`, and `jpmhc train --plan`."""

  name: str = "train"
  help: str = "Train the model of a config, or resume it; evaluates, saves and writes report.html in the workdir."
  takes_overrides: bool = True
  computes: bool = True
  joins: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
      "--config", type=arguments.line, required=True, help="config file and variant, such as configs/arc_tiny.py:cayley"
    )
    parser.add_argument("--workdir", type=arguments.path, help="folder of the run; an existing run resumes")
    parser.add_argument(
      "--profile",
      type=arguments.line,
      default=None,
      metavar="START:STOP",
      help="trace these steps into workdir/profile",
    )
    plan = parser.add_argument_group("planning, instead of training")
    plan.add_argument("--plan", action="store_true", help="compile the step and print what it needs; nothing is run")
    plan.add_argument(
      "--memory",
      type=arguments.number(0, above=True),
      default=0.0,
      metavar="GIB",
      help="memory of one device, if not known",
    )
    plan.add_argument(
      "--devices", type=arguments.whole(1, 4096), default=0, help="plan with so many CPU devices in place of those here"
    )
    plan.add_argument(
      "--topology",
      type=arguments.line,
      default=None,
      metavar="NAME",
      help="plan for TPUs elsewhere, as v5e:4x4 (needs libtpu), or GPUs, as h100:8 (needs jax[cuda13])",
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.epilog = "Any field is overridden as --config.optimizer.learning_rate=3e-4; `jpmhc describe` lists them."

  def run(self, options: argparse.Namespace) -> int:
    """0 when it is done, 3 where the loss became NaN or infinite, 75 after SIGTERM or Ctrl-C."""
    from jpmhc_jax.config import load as configs
    from jpmhc_jax.core.errors import ConfigError

    config = configs.load(options.config, options.overrides)
    if options.plan:
      return self._plan(config, options)
    planning = [name for name in ("memory", "devices", "topology", "json") if getattr(options, name)]
    if planning:
      raise ConfigError(f"--{planning[0]}: expected --plan beside it, which trains nothing; or leave it out to train")
    if options.workdir is None:
      raise ConfigError("--workdir is missing: the folder that the run is kept in, such as --workdir=runs/first")

    from jpmhc_jax import runs
    from jpmhc_jax.training.hosts import distributed
    from jpmhc_jax.training.telemetry import parse_window

    profile = parse_window(options.profile, config.steps) if options.profile else range(0)
    try:
      run = runs.train(config, options.workdir, profile=profile, command=["jpmhc", *options.arguments])
    except runs.NonFiniteLossError as error:
      return fail(self.name, error, EXIT_DIVERGED)
    except runs.Interrupted as notice:
      return fail(self.name, notice, EXIT_INTERRUPTED)
    if distributed.is_primary():
      print(f"report: {run.workdir / 'report.html'}")
    return 0

  def _plan(self, config: Any, options: argparse.Namespace) -> int:
    from jpmhc_jax.commands.plan import show_plan
    from jpmhc_jax.core.errors import ConfigError
    from jpmhc_jax.core.launch import add_xla_flag

    if options.devices and options.topology:
      raise ConfigError(f"--devices={options.devices}, --topology={options.topology}: expected one of them")
    if options.devices or options.topology:
      os.environ["JAX_PLATFORMS"] = "cpu"
    if options.devices:
      add_xla_flag(f"--xla_force_host_platform_device_count={options.devices}")
    return show_plan(
      config,
      memory_gib=options.memory,
      topology=options.topology or "",
      as_json=options.json,
      workdir=options.workdir,
    )
