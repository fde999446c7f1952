"""jpmhc train --plan: memory and operations of a config's step, and what to change when it does not fit."""

import dataclasses
import pathlib
import sys
from typing import Any

from jpmhc_jax.config import schema
from jpmhc_jax.core.files import storing, to_json, write_atomically


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
