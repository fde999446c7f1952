"""Parameters of others, by their names and layouts, into a connection of ours that computes the same; and back.

| convention     | arrays of one block                                             | H out of logits, applied as      |
| jpmhc          | norm.{weight,bias}, fused_proj.{weight,bias}                    | Cayley iteration, H              |
| jpmhc_rms      | fused_proj.{weight,bias}; an RMS norm without weight            | Cayley iteration, H              |
| deepseek       | fn, base, scale (hc_attn_fn, …; in transformers attn_hc.fn, …)  | Sinkhorn with ε, Hᵀ              |
| lucidrains_hc  | static_/dynamic_alpha…, static_/dynamic_beta…, norm.gamma       | none, Hᵀ                         |
| lucidrains_mhc | the same, pre_branch_scale, residual_scale, h_post_scale        | Sinkhorn, columns first, Hᵀ      |
| mhc_lite_mhc   | the same, of the norm of all streams together                   | Sinkhorn, columns first, Hᵀ      |
| mhc_lite       | the same                                                        | mixture of permutations, Hᵀ      |
| kromhc         | the same                                                        | Kronecker product, Hᵀ            |
| s2hc           | to_alpha_pre.weight, …, five scales, gamma_u, gamma_v           | norm-one sphere, learned γ, Hᵀ   |
| tbp            | the same, and delta_logit                                       | transportation chart, δ, Hᵀ      |

    block, parameters = from_peer("deepseek", state_dict, streams=4, width=7168, prefix="layers.0.hc_attn_")

Linear weights are (out, in) and flattened streams stream-major in all of them. A learned weight γ of an RMS norm is
only a factor of the projection's rows: it is folded in on the way here and is the neutral one on the way back.

Where the streams stand in activations:

| layout  | shape       | used by                                            |
| streams | (…, n, d)   | here, mHC-lite, MaxText, TileKernels, vLLM         |
| first   | (n, …, d)   | stacks of whole states                             |
| packed  | (…, n·d)    | Megatron-LM; stream-major                          |
| last    | (…, d, n)   | TransformerEngine                                  |
| folded  | (b·n, …, d) | lucidrains hyper-connections; index b·n + stream   |
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.connections.block import HyperConnectionFn, Parameters
from jpmhc_jax.connections.conventions import CONVENTIONS
from jpmhc_jax.core.errors import check_choice, CheckpointError, nearest

__all__ = [
  "LAYOUTS", "from_layout", "from_peer", "head_from_deepseek", "head_to_deepseek", "to_layout", "to_peer",
]  # fmt: skip


def from_peer(
  convention: str, arrays: Mapping[str, Array | np.ndarray], *, streams: int, width: int, prefix: str = ""
) -> tuple[HyperConnectionFn, dict[str, Float[Array, "..."]]]:
  """The equal connection of ours, and its parameters.

  `arrays` may be a whole state dict; the block's names are those behind `prefix`. Raises CheckpointError for an array
  that is missing or has another number of elements.
  """
  check_choice("convention", convention, CONVENTIONS)
  chosen = CONVENTIONS[convention]
  block = {}
  for name, shape in chosen.shapes(streams, width).items():
    if prefix + name not in arrays:
      raise CheckpointError(
        f"{convention}: no array {prefix + name!r} among {len(arrays)}; set prefix to what stands before {name!r}."
        f"{nearest(prefix + name, arrays)}"
      )
    array = np.asarray(arrays[prefix + name])
    if array.size != int(np.prod(shape)):
      raise CheckpointError(
        f"{convention}: {prefix + name} has shape {array.shape}; {streams} streams of width {width} need {shape}"
      )
    block[name] = array.reshape(shape)
  parameters = chosen.load(block, streams, width)
  return chosen.block(streams, width), {name: jnp.asarray(value) for name, value in parameters.items()}


def to_peer(convention: str, parameters: Parameters, *, streams: int, width: int) -> dict[str, np.ndarray]:
  """The arrays by the peer's names and shapes.

  Raises CheckpointError for parameters that are not those of the convention's connection, and where the peer has no
  room for them (one gate serves read and mixer of `lucidrains_hc`).
  """
  check_choice("convention", convention, CONVENTIONS)
  chosen = CONVENTIONS[convention]
  for name, expected in jax.eval_shape(chosen.block(streams, width).init, jax.random.key(0)).items():
    shape = np.shape(parameters[name]) if name in parameters else "missing"
    if shape != expected.shape:
      raise CheckpointError(
        f"{convention}: parameter {name!r} is {shape}, expected {expected.shape}: only connections such as"
        " `from_peer` gives can go there"
      )
  ours = {name: np.asarray(value) for name, value in jax.device_get(dict(parameters)).items()}
  dumped = chosen.dump(ours, streams, width)
  return {name: np.asarray(dumped[name]).reshape(shape) for name, shape in chosen.shapes(streams, width).items()}


def head_from_deepseek(
  arrays: Mapping[str, Array | np.ndarray], *, streams: int, width: int, prefix: str = "hc_head_"
) -> dict[str, Float[Array, "..."]]:
  """Parameters of `StreamExpansionFn(reduction="head")` from fn (n, n·d), base (n), scale (1)."""
  fn, base, scale = (np.asarray(arrays[prefix + name]) for name in ("fn", "base", "scale"))
  kernel = (fn * scale.reshape(())).T.reshape(streams, width, streams)
  return {"head_kernel": jnp.asarray(kernel), "head_bias": jnp.asarray(base)}


def head_to_deepseek(parameters: Parameters, prefix: str = "hc_head_") -> dict[str, np.ndarray]:
  """The inverse, with scale 1."""
  kernel = np.asarray(parameters["head_kernel"])
  fn = kernel.reshape(-1, kernel.shape[-1]).T
  base = np.asarray(parameters["head_bias"])
  return {prefix + "fn": fn, prefix + "base": base, prefix + "scale": np.ones((1,), fn.dtype)}


LAYOUTS = ("streams", "first", "packed", "last", "folded")


def to_layout(streams: Float[Array, "*tokens n d"], layout: str) -> Float[Array, "..."]:
  """Our streams (…, n, d) in the named layout; `folded` needs a batch axis in front.

  Raises ConfigError for another layout, ValueError for too few axes.
  """
  check_choice("layout", layout, LAYOUTS)
  if layout == "first":
    return jnp.moveaxis(streams, -2, 0)
  if layout == "packed":
    return streams.reshape(*streams.shape[:-2], -1)
  if layout == "last":
    return jnp.swapaxes(streams, -1, -2)
  if layout == "folded":
    _check_rank(streams.ndim, 3, "(b, …, n, d)")
    second = jnp.moveaxis(streams, -2, 1)
    return second.reshape(-1, *second.shape[2:])
  return streams


def from_layout(x: Float[Array, "..."], layout: str, n: int) -> Float[Array, "*tokens n d"]:
  """The inverse of `to_layout`. Raises ValueError where n streams do not fit the array."""
  check_choice("layout", layout, LAYOUTS)
  axis = {"streams": -2, "first": 0, "packed": -1, "last": -1, "folded": 0}[layout]
  _check_rank(x.ndim, 1 if layout == "packed" else 2, f"the layout {layout!r}")
  size = x.shape[axis]
  if size % n if layout in ("packed", "folded") else size != n:
    expected = "a multiple of " if layout in ("packed", "folded") else ""
    raise ValueError(f"layout={layout!r}: axis {axis} of {x.shape} is {size}, expected {expected}n={n}")
  if layout == "first":
    return jnp.moveaxis(x, 0, -2)
  if layout == "packed":
    return x.reshape(*x.shape[:-1], n, size // n)
  if layout == "last":
    return jnp.swapaxes(x, -1, -2)
  if layout == "folded":
    return jnp.moveaxis(x.reshape(size // n, n, *x.shape[1:]), 1, -2)
  return x


def _check_rank(rank: int, least: int, what: str) -> None:
  if rank < least:
    raise ValueError(f"an array of {rank} axes: expected at least {least} for {what}")
