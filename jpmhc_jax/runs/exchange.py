"""Checkpoints of the official Tiny Recursive Model into workdirs, and back."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import sys
from typing import Any

import jax

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import CheckpointError, ConfigError, DataError
from jpmhc_jax.core.files import storing, to_json, write_atomically
from jpmhc_jax.core.reading import read_json, shown
from jpmhc_jax.models import connections
from jpmhc_jax.runs import official
from jpmhc_jax.runs.run import absolute, Folder, load, Run
from jpmhc_jax.runs.session import on_these_devices, prepared, processes_of
from jpmhc_jax.runs.tensor_files import read_tensors, write_tensors
from jpmhc_jax.training import inherit, loop
from jpmhc_jax.training.checkpoint import Checkpoints
from jpmhc_jax.training.workdir import describe_environment, save_environment

IDENTIFIERS_LIMIT = 2 * 2**30  # bytes of a list of names; that of ARC-1 with 1,000 copies has 40 MB


@dataclasses.dataclass(frozen=True)
class Imported:
  """What an import took and what it made. new: arrays that the file does not have, as they are initialised."""

  run: Run
  parameters: int
  rows: int  # of the puzzle table, with a row in the file
  identifiers: int
  new: tuple[str, ...]


def import_trm(
  path: Folder,
  config: configs.Resolvable,
  workdir: Folder,
  *,
  overrides: Mapping[str, Any] | None = None,
  part: str = "",
  identifiers: Folder | None = None,
  fresh_table: bool = False,
  command: Sequence[str] | None = None,
) -> Imported:
  """A workdir with the official model's parameters as its checkpoint of step 0.

  path: a state dict in a zip archive of torch.save, or safetensors; part: which, where it holds several. config: the
  model and the data, such as "arc1:trm"; with several streams the connections start new, which changes no answer
  with connection.init=round_robin (or zero) and a mixer whose rows sum to 1 or that starts at the identity.
  identifiers: the JSON list of the names of the file's puzzle rows; by default they are in the order of our
  identifiers. fresh_table: the puzzle table starts at zero.

  Published files hold the average of the parameters: it is both the parameters and their average here. Raises
  ConfigError for another `model.kind` and for a workdir that holds a run, CheckpointError for a file of another model,
  DataError for a file that cannot be read.
  """
  resolved, folder = configs.resolve(config, overrides or {}), absolute(workdir)
  if resolved.model.kind != "trm":
    raise ConfigError(f"model.kind={resolved.model.kind!r}: expected 'trm', whose checkpoints --from=trm reads")
  connections.check(resolved)
  source = absolute(path)
  tensors = official.stripped(read_tensors(source, part))
  names = None if identifiers is None else _names(absolute(identifiers))
  with processes_of(resolved), loop.claimed(resolved, folder):
    setup, dataset = prepared(on_these_devices(resolved, lambda config: config), trains=False)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
      if known := checkpoints.steps():
        raise ConfigError(
          f"--workdir={folder}: holds checkpoints of steps {', '.join(map(str, known))}; take a new one"
        )
      state = setup.create()
      try:
        params, buffers = official.from_official(tensors, state.params, state.buffers)
        table, rows = state.table, 0
        if table is not None and not fresh_table:
          table, rows = official.table_for(tensors, dataset.identifiers, table.shape, names)
      except CheckpointError as error:
        raise CheckpointError(f"{shown(source)}: {error}") from error
      state = inherit.with_arrays(setup, state, params, buffers, table)
      save_environment(describe_environment(resolved, list(command or sys.orig_argv)), folder / "environment.json")
      checkpoints.save(0, state, config=resolved, dataset=dataset, clock=loop.fresh_clock())
    finally:
      checkpoints.close()
  new = official.untouched(jax.eval_shape(setup.create).params)
  return Imported(Run(resolved, folder), setup.parameter_count, rows, len(dataset.identifiers), new)


def export_trm(workdir: Folder, out: Folder, step: int | None = None) -> Sequence[pathlib.Path]:
  """Writes a run's checkpoint as the official code loads it; returns the files: tensors, and the names of puzzle rows.

  out: a path that ends in .pt, .pth, .bin, .ckpt (torch.save's archive) or .safetensors. The parameters are those that
  evaluation uses. Raises ConfigError for a run of another model or with several streams, CheckpointError as `load`.
  """
  run, path = load(workdir, step), absolute(out)
  _check_plain(run.config)
  state, written = jax.device_get((run.parameters, run.state.buffers, run.state.table)), [path]
  params, buffers, table = state
  identifiers = list(run.dataset.identifiers)
  write_tensors(official.to_official(params, buffers, None if table is None else table[: len(identifiers)]), path)
  if table is not None:
    names = path.with_name(path.stem + ".identifiers.json")
    with storing(str(names)):
      write_atomically(names, to_json(identifiers) + "\n")
    written.append(names)
  return written


def _check_plain(config: schema.Config) -> None:
  if config.model.kind != "trm":
    raise ConfigError(f"model.kind={config.model.kind!r}: expected 'trm', the model that --to=trm writes")
  if config.connection.streams != 1:
    raise ConfigError(
      f"connection.streams={config.connection.streams}: the official model has one stream and no connections; export a "
      "run with connection.streams=1"
    )


def _names(path: pathlib.Path) -> list[str]:
  try:
    names = read_json(path, "take the identifiers.json that was written with the data", IDENTIFIERS_LIMIT)
  except OSError as error:
    raise DataError(f"{shown(path)}: could not be opened ({error.strerror or error})") from error
  if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
    raise DataError(f"{shown(path)}: expected a JSON list of names, one a row of the puzzle table")
  return names
