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

from collections.abc import Callable, Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax import mixers
from jpmhc_jax.connections.block import HyperConnectionFn, Parameters
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.connections.spec import ConnectionFields
from jpmhc_jax.core.errors import check_choice, CheckpointError, nearest

__all__ = [
  "Arrays", "CONVENTIONS", "Convention", "LAYOUTS", "from_layout", "from_peer", "head_from_deepseek",
  "head_to_deepseek", "to_layout", "to_peer",
]  # fmt: skip

Arrays = Mapping[str, np.ndarray]
_TINY = 1e-24  # max(‖x‖, 1e-12) of torch's normalize, as an epsilon inside the root


@dataclasses.dataclass(frozen=True)
class Convention:
  """One way to write a block down. `shapes(n, d)` are those of its arrays; `load` and `dump` are inverse."""

  mixer: mixers.Mixer
  fields: ConnectionFields
  shapes: Callable[[int, int], dict[str, tuple[int, ...]]]
  load: Callable[[Arrays, int, int], Arrays]
  dump: Callable[[Arrays, int, int], Arrays]

  def block(self, streams: int, width: int) -> HyperConnectionFn:
    """The connection of ours that computes the same."""
    return HyperConnectionFn(self.mixer, streams=streams, width=width, layer_index=0, **self.fields)


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


def _jpmhc_shapes(n: int, d: int) -> dict[str, tuple[int, ...]]:
  return {
    "norm.weight": (n * d,), "norm.bias": (n * d,),
    "fused_proj.weight": (3 * n * n, n * d), "fused_proj.bias": (3 * n * n,),
  }  # fmt: skip


def _load_jpmhc(p: Arrays, n: int, d: int) -> Arrays:
  return {
    "bias": p["fused_proj.bias"],
    "projection": p["fused_proj.weight"].T.reshape(n, d, -1),
    "norm_scale": p["norm.weight"].reshape(n, d),
    "norm_shift": p["norm.bias"].reshape(n, d),
  }


def _dump_jpmhc(p: Arrays, n: int, d: int) -> Arrays:
  return {
    "fused_proj.bias": p["bias"],
    "fused_proj.weight": p["projection"].reshape(n * d, -1).T,
    "norm.weight": p["norm_scale"],
    "norm.bias": p["norm_shift"],
  }


def _jpmhc_rms_shapes(n: int, d: int) -> dict[str, tuple[int, ...]]:
  return {name: shape for name, shape in _jpmhc_shapes(n, d).items() if name.startswith("fused_proj")}


def _load_jpmhc_rms(p: Arrays, n: int, d: int) -> Arrays:
  return {"bias": p["fused_proj.bias"], "projection": p["fused_proj.weight"].T.reshape(n, d, -1)}


def _dump_jpmhc_rms(p: Arrays, n: int, d: int) -> Arrays:
  return {"fused_proj.bias": p["bias"], "fused_proj.weight": p["projection"].reshape(n * d, -1).T}


def _deepseek_shapes(n: int, d: int) -> dict[str, tuple[int, ...]]:
  return {"fn": (2 * n + n * n, n * d), "base": (2 * n + n * n,), "scale": (3,)}


def _load_deepseek(p: Arrays, n: int, d: int) -> Arrays:
  return {"projection": p["fn"].T.reshape(n, d, -1), "bias": p["base"], "gate": p["scale"]}


def _dump_deepseek(p: Arrays, n: int, d: int) -> Arrays:
  return {"fn": p["projection"].reshape(n * d, -1).T, "base": p["bias"], "scale": p["gate"]}


def _lucidrains_shapes(gates: dict[str, tuple[int, ...]]) -> Callable[[int, int], dict[str, tuple[int, ...]]]:
  alpha = () if "dynamic_alpha_scale" in gates else (1,)  # mHC keeps an axis of proposals

  def shapes(n: int, d: int) -> dict[str, tuple[int, ...]]:
    return gates | {
      "norm.gamma": (d,), "static_alpha": (n, 1 + n), "dynamic_alpha_fn": (*alpha, d, 1 + n),
      "static_beta": (n,), "dynamic_beta_fn": (d,),
    }  # fmt: skip

  return shapes


def _load_lucidrains(p: Arrays, gates: tuple[str, str, str], n: int, d: int) -> Arrays:
  """One projection (d, 1 + n) of each stream's own norm: column 0 is its read logit, column 1 + t is H[s, t]."""
  gamma = (p["norm.gamma"] + 1)[:, None]
  alpha = gamma * p["dynamic_alpha_fn"].reshape(d, 1 + n)
  static = p["static_alpha"]
  return {
    "projection": np.concatenate([alpha[:, :1], gamma * p["dynamic_beta_fn"][:, None], alpha[:, 1:]], axis=1)[None],
    "bias": np.concatenate([static[:, 0], p["static_beta"], static[:, 1:].ravel()]),
    "gate": np.stack([p[name].reshape(()) for name in gates]),
  }


def _dump_lucidrains(p: Arrays, gates: tuple[str, str, str], n: int, d: int) -> Arrays:
  of_name: dict[str, np.ndarray] = {}
  for name, gate in zip(gates, p["gate"].reshape(3, 1), strict=True):
    if of_name.setdefault(name, gate) != gate:
      raise CheckpointError(f"lucidrains: {name} is one number for read and mixer, and their gates are {p['gate']}")
  bias, (own,) = p["bias"], p["projection"]
  return of_name | {
    "norm.gamma": np.zeros((d,), bias.dtype),
    "dynamic_alpha_fn": np.delete(own, 1, axis=1),
    "dynamic_beta_fn": own[:, 1],
    "static_alpha": np.concatenate([bias[:n, None], bias[2 * n :].reshape(n, n)], axis=1),
    "static_beta": bias[n : 2 * n],
  }


def _lucidrains(
  mixer: mixers.Mixer, fields: ConnectionFields, gates: tuple[str, str, str], shapes: tuple[tuple[int, ...], ...]
) -> Convention:
  per_stream: ConnectionFields = {
    "generator": "gated", "projection": "per_stream", "norm_epsilon": _TINY, "transpose": True,
    "initialisation": "round_robin",
  }  # fmt: skip
  return Convention(
    mixer,
    {**per_stream, **fields},
    _lucidrains_shapes(dict(zip(gates, shapes, strict=True))),
    lambda p, n, d: _load_lucidrains(p, gates, n, d),
    lambda p, n, d: _dump_lucidrains(p, gates, n, d),
  )


_GATES = ("pre_branch_scale", "h_post_scale", "residual_scale")


@dataclasses.dataclass(frozen=True)
class _MhcLite:
  """What mHC-lite and KromHC share: one norm of all streams, and the logits of read and mixer in one array of columns.

  square: the columns are (n, 1 + n), the first of them the read's, as where a mixer has n × n logits.
  """

  mixer: mixers.Mixer
  square: bool = False

  def convention(self) -> Convention:
    """The convention of this mixer."""
    fields: ConnectionFields = {"generator": "gated", "norm_epsilon": _TINY, "transpose": True}
    return Convention(self.mixer, fields, self.shapes, self.load, self.dump)

  def shapes(self, n: int, d: int) -> dict[str, tuple[int, ...]]:
    """Of the arrays of a block."""
    width = n + math.prod(self.mixer.logit_shape(n))
    return dict.fromkeys(_GATES, (1,)) | {
      "norm.gamma": (n * d,), "static_alpha": (n, 1 + n) if self.square else (width,),
      "dynamic_alpha_fn": (n * d, width), "static_beta": (n,), "dynamic_beta_fn": (n * d, n),
    }  # fmt: skip

  def load(self, p: Arrays, n: int, d: int) -> Arrays:
    """Ours: read, write and mixer side by side."""
    (read, mix), (read_bias, mix_bias) = (self._split(p[name], n) for name in ("dynamic_alpha_fn", "static_alpha"))
    weights = np.concatenate([read, p["dynamic_beta_fn"], mix], axis=1)
    return {
      "projection": ((p["norm.gamma"] + 1)[:, None] * weights).reshape(n, d, -1),
      "bias": np.concatenate([read_bias[0], p["static_beta"], mix_bias[0]]),
      "gate": np.concatenate([p[name] for name in _GATES]),
    }

  def dump(self, p: Arrays, n: int, d: int) -> Arrays:
    """The inverse, with a neutral γ."""
    (read, write, mix), biases = (np.split(a, [n, 2 * n], axis=-1) for a in (p["projection"], p["bias"]))
    read, write, mix = (part.reshape(n * d, -1) for part in (read, write, mix))
    return dict(zip(_GATES, p["gate"].reshape(3, 1), strict=True)) | {
      "norm.gamma": np.zeros((n * d,), p["bias"].dtype),
      "dynamic_alpha_fn": self._join(read, mix, n), "dynamic_beta_fn": write,
      "static_alpha": self._join(biases[0][None], biases[2][None], n), "static_beta": biases[1],
    }  # fmt: skip

  def _split(self, columns: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(read, mixer) of rows of columns."""
    if not self.square:
      rows = columns.reshape(-1, columns.shape[-1])
      return rows[:, :n], rows[:, n:]
    square = columns.reshape(-1, n, 1 + n)
    return square[:, :, 0], square[:, :, 1:].reshape(-1, n * n)

  def _join(self, read: np.ndarray, mix: np.ndarray, n: int) -> np.ndarray:
    if not self.square:
      return np.concatenate([read, mix], axis=1)
    return np.concatenate([read[:, :, None], mix.reshape(-1, n, n)], axis=2).reshape(len(read), -1)


CONVENTIONS: dict[str, Convention] = {
  "jpmhc": Convention(
    mixers.CayleyIterative(alpha=0.1, steps=2),
    {"routing": Routing("softmax"), "norm": "layernorm", "norm_epsilon": 1e-5},
    _jpmhc_shapes, _load_jpmhc, _dump_jpmhc,
  ),
  "jpmhc_rms": Convention(
    mixers.CayleyIterative(alpha=0.1, steps=2),
    {"routing": Routing("softmax"), "norm_epsilon": 1e-5},
    _jpmhc_rms_shapes, _load_jpmhc_rms, _dump_jpmhc_rms,
  ),
  "deepseek": Convention(
    mixers.EpsilonSinkhorn(sweeps=20, epsilon=1e-6),
    {"generator": "gated", "routing": Routing(epsilon=1e-6), "norm_epsilon": 1e-6, "transpose": True},
    _deepseek_shapes, _load_deepseek, _dump_deepseek,
  ),
  "lucidrains_hc": _lucidrains(
    mixers.Unconstrained(), {"routing": Routing("linear"), "activation": "tanh"},
    ("dynamic_alpha_scale", "dynamic_beta_scale", "dynamic_alpha_scale"), ((), (), ()),
  ),
  "lucidrains_mhc": _lucidrains(
    mixers.Sinkhorn(sweeps=20, clip=0.0, adjoint="unrolled", order="columns_first"), {},
    _GATES, ((1,), (), (1,)),
  ),
  "mhc_lite_mhc": _MhcLite(
    mixers.Sinkhorn(sweeps=20, clip=0.0, adjoint="unrolled", order="columns_first"), square=True
  ).convention(),
  "mhc_lite": _MhcLite(mixers.PermutationMixture()).convention(),
  "kromhc": _MhcLite(mixers.Kronecker()).convention(),
}  # fmt: skip


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
