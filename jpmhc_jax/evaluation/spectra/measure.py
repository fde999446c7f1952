"""Measured Jacobian spectra of a trained network beside those that free probability predicts from its coefficients.

Three scales: every part of the network (connection, sub-layer, norm); every network call of TRM's recursion, or every
layer of the decoder; the whole map, of the carry (z_H, z_L) from the start over many calls or of the streams through
all layers. All at one real batch of the run's data, with the evaluated parameters, in float32.

How near the two are is measured every time (W1 in log singular value), and it is no agreement within sampling error.
The theory holds for independent Gaussian noise in every layer and coefficients that do not depend on the streams. A
trained network breaks this: TRM's calls share their weights, so that noise adds up coherently or cancels over many
calls; F' has structure (attention is a product over positions and features, few directions count); H, a and b depend on
the streams. Single parts come out best. Over many calls most singular values lie below the floor of the measurement,
where both sides count as the floor: a small W1 there says little, and the largest values may be far off (26 times too
large on a tiny TRM).
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core import rng
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.files import storing, to_json, write_atomically
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.spectra import transformer, trm
from jpmhc_jax.evaluation.spectra.trm import call_layers, part_layers, Stack, Trace
from jpmhc_jax.mixers import parse
from jpmhc_jax.spectral import compare, density, dyson, measured, rules, table
from jpmhc_jax.spectral.jacobian import measure as law_of
from jpmhc_jax.spectral.jacobian import mixer_stack
from jpmhc_jax.spectral.layers import block_noise, Layers
from jpmhc_jax.training.state import prepare, Setup, TrainState
from jpmhc_jax.training.tasks.base import Task, TransformerPass
from jpmhc_jax.training.tasks.trm import DeepSupervision

FILE = "spectrum.json"
_MEASURING = 0.7  # share of the time, roughly; the rest is for the design rules
CHECKPOINT = "checkpoint"  # the row of the network's own mixers
Network = trm.Network | transformer.Network


@functools.singledispatch
def network_of(task: Task, setup: Setup) -> Network:
  """The task's network as functions to be linearised; `network_of.register(MyTask)` adds that of a task of one's own.

  Raises UserError for a task without one.
  """
  raise UserError(
    f"model.kind={setup.config.model.kind!r}: Jacobian spectra are measured for tasks with a network to linearise; "
    "register one by jpmhc_jax.evaluation.spectra.measure.network_of"
  )


@network_of.register
def _(task: DeepSupervision, setup: Setup) -> Network:
  return trm.Network.of(setup.graph, setup.config.model)


@network_of.register
def _(task: TransformerPass, setup: Setup) -> Network:
  return transformer.Network.of(setup.graph, setup.config.model)


@dataclasses.dataclass(frozen=True)
class Effort:
  """How much is measured and predicted."""

  examples: int = 1  # of the batch; every Jacobian is that of all of them together
  tokens: int = 3  # at which the coefficients are read; predictions are averaged over them
  steps: int = 96  # of Lanczos
  probes: int = 2
  exact_limit: int = 1200  # inputs up to which the whole Jacobian is decomposed instead
  points: int = 128  # of the grid of a prediction
  carry_points: int = 48  # the same for the whole map, which is as deep as all calls together; read at one token


@dataclasses.dataclass(frozen=True)
class Site:
  """One Jacobian: its measured spectrum and, where the theory covers it, the predicted one."""

  scale: str  # "part"; "recursion" and "carry", or "layer" and "depth"
  name: str
  calls: int  # 1-based network call or layer; of the whole map their number
  size: int  # inputs of the Jacobian
  exact: bool
  floor: float  # singular value under which both sides are cut off
  measured: compare.Summary
  predicted: compare.Summary | None
  w1: float | None  # between the two, in log singular value
  chance: float  # W1 that the random probes alone are expected to leave
  residual: float | None  # of the Dyson equation; None where it could not be solved
  singular_values: tuple[float, ...]  # the axis of the densities of log s below
  measured_density: tuple[float, ...]
  predicted_density: tuple[float, ...] | None

  def to_dict(self) -> dict[str, Any]:
    """Plain values for JSON."""
    summaries = {"measured": self.measured._asdict(), "predicted": self.predicted and self.predicted._asdict()}
    return dataclasses.asdict(self) | summaries


@dataclasses.dataclass(frozen=True)
class Linearised:
  """The network at a real batch: what to differentiate, where, and the coefficients seen there."""

  network: Network
  parts: tuple[str, ...]
  arrays: tuple[Any, Any]  # parameters and buffers
  x: jax.Array  # embedded inputs that every call sees
  latents: jax.Array
  trace: Trace
  removed: tuple[float, ...]  # see `Network.removed`


def linearise(setup: Setup, dataset: Dataset, state: TrainState, step: int, effort: Effort) -> Linearised:
  """Runs the network on the batch of `step` and reads its coefficients off."""
  config = setup.config
  if config.precision.compute != "float32":
    precision = dataclasses.replace(config.precision, compute="float32")
    setup = prepare(dataclasses.replace(config, precision=precision), dataset, setup.mesh, trains=False)
  arrays: tuple[Any, Any] = jax.tree.map(jnp.asarray, jax.device_get((state.evaluated, state.buffers)))  # on one device
  batch = {name: np.asarray(rows[: effort.examples]) for name, rows in dataset.batch(step).items()}
  rows = setup.rows(None if state.table is None else jnp.asarray(jax.device_get(state.table)), batch)
  network = network_of(setup.task, setup)
  latents, x, parts = network.start(*arrays, jnp.asarray(batch["inputs"]), rows)
  key = rng.key_for(config.seed, "spectrum", step)
  tokens = jax.random.choice(key, x.shape[0] * x.shape[1], (effort.tokens,), replace=False)
  trace = jax.jit(network.trace)(latents, *arrays, x, tokens, key)
  # The theory computes with the coefficients on the host; the points at which a Jacobian is taken stay where they are.
  trace = jax.tree.map(np.asarray, trace)._replace(states=trace.states, inputs=trace.inputs)
  removed = network.removed(*arrays, trace.inputs[0])
  return Linearised(network, parts, arrays, x, latents, trace, removed)


def measure(
  at: Linearised, effort: Effort, threshold: float = 0.1, tick: rules.Tick = lambda what, share: None
) -> Iterator[Site]:
  """Every site in turn: the parts of the last call, every call, the carry after the first cycle and after all calls.

  tick: called before every site and while it is predicted; what it raises ends the work.
  """
  total = len(at.parts) + at.network.calls + len(at.network.counts)
  for index, (scale, name, calls, jacobian, stacks, removed) in enumerate(_sites(at)):

    def report(share: float, name: str = name, index: int = index) -> None:
      tick(name, (index + share) / total)

    report(0.0)
    points = effort.carry_points if scale == at.network.scales[1] else effort.points
    site = _compared(jacobian, jax.random.key(index), stacks, removed, points, effort, threshold, report)
    yield Site(scale=scale, name=name, calls=calls, **site)


def _sites(at: Linearised) -> Iterator[tuple[str, str, int, measured.Operator, list[Stack], float]]:
  """(scale, name, calls, Jacobian, one stack of layers a token, share of directions that the norms remove)."""
  network, trace, tokens = at.network, at.trace, range(at.trace.mixers.shape[2])
  for index, name in enumerate(at.parts):
    jacobian = measured.operator(network.part(index), trace.inputs[index], *at.arrays)
    yield (
      "part",
      name,
      network.calls,
      jacobian,
      [part_layers(trace, index, token) for token in tokens],
      at.removed[index],
    )
  # Streams made inside a call have each lost another direction when their mean leaves it: nothing is lost.
  removed = 0.0 if trace.enter.size else max(at.removed)
  one, many = network.scales
  for call in range(network.calls):
    jacobian = measured.operator(network.call, trace.states[call], *at.arrays, jnp.asarray(call))
    stacks = [call_layers(trace, call, token) for token in tokens]
    yield one, f"{network.noun} {call + 1}", call + 1, jacobian, stacks, removed
  for count in network.counts:
    whole = network.layers(trace, count, 0)
    jacobian = measured.operator(network.carry, at.latents, *at.arrays, at.x, jnp.asarray(count))
    yield many, f"{network.noun}s 1 to {count}", count, jacobian, [whole] if whole else [], removed


def _compared(
  jacobian: measured.Operator,
  key: jax.Array,
  stacks: list[Stack],
  removed: float,
  points: int,
  effort: Effort,
  threshold: float,
  tick: Callable[[float], None],
) -> dict[str, Any]:
  """Everything of a `Site` but its name."""
  measurement = law_of(jacobian, exact_limit=effort.exact_limit, steps=effort.steps, probes=effort.probes, key=key)
  law, residual = _predicted(stacks, removed, points, measurement.floor, tick) if stacks else (None, None)
  both = np.concatenate([measurement.log_values, *([law.log_values] if law else [])])
  grid = np.linspace(both.min() - 0.1, both.max() + 0.1, 160)
  width = max(0.03, (grid[-1] - grid[0]) / 60)
  return {
    "size": jacobian.inputs,
    "exact": measurement.source == "exact",
    "floor": measurement.floor,
    "measured": measurement.summary(threshold),
    "predicted": compare.summary(law, threshold, measurement.floor) if law else None,
    "w1": compare.w1(measurement.atoms, law) if law else None,
    "chance": measurement.chance,
    "residual": residual,
    "singular_values": tuple(np.exp(grid).tolist()),
    "measured_density": tuple(compare.smoothed(measurement.atoms, grid, width).tolist()),
    "predicted_density": tuple(compare.smoothed(law, grid, width).tolist()) if law else None,
  }


def _predicted(
  stacks: list[Stack], removed: float, points: int, floor: float, tick: Callable[[float], None]
) -> tuple[compare.Atoms | None, float | None]:
  """The predicted law and the residual of its equation; None and None where it could not be solved."""
  with jax.enable_x64(True):
    layers = [layers_of(stack) for stack in stacks]
    try:
      spectrum = density.spectrum(layers, points, floor=0.5 * floor**2, tick=tick)
    except dyson.NotSolvedError:
      return None, None
    share = 1.0 / layers[0].streams if stacks[0].closed else 1.0  # the rest of a closed stack is zero by construction
    return compare.of_spectrum(spectrum, share, floor, removed), float(jnp.max(spectrum.residual))


def layers_of(stack: Stack) -> Layers:
  """The stack for the spectral theory. Needs float64."""
  return block_noise(stack.mixers, stack.sigma, stack.reads, stack.writes)


HEADER = f"{'Jacobian of':<20}{'size':>6}{'largest':>18}{'stalled':>16}{'mean log':>16}{'spread':>14}  {'W1':>6}"


def describe(site: Site) -> str:
  """One line below HEADER: measured and predicted pairs, then W1 with its chance."""
  forms = (("largest", "9.3g"), ("stalled", "8.1%"), ("mean_log", "8.2f"), ("spread_log", "7.2f"))
  pairs = []
  for name, form in forms:
    for side in (site.measured, site.predicted):
      pairs.append(f"{getattr(side, name):{form}}" if side else f"{'–':>{form.split('.')[0]}}")
  distance = f"{site.w1:6.3f} ± {site.chance:.3f}" if site.w1 is not None else f"{'–':>6}"
  return f"{site.name:<20}{site.size:>6}{''.join(pairs)}  {distance}"


def swapped(
  at: Linearised,
  families: Sequence[str],
  threshold: float,
  points: int,
  seed: int,
  say: Callable[[str], None],
  tick: rules.Tick,
) -> Iterator[rules.Row]:
  """Design rules for the last call, or all layers, as they are, and with random members of other families as mixers."""
  depth, streams, _ = at.network.design(at.trace, 0).mixers.shape
  tokens = range(at.trace.mixers.shape[2])

  def make(name: str, depth: int) -> list[Layers]:
    own = None if name == CHECKPOINT else mixer_stack(parse(name), streams, depth, "random", seed)
    return [layers_of(at.network.design(at.trace, token, own)) for token in tokens]

  jobs = [(name, depth) for name in (CHECKPOINT, *families)]
  return table.announced(rules.rows(jobs, make, None, threshold, points, tick), jobs, streams, say, len(tokens))


@dataclasses.dataclass(frozen=True)
class Findings:
  """What spectrum.json holds: the sites that were measured, and what other mixers would do."""

  step: int
  threshold: float
  effort: Effort
  sites: tuple[Site, ...] = ()
  rows: tuple[rules.Row, ...] = ()
  complete: bool = False  # False while the work goes on, and for ever when it was interrupted

  @property
  def design(self) -> rules.Report:
    """The rows as a report with a recommendation."""
    about = {"activation": "measured", "draw": CHECKPOINT, "noise": "block"}
    return rules.Report.of(self.rows, self.threshold, sigma_w_advice=None, complete=self.complete, **about)

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON values; the rows are in its `design`."""
    own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "rows"}
    sites, design = [site.to_dict() for site in self.sites], dataclasses.asdict(self.design)
    return own | {"effort": dataclasses.asdict(self.effort), "sites": sites, "design": design}

  def save(self, folder: pathlib.Path) -> None:
    """Writes folder/spectrum.json, whole or not at all."""
    with storing(str(folder / FILE)):
      write_atomically(folder / FILE, to_json(self.to_dict()) + "\n")


def findings(
  setup: Setup,
  dataset: Dataset,
  state: TrainState,
  step: int,
  *,
  families: Sequence[str] = (),
  threshold: float = 0.1,
  effort: Effort = Effort(),  # noqa: B008
  say: Callable[[str], None] = print,
  tick: rules.Tick = lambda what, share: None,
) -> Iterator[Findings]:
  """Measures, predicts, tries other mixers: what is found, again after every site and every mixer.

  say: takes the lines of the result. tick: called now and then with the share of the work that is done; what it raises
  ends the work.
  """
  tick("the network at a batch", 0.0)
  at = linearise(setup, dataset, state, step, effort)
  result = Findings(step, threshold, effort)
  say(f"measured, predicted; last {at.network.noun} of {at.network.calls}, step {step}")
  say(HEADER)
  for site in measure(at, effort, threshold, lambda what, share: tick(what, _MEASURING * share)):
    say(describe(site))
    result = dataclasses.replace(result, sites=(*result.sites, site))
    yield result
  say(f"predicted for the last {at.network.noun} with its own mixers and others")
  say(table.HEADER)
  rest = lambda what, share: tick(what, _MEASURING + (1 - _MEASURING) * share)  # noqa: E731
  for row in swapped(at, families, threshold, effort.points, setup.config.seed, say, rest):
    say(table.line(row))
    result = dataclasses.replace(result, rows=(*result.rows, row))
    yield result
  yield dataclasses.replace(result, complete=True)
  say(table.conclusion(result.design))
