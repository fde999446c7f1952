"""Read and write: from logits to the weights that tie a sub-layer to the streams.

| form         | read a (weights of the sub-layer's input) | write b (weights of its output)     | logits  |
| softmax      | a_j = mean_i softmax_j(P/τ)_ij            | b_i = Σ_j softmax_i(Q/τ)_ij         | n² + n² |
| sigmoid      | a = σ(p) + ε                              | b = 2σ(q)                           | n + n   |
| softmax_read | a = softmax(p/τ)                          | b = 2σ(q)                           | n + n   |
| linear       | a = p                                     | b = q                               | n + n   |

The n×n matrices of the softmax form (JPmHC) only ever act through these two vectors, since the sub-layer's output is
the same for every stream; the n×d product P x is never built.

With m segments the sub-layer's vector is m parts, a stream is as wide as one part, and stream i belongs to segment
i mod m: the read is a matrix A (m, n) and the write a matrix B (n, m). The logits are then mn + nm, but for the softmax
form, which takes the mean (the sum) over the rows (columns) of a segment instead of over all.
Sources: JPmHC (2602.18308), mHC (2512.24880), HC (2409.19606), Frac-connections (2503.14125), virtual width
(2511.11238).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, require
from jpmhc_jax.core.fields import check_number, check_whole

__all__ = ["FORMS", "Routing"]

FORMS = ("softmax", "sigmoid", "softmax_read", "linear")
_OPEN = 40.0  # a logit of 40 is a weight of 1 in float32


@dataclasses.dataclass(frozen=True)
class Routing:
  """How read a and write b of a connection follow from logits p and q: sigmoid, softmax, softmax_read or linear.

  sigmoid: a = σ(p) + ε, b = 2σ(q);  softmax_read: a = softmax(p/τ), b = 2σ(q);  linear: a = p, b = q;  softmax: column
  means of softmax(P/τ), row sums of softmax(Q/τ), for P and Q (n, n). ε is `epsilon`, τ `temperature`. With m segments
  a is a matrix (m, n) and b one (n, m). Arrays are float32, tokens last. Sources: the module's docstring.

  Raises ConfigError for another form, and for a number out of range.

  >>> routing = jp.Routing("sigmoid")
  >>> routing.logit_shapes(2), routing.read(jnp.zeros(2)).tolist()
  (((2,), (2,)), [0.5, 0.5])
  """

  form: str = "sigmoid"
  temperature: float = 1.0
  segments: int = 1
  epsilon: float = 0.0

  def __post_init__(self) -> None:
    check_choice("form", self.form, FORMS)
    check_number("temperature", self.temperature, gt=0)
    check_number("epsilon", self.epsilon, ge=0)
    object.__setattr__(self, "segments", check_whole("segments", self.segments))

  def check(self, streams: int, width: int) -> None:
    """Raises ConfigError unless there are at most so many segments as streams, and they divide the width."""
    require(1 <= self.segments <= streams, "segments", self.segments, f"1 to streams={streams}; 1 = hyper-connections")
    require(width % self.segments == 0, "segments", self.segments, f"a divisor of width={width}")

  def logit_shapes(self, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leading axes of the read and the write logits."""
    if self.form == "softmax":
      return (n, n), (n, n)
    return ((n,), (n,)) if self.segments == 1 else ((self.segments, n), (n, self.segments))

  def read(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """Read weights: a (n, *tokens), or A (m, n, *tokens); they sum to 1 over the streams for the softmax forms."""
    m = self.segments
    if self.form == "softmax":
      rows = jax.nn.softmax(logits / self.temperature, axis=1)
      return jnp.mean(rows, axis=0) if m == 1 else jnp.stack([jnp.mean(rows[s::m], axis=0) for s in range(m)])
    if self.form == "softmax_read":
      return jax.nn.softmax(logits / self.temperature, axis=0 if m == 1 else 1)
    return jax.nn.sigmoid(logits) + self.epsilon if self.form == "sigmoid" else logits

  def write(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """Write weights: b (n, *tokens), or B (n, m, *tokens); for the softmax form their sum is n, or n/m each segment."""
    m = self.segments
    if self.form == "softmax":
      columns = jax.nn.softmax(logits / self.temperature, axis=0)
      if m == 1:
        return jnp.sum(columns, axis=1)
      return jnp.stack([jnp.sum(columns[:, s::m], axis=1) for s in range(m)], axis=1)
    return logits if self.form == "linear" else 2.0 * jax.nn.sigmoid(logits)

  def initial_logits(self, n: int, favoured: int | None, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits at which the block is the plain residual one: each segment reads the mean of its streams, and is written
    to each of them with weight 1.

    With `favoured`, that stream is read with weight (1 + (g − 1)/2)/g out of its segment's g streams and the others
    with half of 1/g each, so that the sum stays 1 and streams that are equal still give x + F(x).
    Weights of 0 (other segments) are exact for the linear form; elsewhere their logits lie `strength` below.
    """
    m = self.segments
    own = (np.arange(n) % m == np.arange(m)[:, None]).astype(float)
    weights = own / own.sum(axis=1, keepdims=True)
    if favoured is not None:
      segment, size = favoured % n % m, own[favoured % n % m].sum()
      weights[segment] /= 2
      weights[segment, favoured % n] = (1 + (size - 1) / 2) / size
    bound = _OPEN if m == 1 else strength
    with np.errstate(divide="ignore"):
      if self.form == "linear":
        read, write = weights, own.T
      elif self.form == "softmax":
        of_stream = np.arange(n) % m
        read = self.temperature * np.maximum(np.log(weights), -bound)[of_stream]
        write = self.temperature * np.maximum(np.log(own), -bound).T[:, of_stream]
      else:
        odds = np.log(weights) if self.form == "softmax_read" else np.log(weights) - np.log1p(-weights)
        read = (self.temperature if self.form == "softmax_read" else 1.0) * np.clip(odds, -bound, bound)
        write = np.clip(np.log(own), -bound, 0.0).T
    shapes = self.logit_shapes(n)
    return read.reshape(shapes[0]), write.reshape(shapes[1])
