"""Measured Jacobian spectra of a trained network beside those that free probability predicts from its coefficients.

Three scales: every part of the network (connection, sub-layer, norm); every network call of TRM's recursion, or every
layer of a transformer, or every block of a residual network; the whole map, of the carry (z_H, z_L) from the start over
many calls, of the streams through all layers and loops, or through each stage and all of them. All at one real batch of
the run's data, with the evaluated parameters, in float32.

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

from jpmhc_jax.core.files import storing, to_json, write_atomically
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.spectra import resnet, sites
from jpmhc_jax.evaluation.spectra.linearised import Effort, examples, in_float32, linearise, Linearised, networks
from jpmhc_jax.evaluation.spectra.network import Network
from jpmhc_jax.evaluation.spectra.networks import network_of
from jpmhc_jax.evaluation.spectra.sites import Site
from jpmhc_jax.evaluation.spectra.stacks import call_layers, correlated_of, layers_of, part_layers, Stack, Trace
from jpmhc_jax.mixers import parse
from jpmhc_jax.spectral import compare, correlated, density, dyson, measured, rules, table
from jpmhc_jax.spectral.jacobian import measure as law_of
from jpmhc_jax.spectral.jacobian import mixer_stack
from jpmhc_jax.spectral.layers import Layers
from jpmhc_jax.training.state import Setup, TrainState

FILE = "spectrum.json"
_MOMENTS, _MEASURING = 0.05, 0.7  # shares of the time, roughly; the rest is for the design rules
_POINT_S = 0.0025  # CPU seconds a grid point and cell of 48 places, measured
_INVISIBLE = 1e-3  # share of the directions above the floor (at most E s² / floor², Markov) that no picture shows
_DESIGN_CELLS = 4  # of the design rules, the commonest, each a stack of its own
CHECKPOINT = "checkpoint"  # the row of the network's own mixers


def measure(
  at: Linearised,
  effort: Effort,
  threshold: float = 0.1,
  tick: rules.Tick = lambda what, share: None,
  scales: Sequence[str] = (),
) -> Iterator[Site]:
  """Every site in turn: the parts of the last call, every call, the carry after the first cycle and after all calls.

  scales: of the sites that are wanted, see `Site.scale`; or their names; all by default.
  tick: called before every site and while it is predicted; what it raises ends the work.
  """
  total = len(at.parts) + at.network.calls + len(at.network.counts)
  wanted = ((index, place) for index, place in enumerate(_places(at, effort)) if _wanted(place, scales))
  return _sites(wanted, total, effort, threshold, tick)


def _wanted(place: "_Place", scales: Sequence[str]) -> bool:
  return not scales or place.scale in scales or place.name in scales


def _sites(
  places: Iterator[tuple[int, "_Place"]], total: int, effort: Effort, threshold: float, tick: rules.Tick
) -> Iterator[Site]:
  """Sites of numbered places out of so many in all."""
  for index, place in places:

    def report(share: float, name: str = place.name, index: int = index) -> None:
      tick(name, (index + share) / total)

    report(0.0)
    site = _compared(place, jax.random.key(index), effort, threshold, report)
    yield Site(scale=place.scale, name=place.name, calls=place.calls, **site)


_Cells = tuple[list[Stack], np.ndarray | None]  # of each its stack of layers, and their shares


class _Place(NamedTuple):
  """A Jacobian with what predicts it."""

  scale: str
  name: str
  calls: int
  jacobian: measured.Operator
  cells: _Cells
  points: int = 0  # of the grid of the prediction
  removed: float = 0.0  # share of directions that the norms remove
  rotated: measured.Operator | None = None  # the same with every sub-layer's Jacobian turned by one random rotation
  alone: str = "a call makes its streams inside, so that the carry is no product of layers"  # why no cells predict it


def _places(at: Linearised, effort: Effort) -> Iterator[_Place]:
  network, trace = at.network, at.grouped(effort.cells)
  cells = range(trace.mixers.shape[2])
  for index, name in enumerate(at.parts if len(at.parts) > 1 else ()):  # a call of one part is that part
    jacobian = measured.operator(network.part(index), trace.inputs[index], *at.arrays)
    of_cells = [part_layers(trace, index, cell) for cell in cells], trace.shares
    yield _Place("part", name, network.calls, jacobian, of_cells, effort.points, at.removed[index])
  # Streams made inside a call have each lost another direction when their mean leaves it: nothing is lost.
  removed = 0.0 if trace.enter.size else max(at.removed)
  one, many = network.scales
  for call in range(network.calls):
    jacobian = measured.operator(network.call, trace.states[call], *at.arrays, jnp.asarray(call))
    of_cells = [call_layers(trace, call, cell) for cell in cells], trace.shares
    yield _Place(one, network.title(call), network.number(call), jacobian, of_cells, effort.points, removed)
  for count in network.counts:
    jacobian = measured.operator(network.carry, at.latents, *at.arrays, at.x, jnp.asarray(count))
    few = at.grouped(_affordable(trace, count, effort))
    whole = [stack for cell in range(few.mixers.shape[2]) if (stack := network.layers(few, count, cell)) is not None]
    rotated = network.rotated(trace.states, at.rows) if whole and count == network.calls else None
    turned = rotated and measured.operator(rotated, jnp.zeros_like(at.latents), *at.arrays)
    of_cells = whole, few.shares
    yield _Place(many, network.whole_title(count), count, jacobian, of_cells, effort.carry_points, removed, turned)


def _of_all_stages(
  network: resnet.Whole,
  pieces: Sequence[Linearised],
  inputs: jax.Array,
  effort: Effort,
  threshold: float,
  tick: rules.Tick,
) -> Iterator[Site]:
  """The blocks that change the shape, and all stages together."""
  arrays = pieces[0].arrays

  def place(scale: str, name: str, calls: int, function: Callable[..., jax.Array], stage: int, why: str) -> _Place:
    jacobian = measured.operator(function, network.behind(stage, *arrays, inputs), *arrays, inputs)
    return _Place(scale, name, calls, jacobian, ([], None), alone=f"{why}; measured over the directions of the output")

  words = "a change of shape is no layer of the theory"
  places = [
    place("part", f"stage{stage}.block0", stage, network.change(stage), stage, words) for stage in network.changes
  ]
  words = "stages of several shapes are no product of layers of one size"
  whole = place("depth", "all stages", len(pieces), network.carry, network.depth, words)
  coefficients = tuple(each.trace.states for each in pieces), tuple(each.rows for each in pieces)
  turned = measured.operator(network.rotated, whole.jacobian.at, *arrays, inputs, *coefficients)
  places.append(whole._replace(rotated=turned))
  return _sites(iter(enumerate(places)), len(places), effort, threshold, tick)


def _affordable(trace: Trace, count: int, effort: Effort) -> int:
  """Cells of the first calls for which `effort` has time, at least one."""
  places = 2 * count * trace.reads.shape[1] * trace.reads.shape[3]
  seconds = _POINT_S * max(1.0, (places / 48) ** 2.3) * (2 * effort.carry_points + 96)
  return max(1, min(effort.cells, int(effort.carry_s / seconds)))


def _compared(
  place: _Place, key: jax.Array, effort: Effort, threshold: float, tick: Callable[[float], None]
) -> dict[str, Any]:
  """Everything of a `Site` but what it is of."""
  law = functools.partial(law_of, exact_limit=effort.exact_limit, steps=effort.steps, probes=effort.probes, key=key)
  measurement = law(place.jacobian)
  floor = measurement.floor
  tied = _predicted(place, floor, lambda share: tick(share / 2))
  alone = [stack.independent for stack in place.cells[0]], place.cells[1]
  single = _predicted(place._replace(cells=alone), floor, lambda share: tick((1 + share) / 2))
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


def _predicted(place: _Place, floor: float, tick: Callable[[float], None]) -> _Prediction:
  """The predicted law and the residual of its equation, or the reason why there is none."""
  stacks, shares = place.cells
  if not stacks:
    return _Prediction(None, None, place.alone)
  with jax.enable_x64(True):
    layers = correlated.prepared(correlated_of(stacks, shares))
    if correlated.first_moment(layers) < _INVISIBLE * floor**2:
      return _Prediction(compare.atoms(np.zeros(1), floor=floor), 0.0, "")
    try:
      spectrum = density.spectrum(layers, place.points, floor=0.5 * floor**2, tick=tick)
    except dyson.NotSolvedError as error:
      return _Prediction(None, None, f"{error}; the measured spectrum stands alone, and a shorter stack is predicted")
    share = (
      1.0 / len(stacks[0].mixers[0]) if stacks[0].closed else 1.0
    )  # the rest of a closed stack is zero by construction
    law = compare.of_spectrum(spectrum, share, floor, place.removed)
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


def _within(tick: rules.Tick, start: float, length: float, number: int, count: int) -> rules.Tick:
  """A tick of one of so many pieces, which together take `length` of the time from `start` on."""
  return lambda what, share: tick(what, start + length * (number + share) / count)


def _every_site(
  network: Network | resnet.Whole,
  pieces: Sequence[Linearised],
  inputs: jax.Array,
  effort: Effort,
  threshold: float,
  tick: rules.Tick,
) -> Iterator[Site]:
  """Sites of the network, or of each of its stages and of all together."""
  for number, at in enumerate(pieces):
    yield from measure(at, effort, threshold, _within(tick, _MOMENTS, _MEASURING, number, len(pieces)))
  if isinstance(network, resnet.Whole):
    end = _within(tick, _MOMENTS + _MEASURING, 0.0, 0, 1)
    yield from _of_all_stages(network, pieces, inputs, effort, threshold, end)


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
  setup = in_float32(setup, dataset)
  network, stages = network_of(setup.task, setup), networks(setup)
  pieces = [
    linearise(setup, dataset, state, step, effort, _within(tick, 0.0, _MOMENTS, number, len(stages)), each)
    for number, each in enumerate(stages)
  ]
  result = Findings(step, threshold, effort)
  last = pieces[-1].network
  say(f"measured, predicted; last {last.noun} of {last.number(last.calls - 1)}, step {step}")
  say(sites.HEADER)
  inputs = jnp.asarray(examples(dataset, step, effort)["inputs"])
  for site in _every_site(network, pieces, inputs, effort, threshold, tick):
    say(sites.describe(site))
    result = dataclasses.replace(result, sites=(*result.sites, site))
    yield result
  at = max(pieces, key=lambda each: each.network.calls)
  say(f"predicted for {at.network.judged} with its own mixers and others")
  say(table.HEADER)
  rest = lambda what, share: tick(what, 1 - (1 - _MOMENTS - _MEASURING) * (1 - share))  # noqa: E731
  for row in swapped(at, families, threshold, effort, setup.config.seed, say, rest):
    say(table.line(row))
    result = dataclasses.replace(result, rows=(*result.rows, row))
    yield result
  yield dataclasses.replace(result, complete=True)
  say(table.conclusion(result.design))
