"""What one kernel instance does with its block of tokens; the same source for Triton and for Mosaic.

Streams arrive as (tokens, n·d) with stream j in columns j·d … (j+1)·d, or apart as (tokens, n, d); coefficients tokens
first with one column each.
The instance walks over the features in chunks, so that registers hold one chunk of every stream; a sum over the
features is carried along that walk in float32. No two instances write the same place: two runs are equal to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

__all__ = [
  "Shape", "advance", "advance_backward", "coefficients_backward", "mix", "read", "statistics", "streams_backward",
  "weights_backward",
]  # fmt: skip

_WRITTEN_OUT = 4  # streams


@dataclasses.dataclass(frozen=True)
class Shape:
  """Streams, features of a stream (padded), features a chunk, and whether the streams have an axis of their own."""

  n: int
  d: int
  chunk: int
  apart: bool

  def walk(self, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """Folds `body(first feature, carry)` over the chunks."""
    if self.chunk == self.d:
      return body(0, start)
    first = (lambda k: pl.multiple_of(k * self.chunk, self.chunk)) if self.apart else (lambda k: k * self.chunk)
    return jax.lax.fori_loop(0, self.d // self.chunk, lambda k, carry: body(first(k), carry), start)

  def each(self, body: Callable[[Any], None]) -> None:
    """Calls `body(j)` for every stream j, in a loop where Triton would keep too much of all in shared memory."""
    if self.apart or self.n <= _WRITTEN_OUT:
      for j in range(self.n):
        body(j)
    else:
      jax.lax.fori_loop(0, self.n, lambda j, _: body(j), None)

  def stream(self, j: Any, first: Any) -> tuple[Any, ...]:
    """The index of a chunk of stream j."""
    return (slice(None), j, pl.ds(first, self.chunk)) if self.apart else (slice(None), self.features(j, first))

  def features(self, j: Any, first: Any) -> Any:
    """A chunk of stream j along an axis of all n·d features."""
    return pl.ds(j * self.d + first, self.chunk)

  def vector(self, first: Any) -> tuple[slice, Any]:
    """The index of a chunk of a single vector."""
    return slice(None), pl.ds(first, self.chunk)

  def column(self, ref: Any, k: Any) -> jax.Array:
    """Column k of what has few numbers a token."""
    result: jax.Array = ref[:, pl.ds(k, 1)].astype(jnp.float32)
    return result

  def store_columns(self, ref: Any, columns: Sequence[jax.Array]) -> None:
    """Columns 0, 1, … of a result with few numbers a token."""
    for k, column in enumerate(columns):
      ref[:, pl.ds(k, 1)] = column

  def load(self, ref: Any, index: Any) -> jax.Array:
    """A chunk in float32."""
    result: jax.Array = ref[index].astype(jnp.float32)
    return result

  def store(self, ref: Any, index: Any, value: jax.Array) -> None:
    """Writes a chunk in the dtype of the result."""
    ref[index] = value.astype(ref.dtype)

  def dot(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ_d x y of a chunk, a column."""
    return jnp.sum(x * y, axis=1, keepdims=True)

  def zeros(self, ref: Any, count: int) -> tuple[jax.Array, ...]:
    """So many columns for the tokens of ref."""
    return (jnp.zeros((ref.shape[0], 1), jnp.float32),) * count


def _total(terms: Sequence[jax.Array]) -> jax.Array:
  result = terms[0]
  for term in terms[1:]:
    result = result + term
  return result


def read(shape: Shape, x: Any, a: Any, out: Any) -> None:
  """u = Σ_j a_j x_j."""
  weights = [shape.column(a, j) for j in range(shape.n)]

  def chunk(first: Any, carry: Any) -> Any:
    streams = [shape.load(x, shape.stream(j, first)) for j in range(shape.n)]
    shape.store(out, shape.vector(first), _total([w * stream for w, stream in zip(weights, streams, strict=True)]))
    return carry

  shape.walk(chunk, 0)


def weights_backward(shape: Shape, x: Any, g: Any, to_a: Any) -> None:
  """ā_j = Σ_d ū x_j."""

  def chunk(first: Any, sums: Any) -> Any:
    cotangent = shape.load(g, shape.vector(first))
    return tuple(s + shape.dot(cotangent, shape.load(x, shape.stream(j, first))) for j, s in enumerate(sums))

  shape.store_columns(to_a, shape.walk(chunk, shape.zeros(to_a, shape.n)))


def mix(shape: Shape, x: Any, y: Any, h: Any, b: Any, out: Any) -> None:
  """x'_i = Σ_j H_ij x_j + b_i y; column i·n + j of h is H_ij."""
  n = shape.n

  def chunk(first: Any, carry: Any) -> Any:
    streams = [shape.load(x, shape.stream(j, first)) for j in range(n)]
    output = shape.load(y, shape.vector(first))

    def stream(i: Any) -> None:
      mixed = _total([shape.column(h, i * n + j) * streams[j] for j in range(n)])
      shape.store(out, shape.stream(i, first), mixed + shape.column(b, i) * output)

    shape.each(stream)
    return carry

  shape.walk(chunk, 0)


def coefficients_backward(shape: Shape, x: Any, y: Any, b: Any, g: Any, to_y: Any, to_h: Any, to_b: Any) -> None:
  """ȳ = Σ_i b_i x̄'_i,  H̄_ij = Σ_d x̄'_i x_j,  b̄_i = Σ_d x̄'_i y: one pass over x, y and x̄'."""
  n = shape.n

  def chunk(first: Any, sums: Any) -> Any:
    cotangents = [shape.load(g, shape.stream(i, first)) for i in range(n)]
    output = shape.load(y, shape.vector(first))
    shape.store(to_y, shape.vector(first), _total([shape.column(b, i) * cotangents[i] for i in range(n)]))
    of_mixer, of_weights = list(sums[: n * n]), sums[n * n :]
    for j in range(n):
      stream = shape.load(x, shape.stream(j, first))
      for i in range(n):
        of_mixer[i * n + j] += shape.dot(cotangents[i], stream)
    return (*of_mixer, *(s + shape.dot(cotangents[i], output) for i, s in enumerate(of_weights)))

  sums = shape.walk(chunk, shape.zeros(to_b, n * n + n))
  shape.store_columns(to_h, sums[: n * n])
  shape.store_columns(to_b, sums[n * n :])


def statistics(shape: Shape, x: Any, w: Any, to_products: Any, to_square: Any) -> None:
  """s = Σ_j x_j W_j and Σ x² in one pass over x: flat streams are one long vector to it."""
  if not shape.apart:
    shape = dataclasses.replace(shape, n=1, d=shape.n * shape.d)

  def chunk(first: Any, sums: Any) -> Any:
    products, square = sums
    for j in range(shape.n):
      stream = shape.load(x, shape.stream(j, first))
      rows = shape.load(w, (shape.features(j, first), slice(None)))
      products += jnp.dot(stream, rows, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
      square += shape.dot(stream, stream)
    return products, square

  products, square = shape.walk(chunk, (jnp.zeros(to_products.shape, jnp.float32), *shape.zeros(to_square, 1)))
  to_products[...] = products
  to_square[...] = square


def streams_backward(shape: Shape, *refs: Any, names: Sequence[str]) -> None:
  """x̄_j = Σ_i H_ij x̄'_i + a_j ū + W_j s̄ + 2 x_j q̄: the terms whose factors `names` lists, in one pass.

  W is given as (k, n·d), or as (k, d) for every stream, which then has columns of its own in s̄ and q̄.
  """
  given, to_x = dict(zip(names, refs[:-1], strict=True)), refs[-1]
  shared = "kernel" in given and shape.n > 1 and given["kernel"].shape[1] == shape.d

  def projected(j: Any, first: Any) -> jax.Array:
    columns = given["kernel"].shape[0]
    own = j if shared else 0
    kernel = shape.load(given["kernel"], (slice(None), shape.features(0 if shared else j, first)))
    cotangent = shape.load(given["products"], (slice(None), pl.ds(own * columns, columns)))
    term = jnp.dot(cotangent, kernel, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return term + 2.0 * shape.column(given["square"], own) * shape.load(given["x"], shape.stream(j, first))

  def chunk(first: Any, carry: Any) -> Any:
    cotangents = [shape.load(given["cotangent"], shape.stream(i, first)) for i in range(shape.n) if "mixer" in given]
    vector = shape.load(given["vector"], shape.vector(first)) if "vector" in given else None

    def stream(j: Any) -> None:
      terms = []
      if "cotangent" in given and "mixer" not in given:
        terms.append(shape.load(given["cotangent"], shape.stream(j, first)))
      if "mixer" in given:
        terms += [shape.column(given["mixer"], i * shape.n + j) * c for i, c in enumerate(cotangents)]
      if vector is not None:
        terms.append(shape.column(given["weights"], j) * vector)
      if "kernel" in given:
        terms.append(projected(j, first))
      shape.store(to_x, shape.stream(j, first), _total(terms))

    shape.each(stream)
    return carry

  shape.walk(chunk, 0)


class _Mixed:
  """z = H x + b y of a block of tokens and the scales of its norm, from refs by name."""

  def __init__(self, shape: Shape, given: Mapping[str, Any], width: int, epsilon: float | None):
    self.shape, self.given = shape, given
    self.weights = [shape.column(given["weights"], i) for i in range(shape.n)]
    self.scales = [jnp.ones((), jnp.float32)] * shape.n
    if epsilon is not None:
      start = shape.zeros(given["weights"], shape.n)
      squares = shape.walk(
        lambda first, sums: tuple(s + shape.dot(z, z) for s, z in zip(sums, self.streams(first), strict=True)), start
      )
      self.scales = [jax.lax.rsqrt(square / width + epsilon) for square in squares]

  def entered(self, first: Any) -> list[jax.Array]:
    """A chunk of every stream of x."""
    return [self.shape.load(self.given["x"], self.shape.stream(j, first)) for j in range(self.shape.n)]

  def streams(self, first: Any) -> list[jax.Array]:
    """A chunk of every stream of z."""
    n, streams, output = self.shape.n, self.entered(first), self.shape.load(self.given["y"], self.shape.vector(first))
    if "mixer" in self.given:
      mixer = self.given["mixer"]
      streams = [_total([self.shape.column(mixer, i * n + j) * streams[j] for j in range(n)]) for i in range(n)]
    return [stream + weight * output for stream, weight in zip(streams, self.weights, strict=True)]

  def advanced(self, first: Any) -> list[jax.Array]:
    """A chunk of every stream of x', rounded as x is."""
    dtype = self.given["x"].dtype
    return [(r * z).astype(dtype) for r, z in zip(self.scales, self.streams(first), strict=True)]


def advance(
  shape: Shape, *refs: Any, names: Sequence[str], results: Sequence[str], width: int, epsilon: float | None
) -> None:
  """x' = H x + b y, or normed, with Σ x' W, Σ x'² and Σ_j a_j x'_j: see `composed`. `results` names what is asked for.

  width: features of a stream without padding. Normed streams are mixed twice, for their norm and behind it.
  """
  given = dict(zip(names, refs[: len(names)], strict=True))
  made = dict(zip(results, refs[len(names) :], strict=True))
  mixed = _Mixed(shape, given, width, epsilon)
  of_read = [shape.column(given["read"], i) for i in range(shape.n)] if "read" in given else []
  if "scale" in made:
    shape.store_columns(made["scale"], mixed.scales)

  def chunk(first: Any, sums: Any) -> Any:
    streams = mixed.advanced(first)
    for i, stream in enumerate(streams):
      shape.store(made["streams"], shape.stream(i, first), stream)
    wide = [stream.astype(jnp.float32) for stream in streams]
    if of_read:
      shape.store(made["vector"], shape.vector(first), _total([a * s for a, s in zip(of_read, wide, strict=True)]))
    if "kernel" not in given:
      return sums
    products, square = sums
    for i, stream in enumerate(wide):
      rows = shape.load(given["kernel"], (shape.features(i, first), slice(None)))
      products += jnp.dot(stream, rows, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
      square += shape.dot(stream, stream)
    return products, square

  if "kernel" in given:
    start = (jnp.zeros(made["products"].shape, jnp.float32), *shape.zeros(made["square"], 1))
    made["products"][...], made["square"][...] = shape.walk(chunk, start)
  else:
    shape.walk(chunk, 0)


def advance_backward(
  shape: Shape, *refs: Any, names: Sequence[str], results: Sequence[str], width: int, epsilon: float | None
) -> None:
  """x̄, ȳ, b̄ and, as `results` names them, H̄ and ā: see `composed`. W is given as (k, n·d).

  x' is mixed again from x, which has to be read anyway. Of normed streams all that flows in is added up twice, for its
  part along x' and behind it.
  """
  given = dict(zip(names, refs[: len(names)], strict=True))
  made = dict(zip(results, refs[len(names) :], strict=True))
  n, mixed = shape.n, _Mixed(shape, given, width, epsilon)

  def behind(first: Any) -> tuple[list[jax.Array], list[jax.Array]]:
    """A chunk of x', and of all that flows into it."""
    advanced = [stream.astype(jnp.float32) for stream in mixed.advanced(first)]
    sums = [shape.load(given["cotangent"], shape.stream(i, first)) for i in range(n)]
    if "vector" in given:
      vector = shape.load(given["vector"], shape.vector(first))
      sums = [g + shape.column(given["read"], i) * vector for i, g in enumerate(sums)]
    if "kernel" in given:
      of_products, twice = given["products"][...], 2.0 * shape.column(given["square"], 0)
      for i in range(n):
        kernel = shape.load(given["kernel"], (slice(None), shape.features(i, first)))
        term = jnp.dot(of_products, kernel, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        sums[i] += term + twice * advanced[i]
    return advanced, sums

  along = []
  if epsilon is not None:

    def projected(first: Any, sums: Any) -> Any:
      return tuple(s + shape.dot(g, x) for s, x, g in zip(sums, *behind(first), strict=True))

    along = [s / width for s in shape.walk(projected, shape.zeros(made["weights"], n))]

  def chunk(first: Any, sums: Any) -> Any:
    advanced, cotangents = behind(first)
    if along:
      cotangents = [mixed.scales[i] * (cotangents[i] - along[i] * advanced[i]) for i in range(n)]
    streams, output = mixed.entered(first), shape.load(given["y"], shape.vector(first))
    weighted = [weight * g for weight, g in zip(mixed.weights, cotangents, strict=True)]
    shape.store(made["output"], shape.vector(first), _total(weighted))
    for j in range(n):
      turned = [shape.column(given["mixer"], i * n + j) * cotangents[i] for i in range(n)] if "mixer" in given else None
      shape.store(made["streams"], shape.stream(j, first), cotangents[j] if turned is None else _total(turned))
    terms = [shape.dot(g, output) for g in cotangents]
    terms += [shape.dot(g, x) for g in cotangents for x in streams] if "mixer" in made else []
    if "read" in made:
      vector = shape.load(given["vector"], shape.vector(first))
      terms += [shape.dot(vector, x) for x in advanced]
    return tuple(s + t for s, t in zip(sums, terms, strict=True))

  counts = {"weights": n, "mixer": n * n if "mixer" in made else 0, "read": n if "read" in made else 0}
  sums = shape.walk(chunk, shape.zeros(made["weights"], sum(counts.values())))
  for name, count in counts.items():
    if count:
      shape.store_columns(made[name], sums[:count])
    sums = sums[count:]
