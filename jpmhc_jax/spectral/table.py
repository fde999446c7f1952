"""The table of a `rules.Report`: lines as they come, and what stands below them."""

from collections.abc import Callable, Iterator, Sequence

from jpmhc_jax import mixers
from jpmhc_jax.spectral import rules

__all__ = ["COHERENCE", "COST", "HEADER", "MEANING", "SLOW_S", "announced", "conclusion", "line"]

SLOW_S = 60.0  # a row that may take longer is announced


def announced(
  rows: Iterator[rules.Row], jobs: Sequence[tuple[str, int]], streams: int, say: Callable[[str], None], stacks: int = 1
) -> Iterator[rules.Row]:
  """The rows (`rules.rows`) of these (mixer, depth); `say` gets the time that a slow one may take before it starts."""
  for name, depth in jobs:
    seconds = rules.longest_seconds(streams, depth, stacks)
    if seconds > SLOW_S:
      rough = f"{seconds / 60:,.0f} min" if seconds > 90 else f"{seconds:.0f} s"
      say(f"  {name}, depth {depth}: at most about {rough}; Ctrl-C keeps the rows above")
    yield next(rows)


# Names of the columns, and below them their units.
HEADER = (
  f"{'mixer':<16}{'depth':>6}{'sigma_w':>9}{'noise':>8}{'condition':>11}{'stalled':>9}{'mean log':>10}{'spread':>8}"
  f"{'grad/layer':>12}{'coherence':>11}{'residual':>10}\n"
  f"{'':<16}{'layers':>6}{'factor':>9}{'factor²':>8}{'ratio':>11}{'share':>9}{'ln':>10}{'ln':>8}"
  f"{'factor':>12}{'0 to 1':>11}{'defect':>10}"
)
MEANING = """\
A singular value s of the Jacobian is the factor by which the gradient of one direction grows or fades on its way.
condition is the 99 % over the 1 % quantile of s, stalled the share of directions with s under the threshold, mean log
and spread are of ln s: near 1, 0 %, 0 and 0 every direction learns at any depth, grad/layer is a layer's factor on the
gradient norm. Against stalled directions take a mixer that keeps norms or fewer layers, against a large condition a
smaller scale of the sub-layers (sigma_w)."""
COHERENCE = """\
coherence is how much of what a weight wrote it reads again at a later call (mean |N| over pairs of calls, 0 to 1): what
repeats adds up from call to call. Mixers that keep the mean of the streams (identity, iso, sinkhorn and the other
doubly stochastic families) cannot lower it under uniform reads and writes. Mixers that turn the mean (cayley, polar,
householder and other orthogonal families) can, and more so when every call has its own (--sharing=per_call)."""


COST = """\
cost of a mixer, FLOPs a token and sub-layer, forward + backward: {listed}. It matters in narrow networks: on CPUs four
streams with cayley or sinkhorn take 1.5 times the step of one at width 128, 1.24 to 1.29 times at width 512."""


def line(row: rules.Row) -> str:
  """A row (`rules.Row`) below HEADER; one that is not the solution of the Dyson equation says why."""
  if isinstance(row, rules.Absent):
    return f"{row.mixer:<16}{row.depth:>6}  not predicted: {row.reason}"
  scale = "–" if row.sigma_w is None else f"{row.sigma_w:.3g}"
  coherence = "–" if row.coherence is None else f"{row.coherence:.3f}"
  residual = "sampled" if row.residual is None else f"{row.residual:.0e}"
  text = (
    f"{row.mixer:<16}{row.depth:>6}{scale:>9}{row.total_noise:>8.3g}{row.condition:>11.3g}{row.stalled:>9.1%}"
    f"{row.mean_log:>10.3f}{row.spread_log:>8.3f}{row.gradient_gain:>12.4f}{coherence:>11}{residual:>10}"
  )
  return f"{text}\n  {row.mixer}, depth {row.depth}: {row.remark}" if row.remark else text


def conclusion(report: rules.Report) -> str:
  """What stands below the rows of a `rules.Report`."""
  lines = []
  if report.predictions:
    lines.append(MEANING)
  if any(row.coherence is not None for row in report.predictions):
    lines.append(COHERENCE)
  if costs := _costs(report.predictions):
    lines.append(COST.format(listed=costs))
  if report.recommendation:
    lines.append(f"recommended: {report.recommendation}: {report.reason}.")
  elif report.reason:
    lines.append(f"no recommendation: {report.reason}.")
  if report.sigma_w_advice is not None:
    lines.append(
      f"sigma_w = {report.sigma_w_advice:.3g} keeps the total noise at 0.05 over isometric mixers at the greatest "
      "depth."
    )
  return "\n".join(lines)


def _costs(rows: Sequence[rules.Prediction]) -> str:
  """'cayley 245 + 288, …' of the families among the rows; '' where they are fewer than two."""
  families = {row.mixer: row.streams for row in rows if row.mixer in mixers.FAMILIES}
  counts = {name: mixers.make(name).flops(streams) for name, streams in families.items()}
  listed = ", ".join(f"{name} {forward:,} + {backward:,}" for name, (forward, backward) in counts.items())
  return listed if len(families) > 1 else ""
