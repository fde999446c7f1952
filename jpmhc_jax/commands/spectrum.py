"""jpmhc spectrum: what free probability says of a depth and a mixer before any run, or of a run's checkpoint."""

import argparse
import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Spectrum:
  name: str = "spectrum"
  help: str = (
    "Predict the Jacobian's singular values for mixer families, depths and an activation, and recommend a mixer; with "
    "--workdir, predict and measure those of a checkpoint."
  )
  takes_overrides: bool = False
  computes: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    from jpmhc_jax.core import arguments
    from jpmhc_jax.spectral import command

    command.add_arguments(parser)
    parser.add_argument(
      "--out",
      type=arguments.path,
      default=None,
      help="folder for spectrum.json and spectrum.svg; default: the workdir, or runs/spectrum",
    )
    checkpoint = parser.add_argument_group("a checkpoint", "mixers, reads, writes and noise of a trained network")
    checkpoint.add_argument("--workdir", type=arguments.path, default=None, help="folder of a run of `jpmhc train`")
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
    from jpmhc_jax.core.files import storing
    from jpmhc_jax.reporting import spectra
    from jpmhc_jax.spectral import command

    if options.workdir is not None:
      return _checkpoint(options)
    folder = options.out or pathlib.Path("runs/spectrum")
    with storing(str(folder)):  # before the work: a folder that cannot be written should not cost a minute
      folder.mkdir(parents=True, exist_ok=True)
    report = command.report(options)
    print(command.table(report))
    with storing(str(folder)):
      report.save(folder / "spectrum.json")
      spectra.draw_predictions([dataclasses.asdict(row) for row in report.predictions], folder / "spectrum.svg")
    print(f"written: {folder / 'spectrum.json'}, {folder / 'spectrum.svg'}")
    return 0


def _checkpoint(options: argparse.Namespace) -> int:
  from jpmhc_jax.commands.session import open_run, restore
  from jpmhc_jax.core import config as configs
  from jpmhc_jax.evaluation import spectrum
  from jpmhc_jax.reporting import spectra
  from jpmhc_jax.spectral import command

  effort = spectrum.Effort(
    examples=options.examples, steps=options.lanczos_steps, probes=options.probes, exact_limit=options.exact_limit
  )
  run = open_run(configs.restore(options.workdir / "config.json"), options.workdir)
  restored = restore(run, options.step)
  folder = options.out or options.workdir
  folder.mkdir(parents=True, exist_ok=True)
  found = spectrum.run(
    run.setup,
    run.dataset,
    restored.state,
    restored.step,
    folder,
    families=command.families(options) if options.mixer else (),
    threshold=options.threshold,
    effort=effort,
    say=lambda line: print(line, flush=True),
  )
  print(command.table(found.design))
  spectra.draw_sites(found.to_dict()["sites"], folder / "spectrum.svg")
  print(f"written: {folder / spectrum.FILE}, {folder / 'spectrum.svg'}; `jpmhc report {options.workdir}` draws them")
  return 0
