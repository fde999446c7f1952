"""The command `jpmhc`: parses its arguments, runs one of `commands.COMMANDS` and ends with an exit code.

Exit codes (docs/runs.md): 0 done · 2 bad input · 3 the loss is no number · 69 another process died · 74 disk full
· 75 interrupted, state saved · 130 Ctrl-C, nothing saved · 1 anything else, with a traceback. What a full disk does not
take of the output is dropped, as is what nobody reads; a command that only prints ends with 74.
"""

import argparse
import itertools
import sys

from jpmhc_jax import __version__, commands
from jpmhc_jax.core.arguments import Parser, refuse_repeated
from jpmhc_jax.core.errors import naming_the_extra, StorageError, UserError
from jpmhc_jax.core.files import shortages
from jpmhc_jax.core.process import keep_compiled_programs, restart_with_fast_allocation
from jpmhc_jax.core.terminal import EXIT_CTRL_C, fail, Forgiving, leave_at_once, open_closed_streams


def parser() -> argparse.ArgumentParser:
  """The command line."""
  top = Parser(prog="jpmhc", description="Manifold-constrained hyper-connections in JAX.")
  top.add_argument("--version", action="version", version=f"jpmhc_jax {__version__}")
  verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
  for command in commands.COMMANDS:
    sub = verbs.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False)
    command.add_arguments(sub)
    sub.set_defaults(command=command)
  return top


def main(arguments: list[str] | None = None) -> int:
  """Runs one command and returns its exit code. Without `arguments`, those of the process."""
  if arguments is not None:
    return _run(arguments, None)
  open_closed_streams()
  output = Forgiving(sys.stdout)
  sys.stdout, sys.stderr = output, Forgiving(sys.stderr)  # type: ignore[assignment]
  code = _run(sys.argv[1:], output)
  if code == StorageError.exit_code:
    leave_at_once(code)  # threads of libraries that still fail to write would have the last word
  return code


def _run(arguments: list[str], output: Forgiving | None) -> int:
  """`output` is standard output where the command was typed in a shell."""
  options, rest = parser().parse_known_args(arguments)
  command, options.overrides, options.arguments = options.command, rest, arguments
  if rest and not command.takes_overrides:
    return fail(command.name, f"unknown argument {rest[0]!r}; see jpmhc {command.name} --help", 2)
  if output and command.computes:
    restart_with_fast_allocation()
    keep_compiled_programs()
  try:
    refuse_repeated([word for word in itertools.takewhile(lambda word: word != "--", arguments) if word not in rest])
    with shortages(), naming_the_extra("this command"):
      code = command.run(options)
    if output and _only_prints(options):
      output.flush()
      if output.lost:
        raise StorageError("standard output could not be written; free space and run the same command again")
    return code
  except KeyboardInterrupt:
    return fail(command.name, "Ctrl-C: what it was writing is not there; run the same command again", EXIT_CTRL_C)
  except UserError as error:
    code = fail(command.name, error, error.exit_code)
    if output and not _only_prints(options):
      commands.tell_other_processes(command, error)
    return code


def _only_prints(options: argparse.Namespace) -> bool:
  """Whether nothing that the command makes is kept in a folder."""
  given = vars(options)
  return given.get("workdir") is None or given.get("plan", False) or given.get("dry_run", False)


if __name__ == "__main__":
  sys.exit(main())
