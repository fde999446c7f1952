"""Exponential moving average of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["ema_decay", "ema_init", "ema_update"]


def ema_init(params: Any) -> Any:
  """The shadow starts at a copy of the parameters themselves; `ema_decay` says how soon it forgets them."""
  return jax.tree.map(jnp.copy, params)


def ema_decay(decay: float, update: Int[Array, ""] | int) -> Float[Array, ""]:
  """The decay of the k-th update, from 1 on, that warms up to `decay`: min(decay, (1 + k) / (10 + k)).

  Until it reaches `decay` the shadow is the average over about the last tenth of the run: the parameters of update j
  weigh 9/(10 + j) Π_{i=j+1..k} (1 + i)/(10 + i), and the start 10 / C(k + 10, 9), less than 1e-6 after 30 updates. A
  constant 0.999 leaves it 0.82 of the weight after 200. A function of the step alone: a resumed run has the same decay.
  Source: `num_updates` of TensorFlow's ExponentialMovingAverage and of torch-ema; the polynomial-decay averaging of
  Shamir & Zhang 2013 (arXiv 1212.1824) with η = 8.

  >>> [round(float(ema_decay(0.9, k)), 2) for k in (1, 8, 80, 800)]
  [0.18, 0.5, 0.9, 0.9]
  """
  count = jnp.asarray(update, jnp.float32)
  return jnp.minimum(decay, (1 + count) / (10 + count))


def ema_update(shadow: Any, params: Any, rate: float | jax.Array) -> Any:
  """shadow <- rate * shadow + (1 - rate) * params, leaf by leaf, in the shadow's dtype.

  After k steps with constant p: p + rate^k (shadow_0 - p). Source: TinyRecursiveModels `EMAHelper`.
  """
  return jax.tree.map(lambda s, p: rate * s + (1 - rate) * p.astype(s.dtype), shadow, params)
