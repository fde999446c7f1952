"""jpmhc latents: what a trained model makes of its data set's examples at one layer, as an .npz file."""

import argparse
import dataclasses

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Latents:
  """The command `jpmhc latents`."""

  name: str = "latents"
  help: str = "Write the latents of the held-out examples at one layer, with ids, inputs and labels, to an .npz file."
  takes_overrides: bool = False
  computes: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--workdir", required=True, type=arguments.stored, help="folder of a run of `jpmhc train`")
    parser.add_argument("--layer", required=True, help="a connection, such as block1.features; of a map: source, image")
    parser.add_argument("--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest")
    parser.add_argument(
      "--out",
      type=arguments.stored,
      default=None,
      help="the file; latents_<layer>_<step>.npz in the workdir by default",
    )
    parser.add_argument("--train", action="store_true", help="also the training examples, without augmentation")
    parser.epilog = (
      "The latents (n, d) are the streams that enter the layer, averaged over streams and tokens. `data.pairs.source` "
      "and `data.pairs.target` take such files."
    )

  def run(self, options: argparse.Namespace) -> int:
    """Prints where the latents are; 0."""
    from jpmhc_jax import runs
    from jpmhc_jax.core.files import check_place
    from jpmhc_jax.evaluation.latents import latents, write

    if options.out is not None:
      check_place("--out", options.out)
    run = runs.load(options.workdir, options.step)
    path = options.out or options.workdir / f"latents_{options.layer}_{run.step}.npz"
    arrays = latents(run.setup, run.dataset, run.state, options.layer, train=options.train)
    write(path, arrays)
    rows, width = arrays["latents"].shape
    print(f"written: {path} ({rows} rows of {width})")
    return 0
