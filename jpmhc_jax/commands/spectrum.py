"""jpmhc spectrum: what free probability says of a depth and a mixer, of a config's network or of a checkpoint."""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import shlex
from typing import Any

from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.core.scalars import LARGEST_SEED

EXIT_INCOMPLETE, EXIT_INTERRUPTED = 2, 75


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """The command `jpmhc spectrum`."""

  name: str = "spectrum"
  help: str = (
    "Predict the Jacobian's singular values for mixer families, depths and an activation, and recommend a mixer; with "
    "--workdir, predict and measure those of a checkpoint, with --config those of a network as its run begins."
  )
  takes_overrides: bool = True
  computes: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    _add_arguments(parser)
    parser.add_argument(
      "--out",
      type=arguments.stored,
      default=None,
      help="folder for spectrum.json and spectrum.svg; default: the workdir, or runs/spectrum",
    )
    checkpoint = parser.add_argument_group("a checkpoint", "mixers, reads, writes and noise of a trained network")
    checkpoint.add_argument("--workdir", type=arguments.stored, default=None, help="folder of a run of `jpmhc train`")
    checkpoint.add_argument(
      "--config",
      type=arguments.line,
      default=None,
      help="in place of a run: config and variant, one of `jpmhc configs`, whose network is looked at as a run begins",
    )
    checkpoint.add_argument(
      "--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest by default"
    )
    checkpoint.add_argument(
      "--examples", type=arguments.whole(1), default=1, help="examples of the batch that is linearised"
    )
    checkpoint.add_argument(
      "--lanczos-steps",
      type=arguments.whole(1, 100_000),
      default=96,
      help="Lanczos: resolves singular values to 2/steps",
    )
    checkpoint.add_argument("--probes", type=arguments.whole(1, 10_000), default=2, help="random starts of Lanczos")
    checkpoint.add_argument(
      "--exact-limit",
      type=arguments.whole(0),
      default=1200,
      help="a Jacobian of at most so many inputs (examples x tokens x streams x features) is built and decomposed; of "
      "larger ones Lanczos estimates the singular values. Memory and time grow with its square and cube",
    )

  def run(self, options: argparse.Namespace) -> int:
    """0 when every row has numbers, 2 when one has none, 75 after an interrupt; what was computed is always written.

    Raises ConfigError for config fields without a run.
    """
    if options.workdir is not None and options.config is not None:
      raise ConfigError(f"--config={options.config}: expected either it or --workdir, whose run has a config")
    if options.workdir is not None:
      return _checkpoint(options)
    if options.config is not None:
      return _beginning(options)
    if options.overrides:
      words = "expected --workdir or --config beside it; its fields are those of a run"
      raise ConfigError(f"{options.overrides[0]}: {words}")
    return _design(options)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options of the design rules."""
  parser.add_argument(
    "--mixer",
    default="",
    help="mixer families, comma-separated, or all; by default identity,sinkhorn,cayley,iso, and with --workdir none",
  )
  parser.add_argument("--n", type=arguments.whole(2, 64), default=4, help="streams")
  parser.add_argument(
    "--depth",
    type=arguments.wholes(1),
    default="12,48",
    help="layers (of a call), comma-separated; a row takes time in proportion to depth * n^3, which may be 2e7 at most",
  )
  parser.add_argument("--activation", default="gelu", help="relu, tanh, sigmoid, leaky_relu, gelu, silu or linear")
  parser.add_argument(
    "--sigma-w",
    type=arguments.number(0, 1000, above=True),
    default=None,
    help="weight scale; default: total noise 0.05 at the greatest depth",
  )
  parser.add_argument(
    "--draw",
    default="init",
    help="init = mixers as a run starts; random = random members of the families, far from where a run starts",
  )
  parser.add_argument(
    "--noise",
    default=None,
    help="full = noise couples all streams, block = through read and write vectors; default: full, with --calls block",
  )
  recursion = parser.add_argument_group(
    "a recursion", "calls that apply the same weights, as those of TRM and model.loops do"
  )
  recursion.add_argument("--calls", type=arguments.whole(1, 10_000), default=1, help="calls of --depth layers each")
  recursion.add_argument(
    "--tied",
    type=arguments.number(0, 1),
    default=1.0,
    help="similarity of the calls: correlation of a sub-layer's Jacobians at two calls, 0 = fresh weights, 1 = equal",
  )
  recursion.add_argument(
    "--sharing", default="all", help="all = the mixers of a call repeat too, per_call = every call draws its own"
  )
  parser.add_argument(
    "--threshold",
    type=arguments.number(0, above=True),
    default=0.1,
    help="singular value under which a direction counts as stalled",
  )
  parser.add_argument("--seed", type=arguments.whole(0, LARGEST_SEED), default=0, help="seed of the mixer draw")


def families(options: argparse.Namespace) -> list[str]:
  """The mixer families asked for; of `all` those that exist for so many streams.

  Raises ConfigError for a family that does not exist.
  """
  from jpmhc_jax import mixers  # JAX comes with it, which `--help` does without

  listed = options.mixer or "identity,sinkhorn,cayley,iso"
  names = [part.strip() for part in listed.split(",") if part.strip()]
  if not names:
    raise ConfigError(
      f"--mixer={options.mixer!r}: names no family; expected some of {', '.join(mixers.FAMILIES)}, or all"
    )
  if names == ["all"]:
    return [name for name in mixers.FAMILIES if vars(options).get("workdir") or _exists(name, options.n)]
  for name in names:
    check_choice("--mixer", name, mixers.FAMILIES)
  return list(dict.fromkeys(names))


def _exists(name: str, streams: int) -> bool:
  from jpmhc_jax import mixers

  try:
    mixers.make(name).logit_shape(streams)
  except ConfigError:
    return False
  return True


def question(options: argparse.Namespace) -> Any:
  """What the options ask (`rules.Question`)."""
  from jpmhc_jax.spectral import rules

  return rules.Question(
    families(options),
    options.n,
    list(dict.fromkeys(options.depth)),
    options.activation,
    options.sigma_w,
    draw=options.draw,
    noise=options.noise or ("block" if options.calls > 1 else "full"),
    threshold=options.threshold,
    seed=options.seed,
    calls=options.calls,
    tied=options.tied,
    sharing=options.sharing,
  )


def _design(options: argparse.Namespace) -> int:
  from jpmhc_jax.core.files import storing
  from jpmhc_jax.reporting import spectra
  from jpmhc_jax.spectral import rules, table

  folder = options.out or pathlib.Path("runs/spectrum").absolute()
  with storing(str(folder)):  # before the work: a folder that cannot be written should not cost a minute
    folder.mkdir(parents=True, exist_ok=True)
  asked = question(options)
  rows: list[rules.Row] = []

  def work(say: Callable[[str], None], tick: rules.Tick) -> None:
    drawn = "mixers as a run starts" if asked.draw == "init" else "random members of each family, as no run starts"
    calls = f", {asked.calls} calls with similarity {asked.tied:g}" if asked.calls > 1 else ""
    say(f"predicted Jacobian spectrum: {asked.activation}, {asked.noise} noise, {drawn}{calls}")
    say(table.HEADER)
    for row in table.announced(asked.rows(tick), asked.jobs, asked.streams, say):
      rows.append(row)
      say(table.line(row))

  notice = _watched(work)
  report = asked.report(rows)
  with storing(str(folder)):
    report.save(folder / "spectrum.json")
    spectra.draw_predictions([dataclasses.asdict(row) for row in report.predictions], folder / "spectrum.svg")
  print(table.conclusion(report))
  print(f"written: {folder / 'spectrum.json'}" + (f", {folder / 'spectrum.svg'}" if report.predictions else ""))
  return _code(notice, report.absent)


def _checkpoint(options: argparse.Namespace) -> int:
  from jpmhc_jax import runs
  from jpmhc_jax.config import load as configs

  run = runs.load(
    options.workdir, options.step, change=lambda config: configs.override(config, options.overrides, ("mesh",))
  )
  step = run.step  # reads the checkpoint, before any folder is made
  drawn = f"; `jpmhc report {shlex.quote(str(options.workdir))}` draws them"
  return _network(options, run.setup, run.dataset, run.state, step, options.out or options.workdir, drawn)


def _beginning(options: argparse.Namespace) -> int:
  from jpmhc_jax.config import load as configs
  from jpmhc_jax.runs.session import on_these_devices, prepared

  config = on_these_devices(configs.load(options.config, options.overrides), lambda config: config)
  setup, dataset = prepared(config, trains=False)
  folder = options.out or pathlib.Path("runs/spectrum").absolute()
  return _network(options, setup, dataset, setup.create(), 0, folder, "")


def _network(
  options: argparse.Namespace, setup: Any, dataset: Any, state: Any, step: int, folder: pathlib.Path, drawn: str
) -> int:
  """Measures and predicts a network's spectra into the folder. drawn: what to say behind the files' names."""
  from jpmhc_jax.core.files import storing
  from jpmhc_jax.evaluation.spectra import measure
  from jpmhc_jax.reporting import spectra
  from jpmhc_jax.runs.session import precision_of
  from jpmhc_jax.spectral import rules

  effort = measure.Effort(
    examples=options.examples, steps=options.lanczos_steps, probes=options.probes, exact_limit=options.exact_limit
  )
  with storing(str(folder)):
    folder.mkdir(parents=True, exist_ok=True)
  chosen: dict[str, Any] = {"families": families(options) if options.mixer else (), "threshold": options.threshold}
  result: measure.Findings | None = None

  def work(say: Callable[[str], None], tick: rules.Tick) -> None:
    nonlocal result
    for result in measure.findings(setup, dataset, state, step, effort=effort, say=say, tick=tick, **chosen):
      result.save(folder)

  with precision_of(setup.config):
    notice = _watched(work)
  if result:
    with storing(str(folder)):
      spectra.draw_sites(result.to_dict()["sites"], folder / "spectrum.svg")
    print(f"written: {folder / measure.FILE}, {folder / 'spectrum.svg'}{drawn}")
  return _code(notice, result.design.absent if result else ())


def _watched(work: Callable[[Callable[[str], None], Any], None]) -> str:
  """Does `work(say, tick)` with its progress shown; returns what interrupted it, the empty string when nothing did.

  SIGTERM or Ctrl-C ends the work at its next tick; a second one kills.
  """
  from jpmhc_jax.training.interrupts import Interrupted, Interrupts
  from jpmhc_jax.training.progress import Waiting

  with Interrupts() as interrupts, Waiting() as waiting:

    def tick(what: str, share: float) -> None:
      if interrupts.requested():
        raise Interrupted(f"{interrupts.name} at {what}, {share:.0%} of all")
      waiting.tick(what, share)

    try:
      work(lambda line: print(line, flush=True), tick)
    except Interrupted as notice:
      return str(notice)
  return ""


def _code(notice: str, absent: Sequence[Any]) -> int:
  """The exit code, and on stderr the sentence that goes with it."""
  from jpmhc_jax.core.terminal import fail

  if notice:
    return fail("spectrum", f"{notice}; what was computed until then is written", EXIT_INTERRUPTED)
  if absent:
    rows = ", ".join(f"{row.mixer} at depth {row.depth}" for row in absent)
    return fail("spectrum", f"not predicted: {rows}; all other rows are written", EXIT_INCOMPLETE)
  return 0
