"""jpmhc train: from a config to a trained model and its report; with --plan, what its step needs and what would fit."""

import argparse
import dataclasses
import os
import pathlib
import sys
from typing import Any

from jpmhc_jax.config import schema
from jpmhc_jax.core import arguments
from jpmhc_jax.core.files import storing, to_json, write_atomically
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
      "--config",
      type=arguments.line,
      required=True,
      help="config and variant: one of `jpmhc configs`, as sudoku:tiny, or path/to/file.py:variant",
    )
    parser.add_argument("--workdir", type=arguments.stored, help="folder of the run; an existing run resumes")
    parser.add_argument(
      "--init-from",
      type=arguments.stored,
      default=None,
      metavar="WORKDIR",
      help="start from the parameters of this run, where names and shapes fit (the field init_from)",
    )
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

    source = [f"--config.init_from={options.init_from}"] if options.init_from else []
    config = configs.load(options.config, [*options.overrides, *source])
    if options.plan:
      return self._plan(config, options)
    planning = [name for name in ("memory", "devices", "topology", "json") if getattr(options, name)]
    if planning:
      raise ConfigError(f"--{planning[0]}: expected --plan beside it, which trains nothing; or leave it out to train")
    if options.workdir is None:
      raise ConfigError("--workdir is missing: the folder that the run is kept in, such as --workdir=runs/first")

    print(f"starting {options.config} in {options.workdir}", flush=True)  # JAX and all else take seconds to import
    from jpmhc_jax import runs
    from jpmhc_jax.training.telemetry import parse_window

    profile = parse_window(options.profile, config.steps) if options.profile else range(0)
    try:
      runs.train(config, options.workdir, profile=profile, command=["jpmhc", *options.arguments])
    except runs.NonFiniteLossError as error:
      return fail(self.name, error, EXIT_DIVERGED)
    except runs.Interrupted as notice:
      return fail(self.name, notice, EXIT_INTERRUPTED)
    return 0

  def _plan(self, config: Any, options: argparse.Namespace) -> int:
    from jpmhc_jax.core.errors import ConfigError
    from jpmhc_jax.core.process import add_xla_flag

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


def show_plan(
  config: schema.Config, *, memory_gib: float, topology: str, as_json: bool, workdir: pathlib.Path | None
) -> int:
  """Prints the plan (JSON with `as_json`), writes workdir/plan.json when there is a workdir; returns 0.

  `topology`: the devices to compile for when they are not those here (see `training.plan.devices_of`).
  """
  from jpmhc_jax import data
  from jpmhc_jax.models import connections
  from jpmhc_jax.training.plan import devices_of, make_plan
  from jpmhc_jax.training.tasks import task_of

  connections.check(config)
  devices = devices_of(topology, config.mesh.slices) if topology else None
  task_of(config)  # what cannot work is found before the data is built
  dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
  plan = make_plan(
    config, dataset, int(memory_gib * 2**30) or None, devices, lambda line: print(line, file=sys.stderr, flush=True)
  )
  text = to_json(as_values(plan), indent=2)
  if workdir:
    with storing(str(workdir / "plan.json")):
      workdir.mkdir(parents=True, exist_ok=True)
      write_atomically(workdir / "plan.json", text + "\n")
  print(text if as_json else "\n".join(lines(plan)))
  return 0


def as_values(plan: Any) -> dict[str, Any]:
  """The plan as plain JSON values; bytes are those of one device."""
  values = dataclasses.asdict(plan) | {"fits": plan.fits}
  values["need"]["total"] = plan.need.total
  for written, change in zip(values["changes"], plan.changes, strict=True):
    written["need"]["total"] = change.need.total
  return values


def lines(plan: Any) -> list[str]:
  """The plan for people."""
  need = plan.need
  axes = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
  shown = [f"{plan.parameters:,} parameters on {axes} ({plan.device_kind}); compiled in {need.compile_s:.1f} s"]
  shown += [f"  {name:24s} {_size(size)}" for name, size in need.state.items() if size]
  shown += [f"  {'activations, temporaries':24s} {_size(need.temporaries)}", f"  {'program':24s} {_size(need.code)}"]
  shown += [f"  {'one device':24s} {_size(need.total)}{_verdict(plan)}"]
  shown += [f"attention: {plan.attention}"] if plan.attention else []
  again = need.executed_flops / need.model_flops
  shown += [f"{need.model_flops:.4g} FLOPs a step over all devices, ×{again:.2f} with what is recomputed"]
  if need.compiler_flops is not None:
    shown += [f"  (XLA's count on one device, loop bodies once: {need.compiler_flops:.4g})"]
  if plan.changes:
    shown += ["it does not fit; measured for each change:"]
  for change in plan.changes:
    fields = " ".join(f"--config.{name}={value}" for name, value in change.fields.items())
    extra = change.need.executed_flops / need.executed_flops
    fits = "fits" if change.need.fits(plan.memory) else "does not fit"
    shown += [f"  {_size(change.need.total)}  {fits:12s}  operations ×{extra:.2f}  {fields}"]
  return shown


def _verdict(plan: Any) -> str:
  if plan.memory is None:
    return "  (its memory is not known: give --memory=GIB)"
  return f"  of {_size(plan.memory).strip()}: {'fits' if plan.fits else 'DOES NOT FIT'}"


def _size(count: int) -> str:
  for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
    if count >= factor:
      return f"{count / factor:8.2f} {unit}"
  return f"{count:8d} B  "
