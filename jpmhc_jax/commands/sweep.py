"""jpmhc sweep: many runs of one config, on this machine, on SLURM or as launch lines, and their report."""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import sys
from typing import Any

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The command `jpmhc sweep`."""

  name: str = "sweep"
  help: str = (
    "Train every point of a sweep file; finished runs are skipped, failed ones tried again; one report of all."
  )
  takes_overrides: bool = True
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add("--config", type=arguments.line, required=True, help="config and variant that every run starts from")
    add("--sweep", type=arguments.line, required=True, help="sweep and variant: mixers:two of the package, or a file")
    add("--workdir", required=True, type=arguments.stored, help="folder of the sweep; each run gets a folder in it")
    add("--executor", default="local", choices=("local", "slurm", "tpu"), help="tpu only prints the launch lines")
    add("--jobs", type=arguments.whole(0), default=None, help="runs at a time, 0 for all; 1 by default, on SLURM 0")
    add(
      "--gpus-per-job",
      type=arguments.whole(0),
      default=0,
      help="local: GPUs that each run sees; 0 shows all of them to every run",
    )
    add(
      "--resources",
      type=arguments.line,
      default=None,
      help="SLURM: name=value,… such as partition=gpu,gpus_per_node=1,timeout_min=4320",
    )
    add("--retries", type=arguments.whole(0), default=1, help="how often a run that crashed is started again")
    add(
      "--seeds",
      type=arguments.whole(1, 1000),
      default=None,
      metavar="N",
      help="every setting of the sweep with the seeds 0 to N−1; a finished sweep trains those that it lacks",
    )
    add("--dry-run", action="store_true", help="print the command of every run, and the time that all take")
    add("--search", choices=("optuna",), default=None, help="draw points instead of listing all of them")
    add("--trials", type=arguments.whole(1), default=20, help="search: trials in all, those of earlier starts counted")
    add(
      "--storage",
      type=arguments.line,
      default=None,
      metavar="URL",
      help="search: the database that keeps the study, such as mysql://user:password@host/name or sqlite:////a/file; "
      "sweeps whose workdirs have the same name share the study on it. By default search.db in the workdir",
    )
    parser.epilog = "Overrides such as --config.steps=500 hold for every run; what the sweep sets comes after them."

  def run(self, options: argparse.Namespace) -> int:
    """0 when all runs are done, 75 after a signal, 2 when no point of a search could run, else 1."""
    from jpmhc_jax.config import load as configs
    from jpmhc_jax.sweeps import estimate, ledger, pool, search
    from jpmhc_jax.sweeps.plan import flops_per_step, load_sweep, Planner
    from jpmhc_jax.sweeps.space import check_size, SweepError, with_seeds

    printed = options.dry_run or options.executor == "tpu"
    if options.search and printed:
      raise SweepError("--search draws its points while it runs: there is no list of commands to print")
    if options.search and options.seeds:
      raise SweepError(
        "--seeds is about a list of settings: leave it out, or set seeds(…) in the sweep that is searched"
      )
    configs.class_of(options.config, options.overrides)  # a sweep file may ask what a plugin's field takes
    sweep = load_sweep(options.sweep)
    book = ledger.Ledger(options.workdir, _about(options) | {"metric": sweep.metric})
    check = functools.partial(_check_metric, sweep.metric)
    planner = Planner(
      options.config, options.overrides, sweep.limit, options.workdir, flops_per_step, book.names, check
    )
    if options.search:
      book.begin()
      study = search.Search(sweep, planner, _pool(options, book), trials=options.trials, storage=options.storage or "")
      with contextlib.closing(study):
        ending = study.run()
    else:
      check_size(options.sweep, sweep.space.size())
      points = sweep.space.points()
      runs = planner.all(points if options.seeds is None else with_seeds(points, options.seeds))
      if printed:
        _print_commands(runs, options)
        words = estimate.estimate(runs, book.records, options.config, options.executor, _jobs(options))
        print(f"sweep: {words}", file=sys.stderr)
        return 0
      book.begin()
      ending = pool.run_all(_pool(options, book), runs)
    book.save()
    _summarise(ending, sweep.metric)
    _report(options.workdir, ending)
    return ending.exit_code


def _about(options: argparse.Namespace) -> dict[str, Any]:
  return {"command": ["jpmhc", *options.arguments], "config": options.config, "sweep": options.sweep}


def _check_metric(metric: str, config: Any) -> None:
  """A metric that the runs will not record is found before the first of them starts."""
  from jpmhc_jax.core.errors import check_choice
  from jpmhc_jax.evaluation.evaluator import metric_names

  if metric:
    check_choice("Sweep.metric", metric, metric_names(config))


def _jobs(options: argparse.Namespace) -> int:
  """Runs at a time, 0 for all."""
  given: int | None = options.jobs
  return given if given is not None else 1 if options.executor == "local" else 0


def _pool(options: argparse.Namespace, book: Any) -> Any:
  from jpmhc_jax.sweeps import executors
  from jpmhc_jax.sweeps.pool import Pool

  resources = executors.read_resources(options.resources or "")
  executor = executors.Executor(options.executor, options.workdir, options.config, resources, options.gpus_per_job)
  return Pool(executor, book, jobs=_jobs(options), retries=options.retries, say=lambda words: print(words, flush=True))


def _print_commands(runs: Any, options: argparse.Namespace) -> None:
  from jpmhc_jax.sweeps import executors

  if options.executor == "tpu":
    print(
      "# NAME, ZONE, TYPE: of the pod; --workdir: an address or a folder that all hosts see (jpmhc launch tpu --help)"
    )
  for run in runs:
    line = executors.tpu_line if options.executor == "tpu" else executors.command
    print(line(options.config, run))


def _summarise(ending: Any, metric: str) -> None:
  """One row a run: how it ended, how it scored, and why it failed."""
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  from jpmhc_jax.sweeps import ledger

  table = Table(title=f"{len(ending.runs)} runs")
  for heading in ("run", "state", "attempts", "score", "remark"):
    table.add_column(heading, overflow="fold")
  for run, record in ending.runs:
    scores = ledger.scores(run.workdir, metric)
    score = f"{scores[0]} {scores[2][-1][1]:.4g}" if scores else ""
    table.add_row(*map(Text, (run.name, record.state, str(record.attempts), score, record.message)))
  console = Console()
  Console(width=max(console.width, 120)).print(table)


def _report(workdir: pathlib.Path, ending: Any) -> None:
  from jpmhc_jax.reporting.report import write_report

  if any(run.workdir.is_dir() for run, _ in ending.runs):
    print(f"report: {write_report([workdir], workdir / 'report.html')}")
  else:
    print("no run has a folder yet: no report", file=sys.stderr)
