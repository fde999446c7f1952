"""jpmhc describe: every config field with its meaning, default and value; or the table of mixer families."""

import argparse
from collections.abc import Iterator
import dataclasses
from typing import Any

from jpmhc_jax.core import arguments
from jpmhc_jax.core.terminal import shown


@dataclasses.dataclass(frozen=True)
class Describe:
  """The command `jpmhc describe`."""

  name: str = "describe"
  help: str = "List every config field with meaning, default and value; --mixers compares the mixer families."
  takes_overrides: bool = True
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--config", type=arguments.line, default=None, help="config and variant whose values are shown")
    parser.add_argument("--mixers", action="store_true", help="print one comparison table of all mixer families")
    parser.add_argument("--markdown", action="store_true", help="with --mixers: the table as docs/mixers.md has it")

  def run(self, options: argparse.Namespace) -> int:
    """Prints the table of fields or of mixers; 0. Raises ConfigError for --markdown without --mixers."""
    from rich.console import Console

    from jpmhc_jax.config import load as configs
    from jpmhc_jax.core.errors import ConfigError

    if options.markdown and not options.mixers:
      raise ConfigError("--markdown: expected --mixers beside it; only that table has a page")
    overrides = options.overrides
    config = configs.load(options.config, overrides) if options.config else configs.load_default(overrides)
    if options.markdown:
      print(mixer_markdown(config.connection.streams, config.model.width))
      return 0
    console = Console()
    table = mixer_table(config.connection.streams, config.model.width) if options.mixers else field_table(config)
    table.title = _text(f"{' '.join([options.config or 'the defaults', *overrides])}: {table.title}", "table.title")
    Console(width=max(console.width, 160 if options.mixers else 140)).print(table)
    return 0


def field_table(config: Any) -> Any:
  """One row a field; values that differ from the default are bold."""
  from rich.table import Table

  from jpmhc_jax.config import load as configs
  from jpmhc_jax.config import plugins

  values = dict(configs.leaves(config))
  table = Table(title="values that differ from the default are bold")
  for heading in ("field", "value", "default", "meaning"):
    table.add_column(heading, overflow="fold", no_wrap=heading == "field")
  for name, default, meaning, takes in configs.documentation(type(config)):
    takes = takes or " | ".join(plugins.choices_of(name, config.plugins))
    style = "bold" if values[name] != default else ""
    table.add_row(
      _text(name),
      _text(repr(values[name]), style),
      _text(repr(default)),
      _text(f"{meaning} [{takes}]" if takes else meaning),
    )
  return table


def _text(words: str, style: str = "") -> Any:
  """A cell or title: not markup, since it may name a folder such as x[/b], and as wide as the terminal shows it."""
  from rich.text import Text

  return Text(shown(words), style)


_MIXER_HEADINGS = (
  "name", "set", "dim", "norm", "eigenvalues", "det", "|start − I|", "parameters", "FLOPs/token"
)  # fmt: skip


def mixer_markdown(n: int, d: int) -> str:
  """The comparison table as a Markdown page."""
  title = f"# Mixers of n = {n} streams of width d = {d}\n\nWritten by `jpmhc describe --mixers --markdown`."
  note = (
    "Dynamic generator with sigmoid read and write: (n·d + 1)(2n + logits) parameters. `dim`: intrinsic dimension of "
    "the set; `|start − I|`: largest entry of the initial mixer minus the identity; FLOPs: forward + backward of the "
    "projection as the program is written, where loops that may end early count their bound."
  )
  lines = [_MIXER_HEADINGS, ("---",) * len(_MIXER_HEADINGS), *mixer_rows(n, d)]
  cells = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
  return "\n".join([title, "", note, "", *cells])


def mixer_table(n: int, d: int) -> Any:
  """One row a family: the set, its dimension, what it does to norms and eigenvalues, its start, its cost."""
  from rich.table import Table

  table = Table(title=f"mixers of n = {n} streams of width d = {d}; dynamic generator with sigmoid read and write")
  for heading in _MIXER_HEADINGS:
    table.add_column(_text(heading), overflow="fold")
  for row in mixer_rows(n, d):
    table.add_row(*map(_text, row))
  return table


def mixer_rows(n: int, d: int) -> Iterator[tuple[str, ...]]:
  """Cells of the table, with a progress bar on a terminal; families that do not exist for n streams say so."""
  import jax
  from rich.console import Console
  from rich.progress import track

  from jpmhc_jax.config import schema
  from jpmhc_jax.core.errors import ConfigError
  from jpmhc_jax.mixers import FAMILIES, make
  from jpmhc_jax.models.connections import hyper_connection_fn

  strength = schema.Connection().identity_bias
  console = Console(stderr=True)
  for name in track(FAMILIES, "families", console=console, transient=True, disable=not console.is_terminal):
    mixer = make(name)
    try:
      rule = hyper_connection_fn(schema.Connection(mixer=name, streams=n), d, layer_index=0)
      shapes = jax.eval_shape(rule.init, jax.random.key(0))
    except ConfigError as error:
      yield (name, mixer.traits.set, f"not for n = {n}", str(error), "", "", "", "", "")
      continue
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    forward, backward = mixer.flops(n)
    traits = mixer.traits
    yield (
      name,
      traits.set,
      str(mixer.dimension(n)),
      traits.norm,
      traits.eigenvalues,
      traits.determinant,
      f"{mixer.identity_error(n, strength):.2g}",
      f"{parameters:,}",
      f"{forward:,} + {backward:,}",
    )
