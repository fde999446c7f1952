"""Exponential moving average of parameters."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["ema_init", "ema_update"]


def ema_init(params: Any) -> Any:
  """The shadow starts at a copy of the parameters themselves; there is no bias correction."""
  return jax.tree.map(jnp.copy, params)


def ema_update(shadow: Any, params: Any, rate: float | jax.Array) -> Any:
  """shadow <- rate * shadow + (1 - rate) * params, leaf by leaf, in the shadow's dtype.

  After k steps with constant p: p + rate^k (shadow_0 - p). Source: TinyRecursiveModels `EMAHelper`.
  """
  return jax.tree.map(lambda s, p: rate * s + (1 - rate) * p.astype(s.dtype), shadow, params)
