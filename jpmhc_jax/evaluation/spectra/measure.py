"""Measured Jacobian spectra of a trained network beside those that free probability predicts from its coefficients.

Three scales: every part of the network (connection, sub-layer, norm); every network call of TRM's recursion, or every
layer of a transformer; the whole map, of the carry (z_H, z_L) from the start over many calls or of the streams through
all layers and loops. All at one real batch of the run's data, with the evaluated parameters, in float32.

The noise of a part is its sub-layer's Jacobian, with its moments across all parts (`moments`): calls that share their
weights have correlated noise, which adds up coherently or cancels. Beside that prediction stands the one of the same
network with weights of their own at every call, and for all calls of a recursion together a third one: the sub-layers'
own Jacobians, all turned by one random rotation, which are free of the coefficients without being Gaussian. How near
they are is measured every time (W1 in log singular value), and it is no agreement within sampling error: a trained F'
is not Gaussian (attention is a product over positions and features, few directions count), coefficients differ between
tokens and features (a few groups of them stand for all), and H, a and b depend on the streams. The largest value is an
outlier that no average predicts; it is measured.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core import rng
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.files import storing, to_json, write_atomically
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.spectra import moments, sites, transformer, trm
from jpmhc_jax.evaluation.spectra.cells import Cells, groups
from jpmhc_jax.evaluation.spectra.network import Network
from jpmhc_jax.evaluation.spectra.sites import Site
from jpmhc_jax.evaluation.spectra.stacks import call_layers, correlated_of, layers_of, part_layers, Stack, Trace
from jpmhc_jax.mixers import parse
from jpmhc_jax.spectral import compare, correlated, density, dyson, measured, rules, table
from jpmhc_jax.spectral.correlated import echoes
from jpmhc_jax.spectral.jacobian import measure as law_of
from jpmhc_jax.spectral.jacobian import mixer_stack
from jpmhc_jax.spectral.layers import Layers
from jpmhc_jax.training.state import prepare, Setup, TrainState
from jpmhc_jax.training.tasks.base import Task, TransformerPass
from jpmhc_jax.training.tasks.symbols import SymbolEquivariant
from jpmhc_jax.training.tasks.trm import DeepSupervision
from jpmhc_jax.training.tasks.urm import UniversalReasoning

FILE = "spectrum.json"
_MOMENTS, _MEASURING = 0.05, 0.7  # shares of the time, roughly; the rest is for the design rules
_POINT_S = 0.0025  # CPU seconds a grid point and cell of 48 places, measured
_INVISIBLE = 1e-3  # share of the directions above the floor (at most E s² / floor², Markov) that no picture shows
_DESIGN_CELLS = 4  # of the design rules, the commonest, each a stack of its own
CHECKPOINT = "checkpoint"  # the row of the network's own mixers


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
  if setup.config.connection.sublayer != "whole":
    raise UserError("connection.sublayer='stream': spectra are measured of sub-layers of the whole width; take 'whole'")
  return trm.Network.of(setup.graph, setup.config.model)


@network_of.register
def _(task: SymbolEquivariant, setup: Setup) -> Network:
  raise UserError(
    "model.kind='trm_symbols': spectra are measured of TRM's two latents and of transformers; a latent with an axis of "
    "symbols has no network to linearise here yet; take model.kind=trm"
  )


@network_of.register
def _(task: UniversalReasoning, setup: Setup) -> Network:
  raise UserError(
    "model.kind='urm': spectra are measured of TRM's two latents and of transformers; the loops of one latent have no "
    "network to linearise here yet; take model.kind=trm"
  )


@network_of.register
def _(task: TransformerPass, setup: Setup) -> Network:
  return transformer.Network.of(setup.graph, setup.config.model)


@dataclasses.dataclass(frozen=True)
class Effort:
  """How much is measured and predicted."""

  examples: int = 1  # of the batch; every Jacobian is that of all of them together
  drawn: int = 512  # cells, tokens and features at which the coefficients are read
  cells: int = 32  # groups of like ones, which the noise couples
  steps: int = 96  # of Lanczos
  probes: int = 2
  exact_limit: int = 1200  # inputs up to which the whole Jacobian is decomposed instead
  points: int = 128  # of the grid of a prediction
  carry_points: int = 96  # the same for the whole map, which is as deep as all calls together
  carry_s: float = 10.0  # CPU time for the prediction of the whole map, roughly: it takes fewer cells where it is slow


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
  rows: jax.Array  # (K·P, N) ρ of `moments`

  def grouped(self, count: int) -> Trace:
    """The trace at no more than so many groups of like cells, the commonest first."""
    return self.trace.grouped(groups(self._points, count))

  @functools.cached_property
  def _points(self) -> np.ndarray:
    """(T, ·) of the cells: how much of what each layer wrote each later one reads, times the sizes of their noise."""
    network, trace = self.network, self.trace
    stacks = [
      network.layers(trace, network.calls, cell) or network.design(trace, cell) for cell in range(trace.mixers.shape[2])
    ]
    sizes = np.sqrt(np.diagonal(stacks[0].noise.covariance))
    with jax.enable_x64(True):
      points = echoes(correlated_of(stacks)) * sizes[:, None] * sizes
    return np.log1p(points / np.sqrt(np.mean(points**2) + np.finfo(np.float64).tiny)).reshape(len(stacks), -1)


def linearise(
  setup: Setup,
  dataset: Dataset,
  state: TrainState,
  step: int,
  effort: Effort,
  tick: rules.Tick = lambda what, share: None,
) -> Linearised:
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
  cells = Cells.drawn(x.shape[0] * x.shape[1], latents.shape[-1], effort.drawn, key)
  trace = jax.jit(network.trace)(latents, *arrays, x, cells, key)
  products = functools.partial(jax.jit(network.products), trace.states, *arrays)
  width = (*x.shape[:2], config.model.width)
  calls, count = trace.gains.shape[:2]
  report = lambda share: tick("moments of the sub-layers", share)  # noqa: E731
  noise, sizes = moments.estimate(products, width, calls * count, key, report)
  features = latents.shape[-1]
  at_cells = cells.of_rows(sizes, (calls, count, x.shape[0] * x.shape[1], config.model.width // features, features))
  # The theory computes with the coefficients on the host; the points at which a Jacobian is taken stay where they are.
  points = {"states": trace.states, "inputs": trace.inputs}
  trace = jax.tree.map(np.asarray, trace)
  trace = trace._replace(writes=trace.writes * at_cells[:, :, :, None, :], noise=noise, **points)
  removed = network.removed(*arrays, trace.inputs[0])
  return Linearised(network, parts, arrays, x, latents, trace, removed, jnp.asarray(sizes, jnp.float32))


def measure(
  at: Linearised,
  effort: Effort,
  threshold: float = 0.1,
  tick: rules.Tick = lambda what, share: None,
  scales: Sequence[str] = ("part", *trm.Network.scales, *transformer.Network.scales),
) -> Iterator[Site]:
  """Every site in turn: the parts of the last call, every call, the carry after the first cycle and after all calls.

  scales: of the sites that are wanted, see `Site.scale`; or their names.
  tick: called before every site and while it is predicted; what it raises ends the work.
  """
  total = len(at.parts) + at.network.calls + len(at.network.counts)
  for index, place in enumerate(_places(at, effort)):
    if place.scale not in scales and place.name not in scales:
      continue

    def report(share: float, name: str = place.name, index: int = index) -> None:
      tick(name, (index + share) / total)

    report(0.0)
    points = effort.carry_points if place.scale == at.network.scales[1] else effort.points
    site = _compared(place, jax.random.key(index), points, effort, threshold, report)
    yield Site(scale=place.scale, name=place.name, calls=place.calls, **site)


_Cells = tuple[list[Stack], np.ndarray | None]  # of each its stack of layers, and their shares


class _Place(NamedTuple):
  """A Jacobian with what predicts it."""

  scale: str
  name: str
  calls: int
  jacobian: measured.Operator
  cells: _Cells
  removed: float  # share of directions that the norms remove
  rotated: measured.Operator | None = None  # the same with every sub-layer's Jacobian turned by one random rotation


def _places(at: Linearised, effort: Effort) -> Iterator[_Place]:
  network, trace = at.network, at.grouped(effort.cells)
  cells = range(trace.mixers.shape[2])
  for index, name in enumerate(at.parts):
    jacobian = measured.operator(network.part(index), trace.inputs[index], *at.arrays)
    stacks = [part_layers(trace, index, cell) for cell in cells]
    yield _Place("part", name, network.calls, jacobian, (stacks, trace.shares), at.removed[index])
  # Streams made inside a call have each lost another direction when their mean leaves it: nothing is lost.
  removed = 0.0 if trace.enter.size else max(at.removed)
  one, many = network.scales
  for call in range(network.calls):
    jacobian = measured.operator(network.call, trace.states[call], *at.arrays, jnp.asarray(call))
    stacks = [call_layers(trace, call, cell) for cell in cells]
    yield _Place(one, f"{network.noun} {call + 1}", call + 1, jacobian, (stacks, trace.shares), removed)
  for count in network.counts:
    jacobian = measured.operator(network.carry, at.latents, *at.arrays, at.x, jnp.asarray(count))
    few = at.grouped(_affordable(trace, count, effort))
    whole = [stack for cell in range(few.mixers.shape[2]) if (stack := network.layers(few, count, cell)) is not None]
    rotated = network.rotated(trace.states, at.rows) if whole and count == network.calls else None
    turned = rotated and measured.operator(rotated, jnp.zeros_like(at.latents), *at.arrays)
    yield _Place(many, f"{network.noun}s 1 to {count}", count, jacobian, (whole, few.shares), removed, turned)


def _affordable(trace: Trace, count: int, effort: Effort) -> int:
  """Cells of the first calls for which `effort` has time, at least one."""
  places = 2 * count * trace.reads.shape[1] * trace.reads.shape[3]
  seconds = _POINT_S * max(1.0, (places / 48) ** 2.3) * (2 * effort.carry_points + 96)
  return max(1, min(effort.cells, int(effort.carry_s / seconds)))


def _compared(
  place: _Place, key: jax.Array, points: int, effort: Effort, threshold: float, tick: Callable[[float], None]
) -> dict[str, Any]:
  """Everything of a `Site` but what it is of."""
  law = functools.partial(law_of, exact_limit=effort.exact_limit, steps=effort.steps, probes=effort.probes, key=key)
  measurement = law(place.jacobian)
  floor = measurement.floor
  tied = _predicted(place.cells, place.removed, points, floor, lambda share: tick(share / 2))
  alone = [stack.independent for stack in place.cells[0]], place.cells[1]
  single = _predicted(alone, place.removed, points, floor, lambda share: tick((1 + share) / 2))
  turned = law(place.rotated) if place.rotated else None
  resolved = max(floor, turned.floor) if turned else floor  # by both
  rotated = compare.with_dead(turned.atoms, place.removed, resolved) if turned else None
  laws = {"predicted": tied.law, "independent": single.law, "rotated": rotated}
  both = np.concatenate([each.log_values for each in (measurement.atoms, *laws.values()) if each])
  grid = np.linspace(both.min() - 0.1, both.max() + 0.1, 160)
  width = max(0.03, (grid[-1] - grid[0]) / 60)
  sides: dict[str, Any] = {}
  for name, each in laws.items():
    sides[name] = compare.summary(each, threshold, floor) if each else None
    own = compare.cut(measurement.atoms, resolved) if each is rotated else measurement.atoms
    sides["w1" if name == "predicted" else f"{name}_w1"] = compare.w1(own, each) if each else None
  for name, each in ({"measured": measurement.atoms} | laws).items():
    sides[f"{name}_density"] = tuple(compare.smoothed(each, grid, width).tolist()) if each else None
  return sides | {
    "size": place.jacobian.inputs,
    "exact": measurement.source == "exact",
    "floor": floor,
    "measured": measurement.summary(threshold),
    "top": measurement.top,
    "chance": measurement.chance,
    "residual": tied.residual,
    "singular_values": tuple(np.exp(grid).tolist()),
    "remark": tied.remark,
  }


class _Prediction(NamedTuple):
  law: compare.Atoms | None
  residual: float | None
  remark: str  # why there is none


def _predicted(cells: _Cells, removed: float, points: int, floor: float, tick: Callable[[float], None]) -> _Prediction:
  """The predicted law and the residual of its equation, or the reason why there is none."""
  stacks, shares = cells
  if not stacks:
    return _Prediction(None, None, "a call makes its streams inside, so that the carry is no product of layers")
  with jax.enable_x64(True):
    layers = correlated.prepared(correlated_of(stacks, shares))
    if correlated.first_moment(layers) < _INVISIBLE * floor**2:
      return _Prediction(compare.atoms(np.zeros(1), floor=floor), 0.0, "")
    try:
      spectrum = density.spectrum(layers, points, floor=0.5 * floor**2, tick=tick)
    except dyson.NotSolvedError as error:
      return _Prediction(None, None, f"{error}; the measured spectrum stands alone, and a shorter stack is predicted")
    share = (
      1.0 / len(stacks[0].mixers[0]) if stacks[0].closed else 1.0
    )  # the rest of a closed stack is zero by construction
    law = compare.of_spectrum(spectrum, share, floor, removed)
    return _Prediction(law, float(jnp.max(spectrum.residual)), "")


def swapped(
  at: Linearised,
  families: Sequence[str],
  threshold: float,
  effort: Effort,
  seed: int,
  say: Callable[[str], None],
  tick: rules.Tick,
) -> Iterator[rules.Row]:
  """Design rules for the last call, or last loop, as it is, and with random members of other families as mixers."""
  trace = at.grouped(effort.cells)
  depth, streams, _ = at.network.design(trace, 0).mixers.shape
  cells = range(min(_DESIGN_CELLS, trace.mixers.shape[2]))

  def make(name: str, depth: int) -> list[Layers]:
    own = None if name == CHECKPOINT else mixer_stack(parse(name), streams, depth, "random", seed)
    return [layers_of(at.network.design(trace, cell, own)) for cell in cells]

  jobs = [(name, depth) for name in (CHECKPOINT, *families)]
  return table.announced(rules.rows(jobs, make, None, threshold, effort.points, tick), jobs, streams, say, len(cells))


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
    each, design = [site.to_dict() for site in self.sites], dataclasses.asdict(self.design)
    return own | {"effort": dataclasses.asdict(self.effort), "sites": each, "design": design}

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
  at = linearise(setup, dataset, state, step, effort, lambda what, share: tick(what, _MOMENTS * share))
  result = Findings(step, threshold, effort)
  say(f"measured, predicted; last {at.network.noun} of {at.network.calls}, step {step}")
  say(sites.HEADER)
  for site in measure(at, effort, threshold, lambda what, share: tick(what, _MOMENTS + _MEASURING * share)):
    say(sites.describe(site))
    result = dataclasses.replace(result, sites=(*result.sites, site))
    yield result
  say(f"predicted for {at.network.judged} with its own mixers and others")
  say(table.HEADER)
  rest = lambda what, share: tick(what, 1 - (1 - _MOMENTS - _MEASURING) * (1 - share))  # noqa: E731
  for row in swapped(at, families, threshold, effort, setup.config.seed, say, rest):
    say(table.line(row))
    result = dataclasses.replace(result, rows=(*result.rows, row))
    yield result
  yield dataclasses.replace(result, complete=True)
  say(table.conclusion(result.design))
