"""What every launcher shares: a list of commands with their reasons, printed by --dry-run as a shell script or run."""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import os
import re
import shlex
import string
import subprocess
import sys

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.objects import is_address

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
Environment = Mapping[str, str | None]  # None: the value that the variable has where the launcher runs


@dataclasses.dataclass(frozen=True)
class Command:
  """One program call. `stdin` is text that it reads; `environment` is added to the launcher's own.

  expands: $NAME in `stdin` stands for the launcher's variable, so that no secret is printed.
  """

  why: str
  argv: tuple[str, ...]
  stdin: str = ""
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  expands: bool = False

  def shell(self) -> str:
    """The call as a line of shell, with the text as a here-document."""
    call = f"{assignments(self.environment)} {shlex.join(self.argv)}".strip()
    end = "END" if self.expands else "'END'"
    text = f" <<{end}\n{self.stdin.rstrip()}\nEND" if self.stdin else ""
    return f"# {self.why}\n{call}{text}\n"

  def run(self) -> int:
    """Runs it and returns its exit code."""
    text = string.Template(self.stdin).safe_substitute(os.environ) if self.expands else self.stdin
    environment = os.environ | self.environment
    return subprocess.run(self.argv, input=text or None, text=True, check=False, env=environment).returncode


def assignments(environment: Mapping[str, str]) -> str:
  """`A=1 B='x y'`, as in front of a command."""
  return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())


def train(
  arguments: Sequence[str], environment: Mapping[str, str], program: str = ".venv/bin/jpmhc"
) -> tuple[str, ...]:
  """The call that trains under the hardware's flags. No shell stays above it: signals reach the run itself."""
  flags = ("env", *(f"{name}={value}" for name, value in environment.items())) if environment else ()
  return (*flags, program, "train", *arguments)


def in_store(arguments: Sequence[str]) -> bool:
  """Whether the run's --workdir is an address of an object store, which needs no folder that all hosts see."""
  joined = "\n".join(arguments).replace("--workdir\n", "--workdir=").split("\n")
  return any(is_address(word.removeprefix("--workdir=")) for word in joined if word.startswith("--workdir="))


def variables(text: str) -> Environment:
  """'WANDB_PROJECT=mhc,WANDB_API_KEY' -> {'WANDB_PROJECT': 'mhc', 'WANDB_API_KEY': None}.

  Raises ConfigError for another form, and for a name without a value that is not set here.
  """
  pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
  for name, equals, _ in pairs:
    if not _VARIABLE.fullmatch(name):
      raise ConfigError(f"--env: {name!r} is no variable; expected NAME=VALUE or NAME, separated by commas")
    if not equals and name not in os.environ:
      raise ConfigError(f"--env={name}: the variable is not set here; set it, or write {name}=VALUE")
  return {name: value if equals else None for name, equals, value in pairs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """--dry-run, --env, and the arguments of `jpmhc train` behind `--`."""
  parser.add_argument("--dry-run", action="store_true", help="print the commands as a shell script and run none")
  parser.add_argument(
    "--env",
    default="",
    metavar="NAME=VALUE,…",
    help="variables of the run, such as WANDB_PROJECT=mhc; a NAME alone takes the value that it has here, unprinted",
  )
  parser.add_argument("train", nargs="*", metavar="-- ARGUMENT", help="arguments of `jpmhc train`, such as --config=…")


def execute(commands: Sequence[Command], dry_run: bool) -> int:
  """Prints or runs the commands in order; stops at the first that fails and returns its exit code."""
  for command in commands:
    if dry_run:
      print(command.shell())
      continue
    print(f"+ {shlex.join(command.argv)}", file=sys.stderr, flush=True)
    code = command.run()
    if code:
      print(f"{command.argv[0]} failed with exit code {code}: {command.why}", file=sys.stderr)
      return code
  return 0
