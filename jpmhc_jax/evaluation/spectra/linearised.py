"""A trained network at a real batch: what is differentiated, where, and the coefficients and moments seen there."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core import rng
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.spectra import moments, resnet
from jpmhc_jax.evaluation.spectra.cells import Cells, groups
from jpmhc_jax.evaluation.spectra.network import Network
from jpmhc_jax.evaluation.spectra.networks import network_of
from jpmhc_jax.evaluation.spectra.stacks import correlated_of, Trace
from jpmhc_jax.spectral import rules
from jpmhc_jax.spectral.correlated import echoes
from jpmhc_jax.training.state import prepare, Setup, TrainState


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
  network: Network | None = None,
) -> Linearised:
  """Runs the network on the batch of `step` and reads its coefficients off.

  network: one in float32; that of `network_of` by default, of a residual network its first stage.
  """
  config = setup.config
  network = network or networks(in_float32(setup, dataset))[0]
  arrays: tuple[Any, Any] = jax.tree.map(jnp.asarray, jax.device_get((state.evaluated, state.buffers)))  # on one device
  batch = examples(dataset, step, effort)
  rows = setup.rows(None if state.table is None else jnp.asarray(jax.device_get(state.table)), batch)
  latents, x, parts = network.start(*arrays, jnp.asarray(batch["inputs"]), rows)
  key = rng.key_for(config.seed, "spectrum", step)
  cells = Cells.drawn(x.shape[0] * x.shape[1], latents.shape[-1], effort.drawn, key)
  trace = jax.jit(network.trace)(latents, *arrays, x, cells, key)
  products = functools.partial(jax.jit(network.products), trace.states, *arrays)
  calls, count, _, segments, _ = trace.reads.shape
  features = latents.shape[-1]
  report = lambda share: tick("moments of the sub-layers", share)  # noqa: E731
  noise, sizes = moments.estimate(products, (*x.shape[:2], segments * features), calls * count, key, report)
  at_cells = cells.of_rows(sizes, (calls, count, x.shape[0] * x.shape[1], segments, features))
  # The theory computes with the coefficients on the host; the points at which a Jacobian is taken stay where they are.
  points = {"states": trace.states, "inputs": trace.inputs}
  trace = jax.tree.map(np.asarray, trace)
  trace = trace._replace(writes=trace.writes * at_cells[:, :, :, None, :], noise=noise, **points)
  removed = network.removed(*arrays, trace.inputs[0])
  return Linearised(network, parts, arrays, x, latents, trace, removed, jnp.asarray(sizes, jnp.float32))


def networks(setup: Setup) -> tuple[Network, ...]:
  """The task's network: one, or its stages."""
  network = network_of(setup.task, setup)
  return network.stages if isinstance(network, resnet.Whole) else (network,)


def in_float32(setup: Setup, dataset: Dataset) -> Setup:
  """The setup of the same network that computes in float32."""
  config = setup.config
  if config.precision.compute == "float32":
    return setup
  precision = dataclasses.replace(config.precision, compute="float32")
  return prepare(dataclasses.replace(config, precision=precision), dataset, setup.mesh, trains=False)


def examples(dataset: Dataset, step: int, effort: Effort) -> dict[str, np.ndarray]:
  """The first examples of the batch of a step."""
  return {name: np.asarray(rows[: effort.examples]) for name, rows in dataset.batch(step).items()}
