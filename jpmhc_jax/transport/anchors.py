"""Maps that answer with points of the target: attention over anchors, and the barycentric map of a transport plan."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jpmhc_jax.core.errors import DataError, require
from jpmhc_jax.core.fields import check_number, check_whole
from jpmhc_jax.transport.maps import MapRule, Parameters
from jpmhc_jax.transport.points import Rows, wide
from jpmhc_jax.transport.sinkhorn import EntropicTransport, TransportPlan

__all__ = ["AttentionMap", "BarycentricMap"]


@dataclasses.dataclass(frozen=True)
class AttentionMap(MapRule):
  """y = Σ_j softmax_j(⟨W x, key_j⟩ / √m) value_j over `anchors` pairs (key_j, value_j); uniform before training.

  `fit` takes known pairs as anchors, evenly spaced rows of them, with W = I / temperature for unit keys.
  Raises ConfigError for less than one anchor, `fit` DataError for fewer pairs than anchors.

  >>> rule = jp.transport.AttentionMap(2, 1, anchors=3)
  >>> parameters = rule.init(jax.random.key(0))
  >>> bool(jnp.allclose(rule(parameters, jnp.ones((1, 2))), parameters["values"].mean(0)[None]))
  True
  """

  anchors: int = 64
  temperature: float = 0.1

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole("anchors", self.anchors, ge=1)
    check_number("temperature", self.temperature, gt=0)

  @property
  def roles(self) -> dict[str, str]:
    return dict.fromkeys(("keys", "query", "values"), "trunk")

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    keys, values = jax.random.split(key)
    return {
      "keys": jax.random.normal(keys, (self.anchors, self.source)),
      "query": jnp.zeros((self.source, self.source)),
      "values": jax.random.normal(values, (self.anchors, self.target)),
    }

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    logits = (x @ parameters["query"]) @ parameters["keys"].T / self.source**0.5
    return jax.nn.softmax(logits, axis=1) @ parameters["values"]

  def fit(self, x: Rows, y: Rows) -> dict[str, Array]:
    """Anchors from known pairs."""
    self.check_fit(x, y)
    if len(x) < self.anchors:
      raise DataError(f"x has {len(x)} rows: expected at least anchors={self.anchors} pairs")
    rows = jnp.linspace(0, len(x) - 1, self.anchors).astype(jnp.int32)
    keys = wide(x)[rows]
    size = jnp.sqrt(jnp.mean(jnp.sum(keys * keys, axis=1)))
    # ⟨x, key⟩ / (temperature · mean |key|²): a cosine over the temperature for keys of one length.
    query = jnp.eye(self.source, dtype=keys.dtype) * (self.source**0.5 / (self.temperature * size**2))
    return {"keys": keys, "query": query, "values": wide(y)[rows]}


@dataclasses.dataclass(frozen=True)
class BarycentricMap(MapRule):
  """y(x) = Σ_j softmax_j((g_j − c(x, y_j))/ε + log b_j) z_j: the entropic map of a solved plan, for any x.

  The parameters, none trained, are the target points of the plan, what each stands for (z_j, by default the points
  themselves), its potentials and ε. Raises ConfigError for an unknown cost or less than one point.
  Source: Pooladian & Niles-Weed 2021.

  >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
  >>> rule, parameters = jp.transport.BarycentricMap.of(jp.transport.EntropicTransport(epsilon=0.001)(x, x + 5), x + 5)
  >>> rule(parameters, jnp.array([[0.1, 0.0]])).round(2).tolist()
  [[5.0, 5.0]]
  """

  points: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole("points", self.points, ge=1)

  @classmethod
  def of(cls, plan: TransportPlan, y: Rows, values: Rows | None = None) -> tuple["BarycentricMap", dict[str, Array]]:
    """The map of a plan with squared Euclidean cost to the cloud y, and its parameters."""
    p = plan.problem
    targets = wide(y)
    require(len(targets) == len(plan.g), "y", targets.shape, f"the {len(plan.g)} target points of the plan")
    images = targets if values is None else wide(values)
    # The plan's features are of points around a middle: its own target features tell which.
    middle = jnp.mean(targets - p.v, axis=0)
    parameters = {
      "images": images, "shift": (plan.g - p.beta) / p.epsilon + jnp.log(p.b), "features": p.v, "middle": middle,
      "epsilon": p.epsilon,
    }  # fmt: skip
    return cls(targets.shape[1], images.shape[1], len(targets)), parameters

  def fit(self, x: Rows, y: Rows, solver: EntropicTransport | None = None) -> dict[str, Array]:
    """Parameters from unpaired clouds with as many target rows as `points`."""
    solver = EntropicTransport() if solver is None else solver
    require(solver.cost == "sqeuclidean", "solver.cost", solver.cost, "'sqeuclidean'")
    for side in ("source", "target"):
      require(getattr(self, side) == y.shape[1], side, getattr(self, side), f"{y.shape[1]}, the width of y")
    require(len(y) == self.points, "points", self.points, f"{len(y)}, the rows of y")
    return self.of(solver(x, y), y)[1]

  @property
  def roles(self) -> dict[str, str]:
    return dict.fromkeys(("epsilon", "features", "images", "middle", "shift"), "fixed")

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    targets = jax.random.normal(key, (self.points, self.source))
    images = targets if self.source == self.target else jax.random.normal(key, (self.points, self.target))
    zeros = jnp.zeros(self.source)
    shift = -jnp.sum(targets * targets, axis=1) / 2
    return {"images": images, "shift": shift, "features": targets, "middle": zeros, "epsilon": 2 * jnp.ones(())}

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    scores = 2 * (x - parameters["middle"][None]) @ parameters["features"].T / parameters["epsilon"]
    return jax.nn.softmax(scores + parameters["shift"][None], axis=1) @ parameters["images"]
