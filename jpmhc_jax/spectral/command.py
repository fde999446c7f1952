"""`jpmhc spectrum`: options of the design rules, and their table."""

import argparse

from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.core.ranges import LARGEST_SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--mixer",
    default="",
    help="mixer families, comma-separated; by default identity,sinkhorn,cayley,iso, and with --workdir none",
  )
  parser.add_argument("--n", type=arguments.whole(2, 64), default=4, help="streams")
  parser.add_argument("--depth", type=arguments.wholes(1), default="12,48", help="layers, comma-separated")
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
  """The mixer families asked for. Raises ConfigError for one that does not exist."""
  from jpmhc_jax.manifolds import FAMILIES  # JAX comes with it, which `--help` does without

  listed = options.mixer or "identity,sinkhorn,cayley,iso"
  names = [part.strip() for part in listed.split(",") if part.strip()]
  for name in names:
    check_choice("--mixer", name, FAMILIES)
  return names


def report(options: argparse.Namespace):
  """The design rules (`rules.Report`) for the options."""
  from jpmhc_jax.spectral import rules

  return rules.what_if(
    families(options),
    options.n,
    options.depth,
    options.activation,
    options.sigma_w,
    draw=options.draw,
    noise=options.noise,
    threshold=options.threshold,
    seed=options.seed,
  )


def table(report) -> str:
  """The report (`rules.Report`) as fixed-width text."""
  head = (
    f"{'mixer':<16}{'depth':>6}{'sigma_w':>9}{'noise':>8}{'condition':>11}{'stalled':>9}{'mean log':>10}{'spread':>8}"
    f"{'grad/layer':>12}{'residual':>10}"
  )
  lines = [
    f"predicted Jacobian spectrum: {report.activation}, {report.noise} noise, mixers drawn as '{report.draw}'",
    head,
  ]
  for r in report.predictions:
    scale = "–" if r.sigma_w is None else f"{r.sigma_w:.3f}"
    lines.append(
      f"{r.mixer:<16}{r.depth:>6}{scale:>9}{r.total_noise:>8.3f}{r.condition:>11.3g}{r.stalled:>9.1%}{r.mean_log:>10.3f}"
      f"{r.spread_log:>8.3f}{r.gradient_gain:>12.4f}{r.residual:>10.0e}"
    )
  lines.append(f"recommended: {report.recommendation}: {report.reason}.")
  if report.sigma_w_advice is not None:
    lines.append(
      f"sigma_w = {report.sigma_w_advice:.3f} keeps the total noise at 0.05 over isometric mixers at the greatest "
      "depth."
    )
  return "\n".join(lines)
