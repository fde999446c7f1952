"""jpmhc describe: every config field with its meaning, default and value; or the table of mixer families."""

import argparse
import dataclasses


@dataclasses.dataclass(frozen=True)
class Describe:
  name: str = "describe"
  help: str = "List every config field with meaning, default and value."
  takes_overrides: bool = True
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default=None, help="config file and variant whose values are shown")

  def run(self, options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from jpmhc_jax.core import config as configs
    from jpmhc_jax.core import schema

    config = configs.load(options.config, options.overrides) if options.config else schema.Config()
    values = dict(configs.leaves(config))
    table = Table(title=f"{options.config or 'the defaults'} (values that differ from the default are bold)")
    for heading in ("field", "value", "default", "meaning"):
      table.add_column(heading, overflow="fold")
    for name, default, meaning, choices in configs.documentation():
      changed = values[name] != default
      allowed = f" [{' | '.join(choices)}]" if choices else ""
      style = "bold" if changed else ""
      table.add_row(Text(name), Text(repr(values[name]), style), Text(repr(default)), Text(meaning + allowed))
    console = Console()
    Console(width=max(console.width, 140)).print(table)
    return 0
