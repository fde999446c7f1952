"""The first lines of a run: what is trained, on what and on which data, and where it is kept."""

from collections.abc import Iterator, Mapping
import pathlib
import shlex
from typing import Any

import jax

from jpmhc_jax import mixers
from jpmhc_jax.config import schema
from jpmhc_jax.data import Dataset
from jpmhc_jax.training.state import Setup
from jpmhc_jax.training.workdir import version


def opening(config: schema.Config, workdir: pathlib.Path) -> Iterator[str]:
  """What is known before anything is built."""
  yield _line("jpmhc_jax", f"{version('jpmhc-jax')}, {config.model.kind} on {config.data.kind}")
  yield _line("workdir", str(workdir))


def lines(setup: Setup, dataset: Dataset) -> Iterator[str]:
  """Device, data, model, mixer, optimiser and plan of a run that has been built; nothing is compiled."""
  config = setup.config
  yield _line("device", _devices(setup))
  yield _line("data", _sizes(dataset))
  for remark in dataset.describe().get("remarks", ()):
    yield _line("", remark)
  yield _line("model", f"{config.model.kind}, width {config.model.width}: {setup.parameter_count:,} parameters")
  if setup.connection_parameters:
    yield _line("mixer", _mixer(config.connection, setup.connection_parameters))
  yield _line("optimizer", _optimizer(config.optimizer))
  yield _line("plan", _plan(config))


def next_command(setup: Setup, workdir: pathlib.Path) -> str:
  """What looks closer at a finished run: at the spectrum of its network, where it has connections that we know."""
  verb = "spectrum" if setup.connection_parameters and setup.task.linearised else "evaluate"
  return f"jpmhc {verb} --workdir={shlex.quote(str(workdir))}"


def _line(name: str, text: str) -> str:
  return f"{name:10s} {text}"


def _devices(setup: Setup) -> str:
  devices = setup.mesh.devices.ravel()
  axes = " × ".join(f"{name} {size}" for name, size in setup.mesh.shape.items() if size > 1)
  processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
  kind = devices[0].device_kind
  return f"{len(devices)} × {kind}{f' ({axes})' if axes else ''}{processes}, {setup.config.precision.compute}"


def _sizes(dataset: Dataset) -> str:
  facts: Mapping[str, Any] = dataset.describe()
  trained = facts.get("train_examples")
  held = f"{dataset.coverage().held_out:,} held out"
  return f"{dataset.kind}: " + (f"{trained:,} examples to train on, {held}" if trained is not None else held)


def _mixer(connection: schema.Connection, parameters: int) -> str:
  if connection.streams == 1:
    return f"none (one stream); {parameters:,} parameters"
  mixer = mixers.parse(connection.mixer, connection.options)
  forward, backward = mixer.flops(connection.streams)
  cost = f"{forward:,} + {backward:,} FLOPs a token, forward + backward"
  return f"{mixers.name_of(mixer)} of {connection.streams} streams; {parameters:,} parameters; {cost}"


def _optimizer(optimizer: schema.Optimizer) -> str:
  warm = f" after {optimizer.warmup_steps:,} steps of warm-up" if optimizer.warmup_steps else ""
  warming = "rising to " if optimizer.ema_warmup else ""
  average = f"the average of the parameters (decay {warming}{optimizer.ema:g})" if optimizer.ema else "the parameters"
  rate = f"{optimizer.schedule} {optimizer.learning_rate:g}{warm}"
  return f"{optimizer.name}, learning rate {rate}; evaluated: {average}"


def _plan(config: schema.Config) -> str:
  evaluation, checkpoint = config.evaluation.every, config.checkpoint.every
  evaluated = f"evaluation every {evaluation:,}" if evaluation else "evaluation at the end"
  saved = f", checkpoint every {checkpoint:,}" if checkpoint else ""
  limit = f", at most {config.budget_seconds:g} s" if config.budget_seconds else ""
  return f"{config.steps:,} steps of batch {config.batch_size:,}{limit}; {evaluated}{saved}"
