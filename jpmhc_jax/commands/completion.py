"""jpmhc completion: a script by which bash and zsh complete commands, options, configs and config fields."""

import argparse
from collections.abc import Iterator
import dataclasses

_SCRIPT = """\
# bash and zsh: eval "$(jpmhc completion)"
if [[ -n $ZSH_VERSION ]]; then
  autoload -Uz compinit bashcompinit
  type compdef > /dev/null || compinit
  bashcompinit
fi
COMP_WORDBREAKS=${{COMP_WORDBREAKS//[:=]/}}
_jpmhc() {{
  local words
  case "${{COMP_WORDS[*]:1:$((COMP_CWORD-1))}} " in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  [[ -z $ZSH_VERSION && ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
}}
if [[ -n $ZSH_VERSION ]]; then
  complete -o nospace -o default -F _jpmhc jpmhc  # compopt is bash's alone
else
  complete -o default -F _jpmhc jpmhc
fi"""


@dataclasses.dataclass(frozen=True)
class Completion:
  """The command `jpmhc completion`."""

  name: str = "completion"
  help: str = 'Print a script that completes command lines of jpmhc: eval "$(jpmhc completion)" in bash.'
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares no options."""

  def run(self, options: argparse.Namespace) -> int:
    """Prints the script; 0."""
    from jpmhc_jax.main import parser

    print(_SCRIPT.format(cases="\n".join(_cases(parser()))))
    return 0


def _cases(parser: argparse.ArgumentParser, path: str = "") -> Iterator[str]:
  """`"launch slurm "*) words="…";;` for every parser under this one, the longest paths first."""
  words: list[str] = []
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for name, below in action.choices.items():
        yield from _cases(below, f"{path}{name} ")
      words += action.choices
    else:
      words += _words(action)
  defaults = parser.get_default("command")
  if defaults and defaults.takes_overrides:
    words += _fields()
  yield f'    "{path}"*) words="{" ".join(words)}";;'


def _words(action: argparse.Action) -> Iterator[str]:
  """What an option may be completed to."""
  values = list(action.choices) if action.choices else _configs() if action.dest == "config" else []
  if not action.option_strings:
    yield from (value for value in values if ":" not in value)
  for option in action.option_strings:
    if option.startswith("--"):
      yield from (f"{option}={value}" for value in values)
      yield option if action.nargs == 0 else f"{option}="


def _configs() -> list[str]:
  from jpmhc_jax.config import sources

  recipes = [(name, recipe) for name, _, of_name in sources.catalogue() for recipe in of_name]
  return [*sources.bundled(), *(f"{name}:{variant}" for name, recipe in recipes for variant in recipe.variants)]


def _fields() -> list[str]:
  from jpmhc_jax.config import load, schema

  return [f"--config.{name}=" for name, _ in load.leaves(schema.Config())]
