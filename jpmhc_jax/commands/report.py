"""jpmhc report: one HTML page from any set of runs and sweeps."""

import argparse
import dataclasses

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Report:
  """The command `jpmhc report`."""

  name: str = "report"
  help: str = "Write one self-contained HTML page about one or several workdirs."
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("paths", nargs="+", type=arguments.stored, metavar="WORKDIR", help="folders of runs or sweeps")
    parser.add_argument(
      "--out", type=arguments.stored, default=None, help="file to write; default report.html in the first"
    )

  def run(self, options: argparse.Namespace) -> int:
    """Writes the page and prints its path; 0."""
    from jpmhc_jax import runs

    print(f"report: {runs.report(options.paths, options.out)}")
    return 0
