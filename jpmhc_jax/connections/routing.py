"""Read and write: from logits to the two vectors that tie a sub-layer to the streams.

| form         | read a (weights of the sub-layer's input) | write b (weights of its output)     | logits  |
| softmax      | a_j = mean_i softmax_j(P/τ)_ij            | b_i = Σ_j softmax_i(Q/τ)_ij         | n² + n² |
| sigmoid      | a = σ(p)                                  | b = 2σ(q)                           | n + n   |
| softmax_read | a = softmax(p/τ)                          | b = 2σ(q)                           | n + n   |

The n×n matrices of the softmax form (JPmHC) only ever act through these two vectors, since the sub-layer's output is
the same for every stream; the n×d product P x is never built. Sources: JPmHC (2602.18308), mHC (2512.24880).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

_FORMS = {"softmax": (2, 2), "sigmoid": (1, 1), "softmax_read": (1, 1)}


@dataclasses.dataclass(frozen=True)
class Routing:
  """One of the forms above; `temperature` is τ of the softmaxes."""

  form: str = "sigmoid"
  temperature: float = 1.0

  def logit_shapes(self, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leading axes of the read and the write logits."""
    read_axes, write_axes = _FORMS[self.form]
    return (n,) * read_axes, (n,) * write_axes

  def read(self, logits: Float[Array, "..."]) -> Float[Array, "n *tokens"]:
    """Read vector a; sums to 1 over the streams for the softmax forms."""
    if self.form == "softmax":
      return jnp.mean(jax.nn.softmax(logits / self.temperature, axis=1), axis=0)
    if self.form == "softmax_read":
      return jax.nn.softmax(logits / self.temperature, axis=0)
    return jax.nn.sigmoid(logits)

  def write(self, logits: Float[Array, "..."]) -> Float[Array, "n *tokens"]:
    """Write vector b; sums to n over the streams for the softmax form."""
    if self.form == "softmax":
      return jnp.sum(jax.nn.softmax(logits / self.temperature, axis=0), axis=1)
    return 2.0 * jax.nn.sigmoid(logits)

  def initial_logits(self, n: int, favoured: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Logits at which the block is the plain residual one: reads sum to 1, writes are all 1.

    With `favoured`, that stream is read with weight (1 + (n − 1)/2)/n and the others with half of 1/n each, so that the
    sum stays 1 and streams that are equal still give x + F(x).
    """
    weights = np.full(n, 1.0 / n)
    if favoured is not None and n > 1:
      weights = np.full(n, 0.5 / n)
      weights[favoured % n] = (1 + (n - 1) / 2) / n
    read_shape, write_shape = self.logit_shapes(n)
    if self.form == "sigmoid":
      # σ never reaches 1, the weight of a single stream; a logit of 40 is 1 in float32.
      read = np.array([math.log(w / (1 - w)) if w < 1 else 40.0 for w in weights])
    else:
      read = np.broadcast_to(self.temperature * np.log(weights), read_shape)
    return read, np.zeros(write_shape)
