"""What every launcher shares: a list of commands with their reasons, printed by --dry-run as a shell script or run."""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import shlex
import subprocess
import sys


@dataclasses.dataclass(frozen=True)
class Command:
  """One program call. `stdin` is text that it reads; `environment` is added to the launcher's own."""

  why: str
  argv: tuple[str, ...]
  stdin: str = ""
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def shell(self) -> str:
    """The call as a line of shell, with the text as a here-document."""
    line = f"{assignments(self.environment)} {shlex.join(self.argv)}".strip()
    text = f" <<'END'\n{self.stdin.rstrip()}\nEND" if self.stdin else ""
    return f"# {self.why}\n{line}{text}\n"


def assignments(environment: Mapping[str, str]) -> str:
  """`A=1 B='x y'`, as in front of a command."""
  return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())


def train(
  arguments: Sequence[str], environment: Mapping[str, str], program: str = ".venv/bin/jpmhc"
) -> tuple[str, ...]:
  """The call that trains under the hardware's flags. No shell stays above it: signals reach the run itself."""
  flags = ("env", *(f"{name}={value}" for name, value in environment.items())) if environment else ()
  return (*flags, program, "train", *arguments)


def parser(description: str) -> argparse.ArgumentParser:
  """--dry-run, and the arguments of `jpmhc train` behind `--`."""
  made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  made.add_argument("--dry-run", action="store_true", help="print the commands as a shell script and run none")
  made.add_argument("train", nargs="*", metavar="-- ARGUMENT", help="arguments of `jpmhc train`, such as --config=…")
  return made


def execute(commands: Sequence[Command], dry_run: bool) -> int:
  """Prints or runs the commands in order; stops at the first that fails and returns its exit code."""
  for command in commands:
    if dry_run:
      print(command.shell())
      continue
    print(f"+ {shlex.join(command.argv)}", file=sys.stderr, flush=True)
    code = subprocess.run(command.argv, input=command.stdin or None, text=True, check=False).returncode
    if code:
      print(f"{command.argv[0]} failed with exit code {code}: {command.why}", file=sys.stderr)
      return code
  return 0
