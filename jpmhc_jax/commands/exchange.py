"""jpmhc import and jpmhc export: checkpoints of the official Tiny Recursive Model into workdirs, and back."""

import argparse
import dataclasses
import shlex

from jpmhc_jax.core import arguments

SOURCES = ("trm",)


@dataclasses.dataclass(frozen=True)
class Import:
  """The command `jpmhc import`."""

  name: str = "import"
  help: str = "Make a workdir of a published checkpoint, to evaluate, report, look at or fine-tune."
  takes_overrides: bool = True
  computes: bool = True
  joins: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
      "path", type=arguments.path, help="state dict: .pt, .pth, .bin (read without running it), .safetensors"
    )
    parser.add_argument(
      "--from", dest="source", choices=SOURCES, required=True, help="whose: trm, the official Tiny Recursive Model"
    )
    parser.add_argument("--config", required=True, help="model and data, such as arc1:trm; several streams start new")
    parser.add_argument("--workdir", required=True, type=arguments.stored, help="folder to write")
    parser.add_argument("--part", default="", help="which state dict of a file that holds several, such as ema")
    parser.add_argument(
      "--identifiers", type=arguments.path, help="identifiers.json of the file's data: puzzle rows are matched by name"
    )
    parser.add_argument("--fresh-table", action="store_true", help="start the puzzle table at zero")

  def run(self, options: argparse.Namespace) -> int:
    """Prints what was taken; 0."""
    from jpmhc_jax.config import load as configs
    from jpmhc_jax.runs.exchange import import_trm

    imported = import_trm(
      options.path,
      configs.load(options.config, options.overrides),
      options.workdir,
      part=options.part,
      identifiers=options.identifiers,
      fresh_table=options.fresh_table,
      command=["jpmhc", *options.arguments],
    )
    print(
      f"{imported.parameters:,} parameters; {imported.rows:,} of {imported.identifiers:,} puzzle rows from the file"
    )
    if imported.new:
      print(f"new, as initialised: {len(imported.new)} arrays of connections ({', '.join(imported.new[:3])}, …)")
      if imported.run.config.connection.init == "random":
        print("connection.init=random moves the answers a little; round_robin starts with those of the file")
    print(f"written: {imported.run.workdir}/checkpoints/0")
    print(f"next: jpmhc evaluate --workdir={shlex.quote(str(imported.run.workdir))}")
    return 0


@dataclasses.dataclass(frozen=True)
class Export:
  """The command `jpmhc export`."""

  name: str = "export"
  help: str = "Write a checkpoint of a workdir as the official code loads it."
  takes_overrides: bool = False
  computes: bool = True
  joins: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("out", type=arguments.path, help="file to write: .pt, .pth, .bin, .ckpt or .safetensors")
    parser.add_argument("--to", choices=SOURCES, required=True, help="for whom: trm, the official Tiny Recursive Model")
    parser.add_argument("--workdir", required=True, type=arguments.stored, help="folder of a run of `jpmhc train`")
    parser.add_argument(
      "--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest by default"
    )

  def run(self, options: argparse.Namespace) -> int:
    """Prints the files; 0."""
    from jpmhc_jax.runs.exchange import export_trm

    for path in export_trm(options.workdir, options.out, options.step):
      print(f"written: {path}")
    return 0
