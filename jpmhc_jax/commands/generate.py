"""jpmhc generate: a prompt written on by the language model of a workdir."""

import argparse
import dataclasses

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Generate:
  """The command `jpmhc generate`."""

  name: str = "generate"
  help: str = "Write a prompt on with the language model of a workdir; the same seed gives the same text."
  takes_overrides: bool = False
  computes: bool = True

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--workdir", required=True, type=arguments.stored, help="folder of a run with data.kind=text")
    parser.add_argument(
      "--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest by default"
    )
    parser.add_argument("--prompt", default="", help="text to go on from; empty: from the start of a document")
    parser.add_argument("--tokens", type=arguments.whole(1), default=200, help="tokens to write")
    parser.add_argument(
      "--temperature", type=arguments.number(0), default=1.0, help="of the draw; 0 takes the likeliest token"
    )
    parser.add_argument("--top-k", type=arguments.whole(0), default=0, help="draw from so many likeliest; 0 = from all")
    parser.add_argument("--seed", type=arguments.whole(0), default=0, help="of the draws")

  def run(self, options: argparse.Namespace) -> int:
    """Prints the prompt and what follows; 0."""
    from jpmhc_jax import runs

    drawn = {"tokens": options.tokens, "temperature": options.temperature, "top_k": options.top_k}
    print(runs.load(options.workdir, options.step).generate(options.prompt, seed=options.seed, **drawn))
    return 0
