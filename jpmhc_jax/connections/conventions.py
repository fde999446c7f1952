"""How others write a block down: names, shapes and order of its arrays, and the connection of ours that is equal."""

from collections.abc import Callable, Mapping
import dataclasses
import math

import numpy as np

from jpmhc_jax import mixers
from jpmhc_jax.connections.block import HyperConnectionFn
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.connections.spec import ConnectionFields
from jpmhc_jax.core.errors import CheckpointError

__all__ = ["Arrays", "CONVENTIONS", "Convention"]

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


def _jpmhc_shapes(n: int, d: int) -> dict[str, tuple[int, ...]]:
  return {
    "norm.weight": (n * d,), "norm.bias": (n * d,),
    "fused_proj.weight": (3 * n * n, n * d), "fused_proj.bias": (3 * n * n,),
  }  # fmt: skip


def _load_jpmhc(p: Arrays, n: int, d: int) -> Arrays:
  norm = {"norm_scale": p["norm.weight"].reshape(n, d), "norm_shift": p["norm.bias"].reshape(n, d)}
  return {**_load_jpmhc_rms(p, n, d), **norm}


def _dump_jpmhc(p: Arrays, n: int, d: int) -> Arrays:
  return {**_dump_jpmhc_rms(p, n, d), "norm.weight": p["norm_scale"], "norm.bias": p["norm_shift"]}


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


class _Tbp(_MhcLite):
  """TBP-mHC: of n × n logits the chart reads the first n − 1 rows and columns; δ is one logit for all tokens.

  On the way back the logits that nothing reads are 0.
  """

  def shapes(self, n: int, d: int) -> dict[str, tuple[int, ...]]:
    """Of the arrays of a block."""
    return _MhcLite(mixers.Unconstrained(), square=True).shapes(n, d) | {"delta_logit": (1,)}

  def load(self, p: Arrays, n: int, d: int) -> Arrays:
    """Ours: δ is the last logit of the mixer, of which only the bias is not 0."""
    ours = dict(super().load(p, n, d))
    chart = np.arange(n * n).reshape(n, n)[:-1, :-1].ravel() + 2 * n
    for name in ("projection", "bias"):
      array = ours[name]
      delta = np.zeros_like(array[..., :1]) if name == "projection" else p["delta_logit"]
      ours[name] = np.concatenate([array[..., : 2 * n], array[..., chart], delta], axis=-1)
    return ours

  def dump(self, p: Arrays, n: int, d: int) -> Arrays:
    """The inverse; raises CheckpointError for a δ that depends on the token."""
    if p["projection"][..., -1].any():
      raise CheckpointError(
        "tbp: δ depends on the token (the last column of 'projection' is not 0); it is one number there"
      )
    filled = dict(p)
    for name in ("projection", "bias"):
      chart = p[name][..., 2 * n : -1].reshape(*p[name].shape[:-1], n - 1, n - 1)
      square = np.pad(chart, [(0, 0)] * (chart.ndim - 2) + [(0, 1), (0, 1)])
      filled[name] = np.concatenate([p[name][..., : 2 * n], square.reshape(*chart.shape[:-2], n * n)], axis=-1)
    return {**super().dump(filled, n, d), "delta_logit": p["bias"][-1:]}


_S2HC_SCALES = ("residual_rot_scale_u", "residual_rot_scale_v", "residual_val_scale")


def _s2hc_shapes(n: int, d: int) -> dict[str, tuple[int, ...]]:
  (size,) = mixers.SpectralSphere().logit_shape(n)
  return dict.fromkeys(("pre_branch_scale", "h_post_scale", *_S2HC_SCALES, "gamma_u", "gamma_v"), (1,)) | {
    "norm.gamma": (n * d,), "to_alpha_pre.weight": (n, n * d), "to_alpha_residual.weight": (size, n * d),
    "to_beta.weight": (n, n * d), "static_alpha_pre": (n,), "static_alpha_residual": (size,), "static_beta": (n,),
  }  # fmt: skip


def _load_s2hc(p: Arrays, n: int, d: int) -> Arrays:
  """The scales of rotations and sizes go into the projection's columns; γ of U and of V are logits without columns."""
  angles = (n - 1) * (n - 2) // 2
  scales = np.repeat(np.concatenate([p[name] for name in _S2HC_SCALES]), [angles, angles, n - 1])
  columns = [p["to_alpha_pre.weight"].T, p["to_beta.weight"].T, p["to_alpha_residual.weight"].T * scales]
  weights = np.concatenate([*columns, np.zeros((n * d, 2), scales.dtype)], axis=1)
  return {
    "projection": ((p["norm.gamma"] + 1)[:, None] * weights).reshape(n, d, -1),
    "bias": np.concatenate(
      [p[name] for name in ("static_alpha_pre", "static_beta", "static_alpha_residual", "gamma_u", "gamma_v")]
    ),
    "gate": np.concatenate([p["pre_branch_scale"], p["h_post_scale"], np.ones_like(p["h_post_scale"])]),
  }


def _dump_s2hc(p: Arrays, n: int, d: int) -> Arrays:
  """The inverse, with a neutral norm and one scale; raises CheckpointError for a γ that depends on the token."""
  parts = [n, 2 * n, p["bias"].shape[0] - 2]
  weights, biases = np.split(p["projection"].reshape(n * d, -1), parts, axis=1), np.split(p["bias"], parts)
  if weights[3].any():
    raise CheckpointError(
      "s2hc: γ depends on the token (the last columns of 'projection' are not 0); each is one number there"
    )
  read, write, mix = p["gate"].reshape(3, 1)
  return dict.fromkeys(_S2HC_SCALES, mix) | {
    "pre_branch_scale": read, "h_post_scale": write, "norm.gamma": np.zeros((n * d,), p["bias"].dtype),
    "to_alpha_pre.weight": weights[0].T, "to_beta.weight": weights[1].T, "to_alpha_residual.weight": weights[2].T,
    "static_alpha_pre": biases[0], "static_beta": biases[1], "static_alpha_residual": biases[2],
    "gamma_u": biases[3][:1], "gamma_v": biases[3][1:],
  }  # fmt: skip


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
  "s2hc": Convention(
    mixers.SpectralSphere(learned=True), {"generator": "gated", "norm_epsilon": _TINY, "transpose": True},
    _s2hc_shapes, _load_s2hc, _dump_s2hc,
  ),
  "tbp": _Tbp(mixers.Transport(learned=True), square=True).convention(),
}  # fmt: skip
