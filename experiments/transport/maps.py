"""Maps between two clouds by name: ours, trained and solved, beside SciPy's, ott-jax's and relative representations."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
import scipy.optimize
import scipy.spatial
import scipy.stats

from jpmhc_jax import transport
from jpmhc_jax.optim import cayley_adam
from jpmhc_jax.training.tasks.pair_prices import ott_map

PLAN = 512  # points of a plan that a barycentric map holds
CLOUD = 400  # points of each cloud of the experiments without pairs
Image = Callable[[np.ndarray], np.ndarray]
Loss = Callable[[Mapping[str, jax.Array], jax.Array, Any], jax.Array]


@functools.cache
def program(rule: transport.MapRule, loss: Loss, steps: int, rate: float) -> Any:
  """Training by loss(parameters, key, data), Adam and Cayley-Adam on Stiefel frames: one program for all seeds."""
  schedule = optax.cosine_decay_schedule(rate, steps)
  optimizer = optax.partition(
    {"trunk": optax.adam(schedule), "manifold:stiefel": cayley_adam(schedule), "fixed": optax.set_to_zero()},
    dict(rule.roles),
  )

  def run(parameters: dict[str, jax.Array], data: Any, keys: jax.Array, factor: jax.Array) -> dict[str, jax.Array]:
    def step(carry: tuple, key: jax.Array) -> tuple:
      parameters, state = carry
      updates, state = optimizer.update(jax.grad(loss)(parameters, key, data), state, parameters)
      updates = jax.tree.map(lambda update: factor * update, updates)
      return (optax.apply_updates(parameters, updates), state), None

    return jax.lax.scan(step, (parameters, optimizer.init(parameters)), keys)[0][0]

  return jax.jit(run)


def train_map(
  rule: transport.MapRule,
  parameters: Mapping[str, jax.Array],
  loss: Loss,
  data: Any,
  steps: int,
  rate: float = 3e-3,
  factor: float = 1.0,
) -> dict[str, jax.Array]:
  """Parameters after steps of a loss that is the same function for every seed; factor: on the learning rate."""
  start = {name: jnp.asarray(value) for name, value in parameters.items()}
  return program(rule, loss, steps, rate)(start, data, jax.random.split(jax.random.key(0), steps), jnp.float32(factor))


def standardised(x: np.ndarray, rows: int) -> np.ndarray:
  """Around the mean of the first rows and of mean squared length 1 there."""
  x = x - x[:rows].mean(0)
  return (x / np.sqrt((x[:rows] ** 2).sum(1).mean())).astype(np.float32)


def scipy_procrustes(x: np.ndarray, y: np.ndarray) -> Image:
  """SciPy's orthogonal Procrustes on centred rows, padded to one width."""
  size = max(x.shape[1], y.shape[1])
  pad = lambda p: np.pad(p, ((0, 0), (0, size - p.shape[1])))  # noqa: E731
  matrix, _ = scipy.linalg.orthogonal_procrustes(pad(x - x.mean(0)), pad(y - y.mean(0)))
  return lambda rows: (pad(rows - x.mean(0)) @ matrix)[:, : y.shape[1]] + y.mean(0)


@functools.cache
def flow_loss(rule: transport.MapRule, likelihood: float) -> Loss:
  """Squared error of pairs, with a penalty on the volume or, in its place, the negative log-likelihood."""

  def loss(parameters: Mapping[str, jax.Array], key: jax.Array, data: Any) -> jax.Array:
    x, y = data
    rows = jax.random.randint(key, (min(64, len(x)),), 0, len(x))
    image, volume = rule(parameters, x[rows]), rule.log_volumes(parameters, x[rows])
    error = jnp.mean(jnp.sum((image - y[rows]) ** 2, axis=1))
    if likelihood:
      return error + likelihood * transport.negative_log_likelihood(image, y, volume, rule.rank)
    return error + 1e-3 * jnp.mean((volume / x.shape[1]) ** 2)

  return loss


def flow_map(
  x: np.ndarray, y: np.ndarray, steps: int, likelihood: float = 0.0
) -> tuple[transport.Chain, dict[str, jax.Array]]:
  """A flow before the Procrustes map, trained on pairs by `flow_loss`."""
  expansion = transport.OrthogonalMap(x.shape[1], y.shape[1])
  rule = transport.Chain.of(transport.FlowMap(x.shape[1], x.shape[1], couplings=2), expansion)
  start = rule.init(jax.random.key(0)) | {f"part1_{n}": v for n, v in expansion.fit(x, y).items()}
  return rule, train_map(rule, start, flow_loss(rule, likelihood), (jnp.asarray(x), jnp.asarray(y)), steps)


def of_ott(x: np.ndarray, y: np.ndarray) -> Image | None:
  """ott-jax's entropic map from x, moved into the target space by Procrustes, to y; None where it is not installed."""
  before = scipy_procrustes(x, y)
  entropic = ott_map(jnp.asarray(before(x[:PLAN])), jnp.asarray(y[:PLAN]))
  return None if entropic is None else lambda rows: np.asarray(entropic(jnp.asarray(before(rows))))


def maps(x: np.ndarray, y: np.ndarray, steps: int) -> dict[str, Image]:
  """Every map that learns from pairs, ours and others', as functions of source rows."""
  orthogonal, ridge = transport.OrthogonalMap(x.shape[1], y.shape[1]), transport.LinearMap(x.shape[1], y.shape[1], 0.05)
  aligned = orthogonal.fit(x, y)
  solver = transport.EntropicTransport(epsilon=0.02, iterations=200)
  barycentric = transport.BarycentricMap(y.shape[1], y.shape[1], points=min(len(y), PLAN))
  entropic = barycentric.fit(orthogonal(aligned, jnp.asarray(x[:PLAN])), jnp.asarray(y[:PLAN]), solver)
  flow, flowed = flow_map(x, y, steps)
  rules: dict[str, tuple[transport.MapRule, Any]] = {
    "orthogonal": (orthogonal, aligned), "ridge": (ridge, ridge.fit(x, y)), "flow": (flow, flowed)
  }  # fmt: skip
  functions: dict[str, Image] = {
    name: lambda rows, pair=pair: np.asarray(pair[0](pair[1], jnp.asarray(rows))) for name, pair in rules.items()
  }
  functions["barycentric"] = lambda rows: np.asarray(barycentric(entropic, orthogonal(aligned, jnp.asarray(rows))))
  functions["SciPy Procrustes"] = scipy_procrustes(x, y)
  if (other := of_ott(x, y)) is not None:
    functions["ott-jax"] = other
  return functions


def relative(x: np.ndarray, y: np.ndarray, held_x: np.ndarray, held_y: np.ndarray) -> dict[str, float]:
  """Recall of relative representations: cosines to paired anchors on both sides."""
  unit = lambda p: p / np.linalg.norm(p, axis=1, keepdims=True)  # noqa: E731
  return retrieval(unit(held_x) @ unit(x).T, unit(held_y) @ unit(y).T)


def retrieval(image: np.ndarray, y: np.ndarray) -> dict[str, float]:
  values = transport.recall(jnp.asarray(image), jnp.asarray(y))
  return {name: float(values[name]) for name in ("recall@1", "recall@5", "recall@10", "median_rank")}


@functools.partial(jax.jit, static_argnums=0)
def matched(rule: transport.OrthogonalMap, x: jax.Array, y: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
  """The map to the barycentres of a Gromov–Wasserstein plan, and the plan."""
  solver = transport.EntropicTransport(epsilon=2e-3, iterations=100)
  _, plan = transport.gromov_wasserstein(x, y, solver=solver, rounds=15)
  return rule.fit(x, plan.barycentres(y)), plan.matrix()


@functools.partial(jax.jit, static_argnums=0)
def refined(
  rule: transport.OrthogonalMap, parameters: dict[str, jax.Array], x: jax.Array, y: jax.Array, epsilon: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
  """The map to the barycentres of the plan from the image, and the plan's entropy."""
  plan = transport.EntropicTransport(iterations=100)(rule(parameters, x), y, epsilon=epsilon)
  return rule.fit(x, plan.barycentres(y)), jnp.mean(plan.row_entropy())


def unpaired(x: np.ndarray, y: np.ndarray, rounds: int = 8) -> tuple[Image, float]:
  """An orthogonal map without a pair: Gromov–Wasserstein, then transport and Procrustes in turn as ε falls."""
  x, y = jnp.asarray(x), jnp.asarray(y)
  rule = transport.OrthogonalMap(x.shape[1], y.shape[1])
  parameters, _ = matched(rule, x, y)
  for epsilon in np.geomspace(0.1, 0.01, rounds):
    parameters, entropy = refined(rule, parameters, x, y, jnp.float32(epsilon))
  return lambda rows: np.asarray(rule(parameters, jnp.asarray(rows))), float(entropy)


def distances_apart(x: np.ndarray, y: np.ndarray, plan: np.ndarray) -> float:
  """Σ (|x_i − x_k|² − |y_j − y_l|²)² P_ij P_kl, what Gromov–Wasserstein minimises but for its entropy."""
  inside = [scipy.spatial.distance.cdist(p, p, "sqeuclidean") for p in (x, y)]
  a, b = plan.sum(1), plan.sum(0)
  squares = a @ inside[0] ** 2 @ a + b @ inside[1] ** 2 @ b
  return float(squares - 2 * np.sum((inside[0] @ plan @ inside[1]) * plan))


def similarity(x: np.ndarray, kind: str) -> np.ndarray:
  """(n, n), of mean 0 and variance 1 off the diagonal: cosines around the mean, or ranks by distance from each row."""
  if kind == "cosines":
    rows = x - x.mean(0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = rows @ rows.T
  else:
    values = -scipy.stats.rankdata(scipy.spatial.distance.cdist(x, x), axis=1)
  off = ~np.eye(len(x), dtype=bool)
  return np.where(off, (values - values[off].mean()) / values[off].std(), 0.0)


def assigned(x: np.ndarray, y: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
  """Quadratic assignment of y in an unknown order: the partner of each x, and Σ a b found over that of the truth."""
  order = np.random.default_rng(0).permutation(len(y))
  a, b = similarity(x, kind), similarity(y, kind)
  found = scipy.optimize.quadratic_assignment(a, b[np.ix_(order, order)], options={"maximize": True})
  return order[found.col_ind], float(found.fun / np.sum(a * b))


def why_not(x: np.ndarray, y: np.ndarray, trained: int) -> dict[str, float]:
  """Whether the true pairs are the best ones to someone who sees distances alone, and whether the truth is stable.

  The objective of the plan that is found over that of the true pairs, on the same rows, which Gromov–Wasserstein
  minimises and the assignments of cosines and of ranks maximise, with the recall@1 of the maps that are fitted to these
  assignments; and recall@1 of the map that is fitted to all pairs, before and after it is refined without them.
  """
  rule = transport.OrthogonalMap(x.shape[1], y.shape[1])
  rows = slice(0, CLOUD)

  def recalled(parameters: dict[str, jax.Array]) -> float:
    return retrieval(np.asarray(rule(parameters, x[trained:])), y[trained:])["recall@1"]

  _, plan = matched(rule, jnp.asarray(x[rows]), jnp.asarray(y[rows]))
  found = distances_apart(x[rows], y[rows], np.asarray(plan, np.float64))
  truth = distances_apart(x[rows], y[rows], np.eye(CLOUD) / CLOUD)
  numbers = {"objective over that of the truth": found / truth}
  for kind in ("cosines", "ranks"):
    partner, over = assigned(x[rows], y[rows], kind)
    numbers |= {f"{kind} over those of the truth": over, f"recall@1 by {kind}": recalled(rule.fit(x[rows], y[partner]))}
  parameters = rule.fit(x[:trained], y[:trained])
  numbers["recall@1 of the truth"] = recalled(parameters)
  for epsilon in np.geomspace(0.1, 0.01, 8):
    clouds = jnp.asarray(x[rows]), jnp.asarray(y[CLOUD : 2 * CLOUD])
    parameters, _ = refined(rule, parameters, *clouds, jnp.float32(epsilon))
  return numbers | {"recall@1 from the truth": recalled(parameters)}
