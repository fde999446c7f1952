"""Diagnostics of a training state: what the connections do to the streams in the carry right now, and a task's own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jpmhc_jax.connections.diagnostics import composite_diagnostics, EQUAL_STREAMS
from jpmhc_jax.training.state import Setup, TrainState


def make_diagnose(setup: Setup) -> Callable[[TrainState], Mapping[str, float]] | None:
  """A function from a state to `mixer/<connection>/<diagnostic>` scalars, and those of the task's `look`.

  None for a network without streams. Empty for a task that looks at nothing.

  It looks at one pass over the carry's examples (of a TRM, one reasoning update): the streams that enter each
  connection, its coefficients, and the product of the mixers over the network (`mixer/composite/…`).
  """
  if setup.config.connection.streams == 1 and not setup.task.alarms:
    return None
  compiled = jax.jit(lambda params, buffers, table, carry: _diagnostics(setup, params, buffers, table, carry))

  def diagnose(state: TrainState) -> Mapping[str, float]:
    values = jax.device_get(compiled(state.params, state.buffers, state.table, state.carry))
    return {name: float(value) for name, value in values.items()}

  return diagnose


def _diagnostics(setup: Setup, params: Any, buffers: Any, table: Array | None, carry: Any) -> dict[str, Array]:
  model = setup.model(params, buffers)
  rows, own = setup.rows(table, carry.data), setup.task.look(model, carry, setup.config)

  def probe(connection: Any, streams: Array) -> tuple[dict[str, Array], Array | None]:
    diagnostics, mix = connection.diagnostics(streams)
    return diagnostics | {f"choice/{family}": weight for family, weight in connection.choice_weights().items()}, mix

  probed = setup.task.capture(model, rows, carry, probe)
  if not probed:
    return own
  values = {f"{name}/{diagnostic}": v for name, (each, _) in probed.items() for diagnostic, v in each.items()}
  mixers = [mix for _, mix in probed.values() if mix is not None]
  # Of stages with several numbers of streams, those that have as many as the last.
  composite = composite_diagnostics([mix for mix in mixers if mix.shape[0] == mixers[-1].shape[0]])
  energies = [each["difference_energy"] for each, _ in probed.values()]
  composite["equal_streams"] = (jnp.max(jnp.stack(energies)) < EQUAL_STREAMS).astype(jnp.float32)
  values |= {f"composite/{name}": value for name, value in composite.items()}
  return own | {f"mixer/{name}": value for name, value in values.items()}
