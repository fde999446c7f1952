"""The parts of a network call as layers of the spectral theory: mixers, reads, writes and noise at real activations.

A part is RMSNorm(H x + b ⊗ F(aᵀ x)). It has the Jacobian D (H ⊗ I + (b aᵀ) ⊗ F') up to what is small: D holds the
norm's scale 1/rms of every stream, and the dependence of H, a, b on the streams is left out. So a part is a layer of
`spectral.correlated` with mixer D H, write D b and read a, all taken from the checkpoint at the tokens of a real batch,
and with the moments of F' (`moments`). The norm of a vector of m entries also removes one direction, the vector's own.
1/m of the singular values are zero (`Network.removed`), and F' is projected: what it writes in that direction is no
small part of it, but the largest. Where no norm follows a part D = 1, and nothing is removed: a transformer's stands
inside F, whose F' is projected as it is (`spectra.transformer`). Where a ReLU follows D is 0 or 1.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jpmhc_jax.evaluation.spectra import moments
from jpmhc_jax.evaluation.spectra.cells import Cells
from jpmhc_jax.models.blocks import Part


def through(
  parts: Sequence[Part], streams: Array, epsilon: float, cells: Cells
) -> tuple[Array, Array, tuple[Array, ...]]:
  """Streams behind all parts, those in front of each, and (gains, mixers, reads, writes) as in `Trace`."""
  inputs, layers = [], []
  for part in parts:
    inputs.append(streams)
    streams, layer = _layer(part, streams, epsilon, cells)
    layers.append(layer)
  return streams, jnp.stack(inputs), jax.tree.map(lambda *a: jnp.stack(a), *layers)


class _Step(NamedTuple):
  """A part at real streams."""

  noise: moments.Projection  # see `moments.noise`
  mix: Array
  read: Array
  write: Array
  gain: Array  # (b, l, n, e) or broadcast to it


def _steps(parts: Sequence[Part], streams: Array, epsilon: float, rows: Array) -> Iterator[_Step]:
  """All parts of a call in order, the first of which no norm precedes. rows: (P, N), ρ of `moments`."""
  axes: int | tuple[int, ...] = ()
  for part, size in zip(parts, rows, strict=True):
    out, entering = _connected(part, streams)
    mix, read, write = _coefficients(part, streams)
    normed = part.normed(out, epsilon)
    into = moments.before(_wide(streams), axes, read)
    behind = moments.behind(_wide(normed), part.axes, write)
    noise = moments.noise(part.sublayer, entering, into, behind, size)
    yield _Step(noise, mix, read, write, _gain(part, out, normed))
    streams, axes = normed, part.axes


def products(parts: Sequence[Part], streams: Array, epsilon: float, probe: Array, rows: Array) -> Array:
  """(P, 2, N): `moments.pair` of the sub-layers of all parts."""
  return jnp.stack([moments.pair(step.noise, probe) for step in _steps(parts, streams, epsilon, rows)])


def rotated(
  parts: Sequence[Part], streams: Array, epsilon: float, rows: Array, key: Key[Array, ""], tangent: Array
) -> Array:
  """The tangent behind all parts of a call, linearised as in `Trace`, with QF̂Qᵀ for the Jacobian of each sub-layer."""
  wide = _wide(tangent)
  for step, size in zip(_steps(parts, streams, epsilon, rows), rows, strict=True):
    seen = jnp.einsum("blmn,blne->blme", step.read, wide)
    vector = seen.reshape(*seen.shape[:2], -1)
    written = moments.rotated(step.noise, size, key, vector).reshape(seen.shape)
    passed = jnp.einsum("blij,blje->blie", step.mix, wide) + jnp.einsum("blnm,blme->blne", step.write, written)
    wide = step.gain * passed
  return wide.reshape(tangent.shape)


def _gain(part: Part, out: Array, normed: Array) -> Array:
  """Scale 1/rms of the norm behind a part, or 0 and 1 of a ReLU; (b, l, n, e) or broadcast to it."""
  before, behind = (jnp.sum(_wide(a) ** 2, axis=part.axes, keepdims=True) for a in (out, normed))
  return jnp.sqrt(behind / (before + 1e-30))


def _wide(streams: Array) -> Array:
  """(b, l, n, e), n = 1 where the network has no streams."""
  return streams if streams.ndim == 4 else streams[:, :, None, :]


def _connected(part: Part, streams: Array) -> tuple[Array, Array]:
  """The streams behind a part before its norm, and what its sub-layer sees."""
  inputs = []

  def spy(u: Array) -> Array:
    inputs.append(u)
    return part.sublayer(u)

  return part.connect(streams, spy), inputs[0]


def applied(part: Part, streams: Array, epsilon: float) -> Array:
  """The streams behind a part and its norm or activation."""
  return part.normed(part.connect(streams, part.sublayer), epsilon)


def _coefficients(part: Part, streams: Array) -> tuple[Array, Array, Array]:
  """Mixer (b, l, n, n), read (b, l, m, n) and write (b, l, n, m) of every token."""
  tokens = streams.shape[:2]
  if streams.ndim == 3:
    one = jnp.ones((*tokens, 1, 1))
    return one, one, one
  coefficients = part.connect.coefficients(streams)  # type: ignore[attr-defined]
  mix = jnp.eye(streams.shape[2]) if coefficients.mix is None else coefficients.mix
  mix, read, write = (_tokens_first(c, tokens) for c in (mix, coefficients.read, coefficients.write))
  read = read[:, :, None, :] if read.ndim == 3 else read
  return mix, read, write[..., None] if write.ndim == 3 else write


def _tokens_first(coefficient: Array, tokens: tuple[int, ...]) -> Array:
  """A coefficient with its token axes (b, l) in front; it has them last, or none where it is static."""
  if coefficient.ndim > 2:
    return jnp.moveaxis(coefficient, (-2, -1), (0, 1))
  return jnp.broadcast_to(coefficient, (*tokens, *coefficient.shape))


def _layer(part: Part, streams: Array, epsilon: float, cells: Cells) -> tuple[Array, tuple[Array, Array, Array, Array]]:
  """The streams behind a part, and its (gain, mixer, read, write) at the cells."""
  out, _ = _connected(part, streams)
  normed = part.normed(out, epsilon)
  gain = jnp.broadcast_to(_gain(part, out, normed), _wide(out).shape)
  at_tokens = lambda a: a.reshape(-1, *a.shape[2:])[cells.tokens]  # noqa: E731
  gain = jnp.take_along_axis(at_tokens(gain), cells.features[:, None, None], axis=2)[:, :, 0]
  return normed, (gain, *map(at_tokens, _coefficients(part, streams)))
