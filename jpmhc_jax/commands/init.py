"""jpmhc init: a small project with a config, a mixer, a task, a data set and a test of its own, that trains at once."""

import argparse
import dataclasses
import pathlib
import shlex

from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.files import storing, write_atomically

TEMPLATES = pathlib.Path(__file__).with_name("project")


@dataclasses.dataclass(frozen=True)
class Init:
  """The command `jpmhc init`."""

  name: str = "init"
  help: str = "Write a small project with a config, a mixer, a task and a test of its own, which trains at once."
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("folder", type=arguments.path, metavar="DIR", help="folder to write; made if it is not there")

  def run(self, options: argparse.Namespace) -> int:
    """Writes the files and prints what to run; 0. Raises ConfigError where one of them is there already."""
    files = sorted(TEMPLATES.glob("*.py"))
    for file in files:
      if (options.folder / file.name).exists():
        raise ConfigError(f"{options.folder / file.name} is there already; expected a folder without it, name another")
    with storing(str(options.folder)):
      options.folder.mkdir(parents=True, exist_ok=True)
      for file in files:
        write_atomically(options.folder / file.name, file.read_text(encoding="utf-8"))
    print(f"written: {', '.join(file.name for file in files)} in {options.folder}\n\nnow:")
    print(f"  cd {shlex.quote(str(options.folder))}")
    print("  jpmhc train --config=config.py --workdir=runs/first    # half a minute, then open runs/first/report.html")
    print("  python -m pytest                                       # what the project promises; pip install pytest")
    return 0
