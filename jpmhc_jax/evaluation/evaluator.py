"""Evaluates a state on the held-out examples: accuracies, ARC votes, examples; writes evaluation/step_N.json.

A causal ablation (`evaluation.ablation`) writes into a folder of its own below evaluation/, where nothing looks for the
results of the run.
"""

from collections.abc import Iterator
import gzip
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jpmhc_jax.core import schema, streams
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation import ablations
from jpmhc_jax.evaluation.arc import ArcVotes
from jpmhc_jax.evaluation.rollout import make_rollout
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.state import Setup, TrainState

EXAMPLES = 60  # shown in the report


class Evaluator:
  """Callable on (state, step). The votes of each evaluation stay in the workdir, so that pooling survives restarts."""

  def __init__(self, setup: Setup, dataset: Dataset, workdir: pathlib.Path):
    self.setup, self.dataset = setup, dataset
    self.folder = results_folder(setup.config.evaluation, workdir)
    evaluated, self.replaced = ablations.ablate(setup)
    self.rollout = make_rollout(evaluated)
    self.folder.mkdir(parents=True, exist_ok=True)
    evaluation, ways = setup.config.evaluation, setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
    size = evaluation.batch_size or setup.config.batch_size
    self.batches = dataset.evaluation_batches(-(-size // ways) * ways, evaluation.max_examples)
    self.votes_arc = dataset.kind == "arc"
    self.main_metric = "pass@2" if self.votes_arc else setup.kind.main_metric
    self.higher_is_better = setup.kind.higher_is_better

  def __call__(self, state: TrainState, step: int) -> dict[str, float]:
    """Scalar metrics of this state; also written with examples to `evaluation/step_N.json`."""
    votes = ArcVotes(self.dataset.identifiers, self.dataset.side) if self.votes_arc else None
    metrics, examples = self._pass(state, votes)
    if votes is not None:
      metrics |= votes.results(self.dataset.test_puzzles)
      examples = votes.examples(self.dataset.test_puzzles, EXAMPLES)
      self._write(f"submission_{step}.json", votes.submission(self.dataset.test_puzzles))
      if self.setup.config.evaluation.pooled:
        metrics |= self._pooled(votes, step)
    if self.setup.config.evaluation.wrong_puzzle:
      metrics |= self._wrong_puzzle(state)
    result = {"step": step, "metrics": metrics, "examples": examples}
    if self.replaced:
      result["ablation"] = {"mixer": self.setup.config.evaluation.ablation, "connections": self.replaced}
    self._write(f"step_{step}.json", result)
    return metrics

  def _pass(
    self, state: TrainState, votes: ArcVotes | None, permutation: np.ndarray | None = None
  ) -> tuple[dict[str, float], list[dict[str, Any]]]:
    sums, count = dict.fromkeys(self.setup.kind.per_example, 0.0), 0
    examples: list[dict[str, Any]] = []
    for batch, result in self._results(state, permutation):
      valid = batch["valid"]
      count += int(valid.sum())
      for name in sums:
        sums[name] += float(result[name][valid].astype(np.float64).sum())
      if votes is not None:
        votes.add(
          batch["puzzle_identifiers"],
          batch["inputs"],
          result["predictions"],
          result["q_halt"].astype(np.float32),
          valid,
        )
      elif len(examples) < EXAMPLES and self.dataset.side:
        examples += _grids(batch, result, self.dataset)
    metrics = self.setup.kind.evaluation_metrics(sums, count)
    return metrics | {"examples": float(count)}, examples[:EXAMPLES]

  def _results(
    self, state: TrainState, permutation: np.ndarray | None
  ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Batches with their results on the host; one batch is always in flight."""
    sharding = meshes.batch_sharding(self.setup.mesh)
    waiting = None
    for i in range(len(self.batches)):
      batch = self.batches[i]
      fed = {name: batch[name] for name in ("inputs", "labels", "puzzle_identifiers")}
      if permutation is not None:
        fed["puzzle_identifiers"] = permutation[fed["puzzle_identifiers"]]
      on_device = {name: jax.device_put(value, sharding) for name, value in fed.items()}
      result = self.rollout(state.evaluated, state.buffers, state.table, on_device)
      if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])
      waiting = (batch, result)
    if waiting is not None:
      yield waiting[0], jax.device_get(waiting[1])

  def _pooled(self, votes: ArcVotes, step: int) -> dict[str, float]:
    """Results of the votes of all evaluations up to this one, the earliest first."""
    path = self.folder / f"votes_{step}.json.gz"
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(gzip.compress(json.dumps(votes.to_state()).encode(), mtime=0))
    temporary.replace(path)
    pooled = ArcVotes(self.dataset.identifiers, self.dataset.side)
    for earlier in sorted(_steps(self.folder, "votes_", ".json.gz")):
      if earlier <= step:
        saved = json.loads(gzip.decompress((self.folder / f"votes_{earlier}.json.gz").read_bytes()))
        pooled.merge(ArcVotes.from_state(self.dataset.identifiers, saved))
    return {f"pooled/{name}": value for name, value in pooled.results(self.dataset.test_puzzles).items()}

  def _wrong_puzzle(self, state: TrainState) -> dict[str, float]:
    """Accuracies when every example is given another puzzle's embedding (blank stays blank)."""
    key = streams.key_for(self.setup.config.seed, "wrong_puzzle")
    ids = np.arange(self.dataset.num_identifiers)
    ids[1:] = 1 + np.asarray(jax.random.permutation(key, len(ids) - 1))
    metrics, _ = self._pass(state, None, ids)
    return {f"wrong_puzzle/{name}": metrics[name] for name in ("accuracy", "exact_accuracy")}

  def _write(self, name: str, content: Any) -> None:
    temporary = self.folder / f"{name}.tmp"
    temporary.write_text(json.dumps(content))
    temporary.replace(self.folder / name)


def results_folder(evaluation: schema.Evaluation, workdir: pathlib.Path) -> pathlib.Path:
  """Where the results go: evaluation/, or evaluation/ablation_<mixer>_<layers> for an ablation."""
  folder = workdir / "evaluation"
  if evaluation.ablation == "none":
    return folder
  return folder / f"ablation_{evaluation.ablation}_{ablations.folder_name(evaluation.ablation_layers)}"


def _steps(folder: pathlib.Path, prefix: str, suffix: str) -> list[int]:
  names = (path.name.removeprefix(prefix).removesuffix(suffix) for path in folder.glob(f"{prefix}*{suffix}"))
  return [int(name) for name in names if name.isdigit()]


def _grids(batch: dict[str, np.ndarray], result: dict[str, np.ndarray], dataset: Dataset) -> list[dict[str, Any]]:
  """Sudoku and maze rows as square grids of tokens."""
  shown = []
  for row in np.flatnonzero(batch["valid"]):
    square = [
      values[row].reshape(dataset.side, dataset.side).tolist()
      for values in (batch["inputs"], batch["labels"], result["predictions"])
    ]
    exact = bool(result["exact_accuracy"][row])
    shown.append(
      {
        "kind": dataset.kind,
        "task": f"{dataset.kind} {int(batch['index'][row])}",
        "test": 0,
        "input": square[0],
        "truth": square[1],
        "predictions": [{"grid": square[2], "votes": 1, "q": float(1 / (1 + np.exp(-result["q_halt"][row])))}],
        "solved_at": 1 if exact else None,
      }
    )
  return shown
