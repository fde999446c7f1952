"""Stacks of layers before anything is trained: mixers with the noise that signal propagation through them leaves."""

import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core.errors import check_choice, UserError
from jpmhc_jax.spectral import propagation
from jpmhc_jax.spectral.correlated import Correlated, correlated_noise, tied_covariance
from jpmhc_jax.spectral.layers import block_noise, full_noise, Layers

__all__ = ["NOISES", "labels", "layer_stack", "recursion_stack"]

NOISES = ("block", "full")


def layer_stack(mixers: np.ndarray, activation: str, sigma_w: float, noise: str, norm: bool = True) -> Layers:
  """Layers whose noise follows from signal propagation through these mixers (residual gain tr AᵀA/n, averaged).

  noise: "full", or "block" with the read and write of a freshly initialised block, a = 1/n and b = 1. Needs float64.
  Raises ConfigError for another noise, UserError for a sigma_w whose noise leaves the range of float64.
  """
  check_choice("noise", noise, NOISES)
  depth, streams, _ = mixers.shape
  gain = float(np.mean(np.sum(mixers**2, axis=(1, 2))) / streams)
  sigma = propagation.propagate(activation, sigma_w, depth, residual=gain, norm=norm).noise
  if not bool(jnp.all(jnp.isfinite(sigma))):
    raise UserError(
      f"sigma_w={sigma_w:g}: the noise of {depth} layers leaves the range of float64; expected one nearer to 1"
    )
  if noise == "full":
    return full_noise(mixers, sigma)
  return block_noise(mixers, sigma, np.full((depth, streams), 1 / streams), np.ones((depth, streams)))


def recursion_stack(
  mixers: np.ndarray, activation: str, sigma_w: float, noise: str, calls: int, tied: float
) -> Correlated:
  """`layer_stack` of a network whose `calls` calls apply the same weights, their noise with a correlation `tied`.

  mixers: (calls · layers of a call, n, n). Needs float64. Raises as `layer_stack` does.
  """
  single = layer_stack(mixers, activation, sigma_w, "block")
  depth, streams, _ = mixers.shape
  sigma = np.sqrt(np.asarray(single.variance) / streams)  # of the sub-layer's Jacobian
  if noise == "full":
    ends = np.broadcast_to(np.eye(streams), mixers.shape)
    return correlated_noise(mixers, ends, ends, tied_covariance(sigma, labels(calls, depth), tied))
  reads, writes = np.full((depth, streams), 1 / streams), np.ones((depth, streams))
  return correlated_noise(mixers, reads, writes, tied_covariance(sigma, labels(calls, depth), tied))


def labels(calls: int, depth: int) -> list[int]:
  """The weight of each of `depth` layers, which are those of so many equal calls."""
  return [layer % (depth // calls) for layer in range(depth)]
