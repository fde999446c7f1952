"""One compiled training step for many seeds: short runs that are compared over seeds and learning rates."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core import rng
from jpmhc_jax.evaluation.evaluator import make_rollout
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import build_model, prepare, Setup, TrainState
from jpmhc_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Arm:
  """A configuration, compiled once. The seed draws the parameters and the order of the data; halting draws are shared.

  Shared draws do not bias a comparison of arms: every arm and every seed sees the same ones.
  """

  setup: Setup
  dataset: data.Dataset
  fresh: Callable[[int], TrainState]
  step: Callable[..., Any]
  rollout: Callable[..., Any]

  @classmethod
  def load(cls, spec: str, overrides: Mapping[str, Any]) -> "Arm":
    """The arm of a config file's variant, `sudoku:tiny`, with some fields changed."""
    arguments = [f"--config.{name}={value}" for name, value in overrides.items()]
    return cls.compile(configs.load(spec, arguments))

  @classmethod
  def compile(cls, config: schema.Config) -> "Arm":
    dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
    setup = prepare(config, dataset, make_mesh(schema.Mesh(data=1), jax.devices()[:1]))

    def parameters(key: jax.Array) -> tuple[Any, Any]:
      _, params, buffers = nnx.split(build_model(config, dataset, key), nnx.Param, ...)
      return nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)

    draw, create = jax.jit(parameters), setup.create

    def fresh(seed: int) -> TrainState:
      state = create()
      if seed == config.seed:
        return state
      params, buffers = draw(rng.key_for(seed, "parameters"))
      ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
      return dataclasses.replace(state, params=params, ema=ema, buffers=buffers)

    return cls(setup, dataset, fresh, make_train_step(setup), make_rollout(setup))

  @property
  def config(self) -> schema.Config:
    return self.setup.config

  def train(self, seed: int, watch: Mapping[int, Callable[[TrainState], None]] | None = None) -> list[dict[str, float]]:
    """Metrics of every step of a run; `watch[k]` sees the state after k steps. Stops where the loss is no number."""
    batches = data.build(self.config.data, batch_size=self.config.batch_size, seed=seed)
    state, metrics = self.fresh(seed), []
    for k in range(self.config.steps):
      state, values = self.step(state, jax.device_put(batches.batch(k)))
      metrics.append(values.scalars())
      if not np.isfinite(metrics[-1]["loss"]):
        break
      if watch and k + 1 in watch:
        watch[k + 1](state)
    return metrics

  def train_together(self, seeds: Sequence[int]) -> list[list[dict[str, float]]]:
    """`train` of each seed, all in one program: less than half of the time where an operation is small."""
    step = jax.jit(jax.vmap(self.step), donate_argnums=0)
    sets = [data.build(self.config.data, batch_size=self.config.batch_size, seed=seed) for seed in seeds]
    states: Any = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(self.fresh, seeds))
    metrics: list[list[dict[str, float]]] = [[] for _ in seeds]
    for k in range(self.config.steps):
      batches = jax.tree.map(lambda *leaves: np.stack(leaves), *(one.batch(k) for one in sets))
      states, values = step(states, jax.device_put(batches))
      for run, row in zip(metrics, np.asarray(values.values).tolist(), strict=True):
        if not run or np.isfinite(run[-1]["loss"]):
          run.append(dict(zip(values.names, row, strict=True)))
    return metrics

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """The evaluation metrics of the task over the held-out examples."""
    options, task = self.config.evaluation, self.setup.task
    sums, count = dict.fromkeys(task.per_example, 0.0), 0
    for batch in self.dataset.evaluation_batches(options.batch_size or self.config.batch_size, options.max_examples):
      fed = jax.device_put({name: values for name, values in batch.items() if name not in ("valid", "index")})
      result = jax.device_get(self.rollout(state.evaluated, state.buffers, state.table, fed))
      sums = {name: total + float(result[name][batch["valid"]].sum()) for name, total in sums.items()}
      count += int(batch["valid"].sum())
    return task.evaluation_metrics(sums, count)


def smallest_visible(differences: np.ndarray) -> float:
  """Half the width of the 95 % confidence interval of a paired mean difference."""
  if len(differences) < 2:
    return float("inf")
  quantile = stats.t.ppf(0.975, len(differences) - 1)
  return float(quantile * differences.std(ddof=1) / np.sqrt(len(differences)))
