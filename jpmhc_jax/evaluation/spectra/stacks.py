"""What was seen of a trained network at some cells, and the layers that the spectral theory makes of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import Array
import numpy as np

from jpmhc_jax.evaluation.spectra.moments import Moments
from jpmhc_jax.spectral.correlated import Correlated, correlated_noise, independent
from jpmhc_jax.spectral.layers import Layers


class Trace(NamedTuple):
  """K network calls of P parts, seen at T cells, with m segments (1 for most) of n streams. Arrays."""

  states: Array  # (K, b, l, …) what enters each call
  inputs: Array  # (P, b, l, …) the streams that enter each part of the last call
  gains: Array  # (K, P, T, n), scale 1/rms of the norm
  mixers: Array  # (K, P, T, n, n)
  reads: Array  # (K, P, T, m, n)
  writes: Array  # (K, P, T, n, m); with the noise comes their factor ρ, see `moments`
  enter: Array  # (n,) what one vector becomes on entering a call, (0,) where streams live in the carry
  leave: Array  # (n,) weights with which streams leave it
  noise: Moments | None = None  # of the K·P sub-layers in order, once they are estimated
  shares: np.ndarray | None = None  # (T,) of the cells in all, once they are grouped

  def grouped(self, parts: Sequence[np.ndarray]) -> "Trace":
    """At one cell for each group of indices of cells, their mean, with its share."""

    def mean(each: Any) -> Any:
      return np.stack([each[:, :, part].mean(axis=2) for part in parts], axis=2)

    gains, mixers, reads, writes = map(mean, (self.gains, self.mixers, self.reads, self.writes))
    shares = np.array([len(part) for part in parts]) / sum(map(len, parts))
    return self._replace(gains=gains, mixers=mixers, reads=reads, writes=writes, shares=shares)


class Stack(NamedTuple):
  """Layers of `spectral.correlated.correlated_noise` at one cell, float64. closed: see `call_layers`."""

  mixers: np.ndarray
  reads: np.ndarray
  writes: np.ndarray
  noise: Moments
  closed: bool = False

  @property
  def independent(self) -> "Stack":
    """The same layers as if every call had weights of its own."""
    size = np.diagonal(self.noise.covariance) + self.noise.mean**2
    noise = self.noise._replace(covariance=np.diag(size), elliptic=0 * self.noise.elliptic, mean=0 * self.noise.mean)
    return self._replace(noise=noise)


def chosen_noise(trace: Trace, chosen: np.ndarray) -> Moments:
  """Moments of the chosen sub-layers (indices into call · P + part); −1 is a layer without noise."""
  assert trace.noise is not None, "the trace of a network without its moments"
  alive = (chosen >= 0).astype(np.float64)
  pairs = np.ix_(chosen, chosen)
  both = alive[:, None] * alive[None, :]
  covariance, elliptic = (both * moment[pairs] for moment in (trace.noise.covariance, trace.noise.elliptic))
  return Moments(covariance, elliptic, alive * trace.noise.mean[chosen], trace.noise.error)


def stream_layers(trace: Trace, call: int, token: int, mixers: np.ndarray | None = None) -> Stack:
  """The parts of a call: mixer D H, write D b with the norm's scale D. mixers (P, n, n): others than the network's."""
  calls, parts = trace.gains.shape[:2]
  gains = np.asarray(trace.gains[call, :, token], np.float64)[:, :, None]
  mixers = np.asarray(trace.mixers[call, :, token] if mixers is None else mixers, np.float64)
  reads, writes = (np.asarray(a[call, :, token], np.float64) for a in (trace.reads, trace.writes))
  return Stack(gains * mixers, reads, gains * writes, chosen_noise(trace, call % calls * parts + np.arange(parts)))


def successive_layers(trace: Trace, calls: range, token: int) -> Stack:
  """All parts of some calls in a row."""
  stacks = [stream_layers(trace, call, token) for call in calls]
  mixers, reads, writes = (np.concatenate([stack[field] for stack in stacks]) for field in range(3))
  first = calls.start * trace.gains.shape[1]
  return Stack(mixers, reads, writes, chosen_noise(trace, first + np.arange(len(mixers))))


def part_layers(trace: Trace, index: int, token: int) -> Stack:
  """One part of the last call; the others pass everything on."""
  mixers, reads, writes = stream_layers(trace, -1, token)[:3]
  calls, parts = trace.gains.shape[:2]
  chosen = np.arange(parts) == index
  mixers = np.where(chosen[:, None, None], mixers, np.eye(mixers.shape[-1]))
  noise = chosen_noise(trace, np.where(chosen, (calls - 1) * parts + index, -1))
  return Stack(mixers, reads, writes, noise)


def call_layers(trace: Trace, call: int, token: int) -> Stack:
  """One call; streams made inside the call are closed at the ends.

  Closing: J = rᵀ Y e is the corner of (e₁ rᵀ) Y (e e₁ᵀ), two more layers without noise; the rest of it is zero.
  """
  stack = stream_layers(trace, call, token)
  if not trace.enter.size:
    return stack
  first, last = np.zeros((2, 1, *stack.mixers.shape[1:]))
  first[0, :, 0], last[0, 0] = trace.enter, trace.leave
  reads, writes = (np.concatenate([0 * a[:1], a, 0 * a[:1]]) for a in (stack.reads, stack.writes))
  parts = trace.gains.shape[1]
  noise = chosen_noise(trace, np.concatenate([[-1], call * parts + np.arange(parts), [-1]]))
  return Stack(np.concatenate([first, stack.mixers, last]), reads, writes, noise, closed=True)


def carry_layers(trace: Trace, answers: tuple[bool, ...], token: int) -> Stack:
  """(z_H, z_L) through the first calls: 2n streams, of which a call adds one half to the other and updates that.

  The sum is folded into the first part of the call: mixer A S, read a S.
  """
  calls, (parts, _, n), m = len(answers), trace.gains.shape[1:], trace.reads.shape[3]
  mixers = np.tile(np.eye(2 * n), (calls, parts, 1, 1))
  reads, writes = np.zeros((calls, parts, m, 2 * n)), np.zeros((calls, parts, 2 * n, m))
  for k, answer in enumerate(answers):
    own, other = (slice(0, n), slice(n, 2 * n)) if answer else (slice(n, 2 * n), slice(0, n))
    mixers[k, :, own, own], reads[k, :, :, own], writes[k, :, own] = stream_layers(trace, k, token)[:3]
    shear = np.eye(2 * n)
    shear[own, other] = np.eye(n)
    mixers[k, 0], reads[k, 0] = mixers[k, 0] @ shear, reads[k, 0] @ shear
  mixers, reads, writes = (a.reshape(-1, *a.shape[2:]) for a in (mixers, reads, writes))
  return Stack(mixers, reads, writes, chosen_noise(trace, np.arange(calls * parts)))


def correlated_of(stacks: Sequence[Stack], shares: np.ndarray | None = None) -> Correlated:
  """The stacks of cells with these shares, whose noise is one, for the spectral theory. Needs float64."""
  mixers, reads, writes = (np.stack(each) for each in zip(*(stack[:3] for stack in stacks), strict=True))
  noise = stacks[0].noise
  return correlated_noise(mixers, reads, writes, noise.covariance, noise.elliptic, noise.mean, shares)


def layers_of(stack: Stack) -> Layers:
  """The stack with independent noise. Needs float64."""
  return independent(correlated_of([stack.independent]))
