"""The fast runtime: a map as one matrix, folded where it is affine and distilled where it is not, and its exports."""

from collections.abc import Mapping
import pathlib
import time

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, require
from jpmhc_jax.transport.diagnostics import recall
from jpmhc_jax.transport.maps import LinearMap, MapRule, OrthogonalMap, Parameters
from jpmhc_jax.transport.points import Rows, wide

__all__ = ["compiled", "fuse", "price", "save_npz", "timed"]


def fuse(
  rule: MapRule,
  parameters: Parameters,
  x: Rows | None = None,
  kind: str = "affine",
  weights: Array | None = None,
) -> tuple[LinearMap, dict[str, Array]]:
  """The map as y = x W + c: exact for affine maps and chains of them, else the best one on the points x.

  kind: "affine" minimises Σ w |x W + c − f(x)|² (ridge 1e-6), "orthogonal" does so with s Q for W (Procrustes). For a
  transport plan, f is its barycentric map and w its row sums. Raises ConfigError for a nonlinear map without points.

  >>> chain = jp.transport.Chain.of(jp.transport.LinearMap(3, 4), jp.transport.OrthogonalMap(4, 2))
  >>> parameters = chain.init(jax.random.key(0))
  >>> fused, folded = jp.transport.fuse(chain, parameters)
  >>> bool(jnp.allclose(fused(folded, jnp.ones((1, 3))), chain(parameters, jnp.ones((1, 3))), atol=1e-5))
  True
  """
  check_choice("kind", kind, ("affine", "orthogonal"))
  fused, affine = LinearMap(rule.source, rule.target), rule.affine(parameters)
  if affine is None:
    require(x is not None, "x", x, f"points to distil {type(rule).__name__} on: it is not affine")
    assert x is not None
    image = rule(parameters, wide(x))
    fit = OrthogonalMap(rule.source, rule.target) if kind == "orthogonal" else fused
    affine = fit.affine(fit.fit(x, image, weights))
  return fused, dict(zip(("kernel", "shift"), affine, strict=True))


def price(
  before: tuple[MapRule, Parameters],
  after: tuple[MapRule, Parameters],
  x: Rows,
  y: Rows,
  repeats: int = 20,
) -> dict[str, float]:
  """What the second map costs and saves on held-out pairs: recall@1 and its loss, distortion, milliseconds, FLOPs.

  Distortion is the root mean squared difference of the images over that of the first around their mean. Times are the
  median of `repeats` interleaved calls, compiled.

  >>> rule = jp.transport.LinearMap(2, 2)
  >>> pair = rule, rule.init(jax.random.key(0))
  >>> x = jax.random.normal(jax.random.key(1), (8, 2))
  >>> jp.transport.price(pair, pair, x, rule(pair[1], x))["recall_lost"]
  0.0
  """
  images, costs = timed({"before": compiled(*before), "after": compiled(*after)}, x, repeats)
  image, fused = images.values()
  recalls = [float(recall(image, y)["recall@1"]) for image in images.values()]
  spread = jnp.sqrt(jnp.mean((image - jnp.mean(image, axis=0, keepdims=True)) ** 2))
  return {
    "recall@1_before": recalls[0], "recall@1_after": recalls[1], "recall_lost": recalls[0] - recalls[1],
    "distortion": float(jnp.sqrt(jnp.mean((fused - image) ** 2)) / spread),
    **{f"{quantity}_{name}": value for name, cost in costs.items() for quantity, value in cost.items()},
  }  # fmt: skip


def timed(
  functions: Mapping[str, "jax.stages.Wrapped"], x: Rows, repeats: int = 20
) -> tuple[dict[str, Array], dict[str, dict[str, float]]]:
  """Of jitted functions of x by name: results, and `ms` and `flops` of a call, the median of interleaved ones.

  >>> results, costs = jp.transport.timed({"twice": jax.jit(lambda x: 2 * x)}, jnp.ones((2, 1)))
  >>> results["twice"].tolist(), costs["twice"]["flops"]
  ([[2.0], [2.0]], 2.0)
  """
  x = wide(x)
  programs = {name: function.lower(x).compile() for name, function in functions.items()}
  results = {name: program(x) for name, program in programs.items()}
  seconds: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(repeats):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(x))
      seconds[name].append(time.perf_counter() - start)
  analyses = {name: program.cost_analysis() or {} for name, program in programs.items()}
  flops = {name: float(analysis.get("flops", float("nan"))) for name, analysis in analyses.items()}
  return results, {name: {"ms": 1e3 * float(np.median(seconds[name])), "flops": flops[name]} for name in programs}


def compiled(rule: MapRule, parameters: Parameters) -> "jax.stages.Wrapped":
  """The map with its parameters inside, under jit: (n, source) -> (n, target).

  `jax.export.export(compiled(rule, parameters))` of a shape with a symbolic n is a program without this package; its
  `serialize` needs the package flatbuffers.

  >>> rule = jp.transport.OrthogonalMap(2, 3)
  >>> function = jp.transport.compiled(rule, rule.init(jax.random.key(0)))
  >>> from jax import export
  >>> shape = jax.ShapeDtypeStruct(export.symbolic_shape("n, 2"), jnp.float32)
  >>> program = export.export(function)(shape)
  >>> program.call(jnp.ones((4, 2))).shape
  (4, 3)
  """
  held = {name: jnp.asarray(value) for name, value in parameters.items()}
  return jax.jit(lambda x: rule(held, x))


def save_npz(path: str | pathlib.Path, parameters: Mapping[str, Float[Array, "..."]]) -> None:
  """Writes a fused map; NumPy alone runs it:

      with np.load(path) as file:
        kernel, shift = file["kernel"], file["shift"]
      y = x @ kernel + shift

  Raises ConfigError for parameters that are not those of a fused map.

  >>> try:
  ...   jp.transport.save_npz("map.npz", {"frame": jnp.eye(2)})
  ... except jp.ConfigError as error:
  ...   print(error)
  parameters=['frame']: expected kernel and shift, as `fuse` gives them
  """
  names = sorted(parameters)
  require(names == ["kernel", "shift"], "parameters", names, "kernel and shift, as `fuse` gives them")
  with open(path, "wb") as file:
    np.savez(file, kernel=np.asarray(parameters["kernel"]), shift=np.asarray(parameters["shift"]))
