"""`jpmhc spectrum`: options of the design rules, and their table."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.core.seeds import LARGEST_SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
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
    help="layers, comma-separated; a row takes time in proportion to depth * n^3, which may be 2e7 at most",
  )
  parser.add_argument("--activation", default="gelu", help="relu, tanh, sigmoid, leaky_relu, gelu, silu or linear")
  parser.add_argument(
    "--sigma-w",
    type=arguments.number(0, 1000, above=True),
    default=None,
    help="weight scale; default: total noise 0.05 at the greatest depth",
  )
  parser.add_argument("--draw", default="random", help="random = a random member, init = as a run starts")
  parser.add_argument(
    "--noise", default="full", help="full = noise couples all streams, block = through read and write vectors"
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
    noise=options.noise,
    threshold=options.threshold,
    seed=options.seed,
  )


SLOW_S = 60.0  # a row that may take longer is announced


def announced(
  rows: Iterator[Any], jobs: Sequence[tuple[str, int]], streams: int, say: Callable[[str], None], stacks: int = 1
) -> Iterator[Any]:
  """The rows (`rules.rows`) of these (mixer, depth); `say` gets the time that a slow one may take before it starts."""
  from jpmhc_jax.spectral import rules

  for name, depth in jobs:
    seconds = rules.longest_seconds(streams, depth, stacks)
    if seconds > SLOW_S:
      rough = f"{seconds / 60:,.0f} min" if seconds > 90 else f"{seconds:.0f} s"
      say(f"  {name}, depth {depth}: at most about {rough}; Ctrl-C keeps the rows above")
    yield next(rows)


HEADER = (
  f"{'mixer':<16}{'depth':>6}{'sigma_w':>9}{'noise':>8}{'condition':>11}{'stalled':>9}{'mean log':>10}{'spread':>8}"
  f"{'grad/layer':>12}{'residual':>10}"
)


def line(row: Any) -> str:
  """A row (`rules.Row`) below HEADER; one that is not the solution of the Dyson equation says why."""
  if not hasattr(row, "condition"):
    return f"{row.mixer:<16}{row.depth:>6}  not predicted: {row.reason}"
  scale = "–" if row.sigma_w is None else f"{row.sigma_w:.3g}"
  residual = "sampled" if row.residual is None else f"{row.residual:.0e}"
  text = (
    f"{row.mixer:<16}{row.depth:>6}{scale:>9}{row.total_noise:>8.3g}{row.condition:>11.3g}{row.stalled:>9.1%}"
    f"{row.mean_log:>10.3f}{row.spread_log:>8.3f}{row.gradient_gain:>12.4f}{residual:>10}"
  )
  return f"{text}\n  {row.mixer}, depth {row.depth}: {row.remark}" if row.remark else text


def conclusion(report: Any) -> str:
  """What stands below the rows of a `rules.Report`."""
  lines = []
  if report.recommendation:
    lines.append(f"recommended: {report.recommendation}: {report.reason}.")
  if report.sigma_w_advice is not None:
    lines.append(
      f"sigma_w = {report.sigma_w_advice:.3g} keeps the total noise at 0.05 over isometric mixers at the greatest "
      "depth."
    )
  return "\n".join(lines)
