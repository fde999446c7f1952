"""Whole blocks against the published PyTorch code, float64: coefficients, output and every gradient.

Each family is our block with its options; the test only renames upstream parameters. Upstream code that applies
out[t] = Σ_s H[s, t] x[s] holds the transpose of our mixer. The families left out have no counterpart among the options:
per-stream norms (lucidrains), a softmax write vector (tokenbender), ε after the matmul or on the coefficients
(circulant, Liger), mixers with inputs of their own (edelta, s2hc, tbp's δ).
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import itertools

from golden import assert_kept_close
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax import mixers
from jpmhc_jax.connections import HyperConnectionFn, Routing

TOKENS, D = 6, 8
Parameters = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Published:
  """A published block in our words; `convert(upstream parameters, n)` gives our parameters, differentiably."""

  manifold: mixers.Mixer
  routing: Routing
  epsilon: float
  convert: Callable[[Parameters, int], dict[str, Array]]
  transposed: bool
  norm: str = "rmsnorm"
  generator: str = "gated"

  def connection(self, n: int, layer_index: int) -> HyperConnectionFn:
    """Our block with these options."""
    return HyperConnectionFn(
      self.manifold, streams=n, width=D, layer_index=layer_index, routing=self.routing,
      generator=self.generator, norm=self.norm,
      norm_epsilon=self.epsilon,
    )  # fmt: skip


def _jpmhc(p: Parameters, n: int) -> dict[str, Array]:
  ours = {"bias": p["fused_proj.bias"], "projection": p["fused_proj.weight"].T.reshape(n, D, 3 * n * n)}
  if "norm.weight" in p:
    ours |= {"norm_scale": p["norm.weight"].reshape(n, D), "norm_shift": p["norm.bias"].reshape(n, D)}
  return ours


def _fused(read: Array, write: Array, mix: Array, weight: Array, n: int) -> Array:
  """Upstream's RMSNorm weight is a factor of the projection's rows: ours has none."""
  return (weight[:, None] * jnp.concatenate([read, write, mix], axis=1)).reshape(n, D, -1)


def _gates(p: Parameters) -> Array:
  return jnp.concatenate([p["pre_branch_scale"], p["h_post_scale"], p["residual_scale"]])


def _mhc_lite_layout(p: Parameters, n: int, split: Callable[[Array, int], tuple[Array, Array]]) -> dict[str, Array]:
  read, mix = split(p["dynamic_alpha_fn"], n)
  read_bias, mix_bias = split(p["static_alpha"].reshape(1, -1), n)
  return {
    "projection": _fused(read, p["dynamic_beta_fn"], mix, p["norm.gamma"] + 1, n),
    "bias": jnp.concatenate([read_bias[0], p["static_beta"], mix_bias[0]]),
    "gate": _gates(p),
  }


def _split_matrix(columns: Array, n: int) -> tuple[Array, Array]:
  """Columns viewed (n, 1 + n): the first is the read, the rest H[s, t] before its projection."""
  square = columns.reshape(-1, n, 1 + n)
  return square[:, :, 0], jnp.swapaxes(square[:, :, 1:], 1, 2).reshape(-1, n * n)


def _split_vector(columns: Array, n: int) -> tuple[Array, Array]:
  return columns[:, :n], columns[:, n:]


def _split_permutations(columns: Array, n: int) -> tuple[Array, Array]:
  """Our transposed mixture holds each weight at the inverse permutation."""
  order = list(itertools.permutations(range(n)))
  inverse = [order.index(tuple(int(i) for i in np.argsort(p))) for p in order]
  return columns[:, :n], columns[:, n:][:, np.array(inverse)]


def _mhc_edelta(p: Parameters, n: int) -> dict[str, Array]:
  parts = (p["phi_pre.weight"].T, p["phi_post.weight"].T, p["phi_res.weight"].T)
  return {
    "projection": _fused(*parts, p["rms_norm.weight"], n),
    "bias": jnp.concatenate([p["b_pre"], p["b_post"], p["b_res"].reshape(-1)]),
    "gate": jnp.concatenate([p["alpha_pre"], p["alpha_post"], p["alpha_res"]]),
  }


_TWENTY_SWEEPS = mixers.Sinkhorn(sweeps=20, clip=0.0, adjoint="unrolled")
_ITERATION = mixers.CayleyIterative(alpha=0.1, steps=2)
_SIGMOID, _SOFTMAX = Routing("sigmoid"), Routing("softmax")

FAMILIES = {
  "jpmhc_layernorm": Published(_ITERATION, _SOFTMAX, 1e-5, _jpmhc, False, "layernorm", "dynamic"),
  "jpmhc_rmsnorm": Published(_ITERATION, _SOFTMAX, 1e-5, _jpmhc, False, "rmsnorm", "dynamic"),
  # Upstream normalises columns first; of the transpose, these are rows.
  "mhc_mhclite": Published(
    _TWENTY_SWEEPS, _SIGMOID, 0.0, functools.partial(_mhc_lite_layout, split=_split_matrix), True
  ),
  "lite": Published(
    mixers.PermutationMixture(), _SIGMOID, 0.0, functools.partial(_mhc_lite_layout, split=_split_permutations), True
  ),
  "kromhc": Published(
    mixers.Kronecker(), _SIGMOID, 0.0, functools.partial(_mhc_lite_layout, split=_split_vector), True
  ),
  "mhc_edelta": Published(
    mixers.EpsilonSinkhorn(sweeps=20, epsilon=1e-8, softmax_first=False), _SIGMOID, 1e-6, _mhc_edelta, False
  ),
}
CASES = [(name, n) for name in FAMILIES for n in (2, 3, 4) if not (name == "kromhc" and n == 3)]
ALWAYS = [("jpmhc_layernorm", 2), *((name, 4) for name in FAMILIES), ("mhc_mhclite", 3)]


@pytest.fixture(scope="module")
def blocks(shared):
  """family/n -> arrays of that block."""
  found: dict[str, dict[str, np.ndarray]] = {}
  with np.load(shared / "fixtures" / "mixers.npz") as file:
    for name in file.files:
      kind, *rest = name.split("/", 3)
      if kind == "block" and len(rest) == 3 and rest[0] in FAMILIES:
        found.setdefault(f"{rest[0]}/{rest[1]}", {})[rest[2]] = file[name]
  return found


def _tokens_last(coefficient: np.ndarray) -> np.ndarray:
  return np.moveaxis(coefficient.reshape(TOKENS, *coefficient.shape[2:]), 0, -1)


def _expected_coefficients(block: dict[str, np.ndarray], transposed: bool) -> tuple[np.ndarray, ...]:
  """(read, mix, write) in our layout; JPmHC's n x n routes act through a mean of rows and a sum of columns."""
  if "H_pre_matrix" in block:
    read, write = block["H_pre_matrix"].mean(axis=-2), block["H_post_matrix"].sum(axis=-1)
  else:
    read, write = block["H_pre"], block["H_post"]
  mix = block["H_res_raw"]
  return _tokens_last(read), _tokens_last(np.swapaxes(mix, -1, -2) if transposed else mix), _tokens_last(write)


def _close_to_largest(actual, expected, name):
  scale = np.nanmax(np.abs(expected))
  assert_kept_close(actual, expected, rtol=0, atol=1e-9 * scale + 1e-12, err_msg=name)


@pytest.mark.parametrize(
  ("family", "n"),
  [pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.slow, id=f"{case[0]}-{case[1]}") for case in CASES],
)
def test_a_published_block_is_ours_with_options(family, n, blocks):
  rule, block = FAMILIES[family], blocks[f"{family}/n{n}"]
  upstream = {name.removeprefix("params/"): value for name, value in block.items() if name.startswith("params/")}
  with jax.enable_x64(True):
    ours = rule.connection(n, layer_index=0)
    x = jnp.asarray(block["x"].reshape(TOKENS, n, D))
    upstream = {name: jnp.asarray(value) for name, value in upstream.items()}

    def forward(x, parameters, kernel):
      converted = rule.convert(parameters, n)
      out = ours(converted, x, lambda u: jnp.matmul(u, kernel))
      return out, ours.coefficients(converted, x)

    @jax.jit
    def both_ways(x, parameters, kernel, cotangent):
      out, pullback, coefficients = jax.vjp(forward, x, parameters, kernel, has_aux=True)
      return out, coefficients, pullback(cotangent)

    cotangent = jnp.asarray(block["cotangent"].reshape(TOKENS, n, D))
    out, coefficients, gradients = both_ways(x, upstream, jnp.asarray(block["W_F"]), cotangent)
    to_x, to_parameters, to_kernel = gradients
    assert out.dtype == to_x.dtype == jnp.float64

  for name, actual, expected in zip(
    coefficients._fields, coefficients, _expected_coefficients(block, rule.transposed), strict=True
  ):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()), err_msg=name)
  np.testing.assert_allclose(out.reshape(block["out"].shape), block["out"], rtol=1e-12, atol=1e-12)
  _close_to_largest(to_x.reshape(block["x"].shape), block["grad/x"], "x")
  _close_to_largest(to_kernel, block["grad/W_F"], "W_F")
  for name, gradient in to_parameters.items():
    _close_to_largest(gradient, block[f"grad/params/{name}"], name)


def test_the_published_initialisation_of_jpmhc_passes_through_the_same_block(blocks):
  """Rows `n4_init`: parameters exactly as upstream constructs them, forward only."""
  for family in ("jpmhc_layernorm", "jpmhc_rmsnorm"):
    rule, block = FAMILIES[family], blocks[f"{family}/n4_init"]
    with jax.enable_x64(True):
      ours = rule.connection(4, layer_index=1)
      upstream = {name[7:]: jnp.asarray(value) for name, value in block.items() if name.startswith("params/")}
      kernel = jnp.asarray(block["W_F"])
      run = jax.jit(lambda p, x, kernel, ours=ours, rule=rule: ours(rule.convert(p, 4), x, lambda u: u @ kernel))
      out = run(upstream, jnp.asarray(block["x"]), kernel)
    np.testing.assert_allclose(out, block["out"], rtol=1e-12, atol=1e-12)
