"""Evaluates a state on the held-out examples: accuracies, ARC votes, examples; writes evaluation/step_N.json.

An evaluation of a part of the examples (`evaluation.max_examples`) is about that part alone, says so, and has files of
its own (step_N_partial_2_of_8.json), so that it never stands in for one of all, nor are their votes pooled.

With several processes each evaluates a consecutive range of the examples, and process 0 merges and writes. A pass that
is interrupted, or killed, goes on where it last saved what it had counted.

An ablation of mixers writes into a folder of its own below evaluation/, where nothing looks for the results of the run.
What is evaluated is the average of the parameters, where the run keeps one. Beside its metrics stand those of the
parameters themselves, as unaveraged/… (`evaluation.unaveraged`, at the run's last step by default: a second pass), and
with permuted puzzles, as wrong_puzzle/…; they stay there when the same step is evaluated again without them.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import gzip
import json
import pathlib
import shlex
import sys
import time
from typing import Any
import zlib

import jax
from jaxtyping import Array
import numpy as np

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core import rng
from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.files import move_aside, storing, to_json, write_atomically
from jpmhc_jax.core.reading import memory_limit, read_gzip, read_json
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.ablations import ablate, Ablation, NOTHING
from jpmhc_jax.evaluation.accumulator import EvalAccumulator, EvalProgress, EXAMPLES
from jpmhc_jax.evaluation.arc import ArcVotes, with_outputs
from jpmhc_jax.evaluation.submission import check_submission
from jpmhc_jax.training import interrupts
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.integrity import fingerprint
from jpmhc_jax.training.mesh import share_of
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.tasks.base import Batch, check_per_row, task_of

_WRONG = "wrong_puzzle/"  # begins the names of the metrics with permuted puzzles
UNAVERAGED = "unaveraged/"  # of those of the parameters themselves


class Evaluator:
  """Callable on (state, step). The votes of each evaluation stay in the workdir, so that pooling survives restarts."""

  def __init__(
    self, setup: Setup, dataset: Dataset, workdir: pathlib.Path, ablation: Ablation = NOTHING, subfolder: str = ""
  ):
    """subfolder: of evaluation/, where nothing looks for the results of the run."""
    self.setup, self.workdir, self.ablation = setup, workdir, ablation
    self.dataset: Any = dataset  # one whose copies vote has `test_puzzles` and `side`
    self.folder = ablation.folder(workdir) / subfolder
    evaluated, self.replaced = ablate(setup, ablation)
    self.rollout, self.outputs = make_rollout(evaluated), setup.task.outputs(setup.config)
    with storing(str(self.folder)):
      self.folder.mkdir(parents=True, exist_ok=True)
    evaluation, ways = setup.config.evaluation, meshes.ways(setup.mesh)
    size = -(-(evaluation.batch_size or setup.config.batch_size) // ways) * ways
    self.share = share_of(meshes.batch_sharding(setup.mesh), size)
    self.batches = dataset.evaluation_batches(len(self.share.numbers), evaluation.max_examples)
    self.coverage = dataset.coverage(evaluation.max_examples)
    self.voting, task = data.votes(setup.config.data), setup.task
    self.main_metric, self.higher_is_better = (
      ("pass@2", True) if self.voting else (task.main_metric, task.higher_is_better)
    )

  def __call__(self, state: TrainState, step: int) -> dict[str, float]:
    """Scalar metrics of this state; also written with examples to `evaluation/step_N.json` (see `path`).

    Raises Interrupted when the process is asked to stop meanwhile; what was counted is on disk then.
    """
    partials = [self._partial(state, f"{step}{self.coverage.suffix}")]
    began = time.monotonic()
    own = self._pass(state, partials[0], self.voting)
    seconds = time.monotonic() - began
    beside: dict[str, EvalAccumulator] = {}
    if self.ablation.wrong_puzzle:
      partials.append(self._partial(state, f"{step}{self.coverage.suffix}_wrong"))
      beside[_WRONG] = self._pass(state, partials[-1], False, self._other_puzzles())
    if self._has_two_answers(state, step):
      raw = dataclasses.replace(state, ema=None)
      partials.append(self._partial(raw, f"{step}{self.coverage.suffix}_unaveraged"))
      beside[UNAVERAGED] = self._pass(raw, partials[-1], False)
    metrics = distributed.from_primary(lambda: self._write_all(step, state, own, beside, seconds))
    for partial in partials:
      partial.discard()
    return metrics

  def _has_two_answers(self, state: TrainState, step: int) -> bool:
    """Whether the parameters themselves are evaluated too."""
    config = self.setup.config
    due = {"never": False, "end": step >= config.steps, "always": True}[config.evaluation.unaveraged]
    return due and state.ema is not None and self.ablation.mixer == "none"

  def path(self, step: int, what: str = "step", ending: str = ".json") -> pathlib.Path:
    """Of this evaluation's results, or of its `submission`, `votes` or `cost`."""
    return self.folder / f"{what}_{step}{self.coverage.suffix}{ending}"

  def _partial(self, state: TrainState, name: str) -> EvalProgress:
    fields = self.setup.config.evaluation

    def identity() -> str:
      numbers = fingerprint((state.evaluated, state.buffers, state.table))
      shares = f"{self.share.count} of {self.share.size}"
      tries = f"{fields.trajectories} {fields.noise} {fields.choice}" if fields.trajectories > 1 else "1"
      return f"{numbers} {self.dataset.fingerprint()} {fields.max_examples} {shares} {self.outputs.kept} {tries}"

    return EvalProgress(self.folder, name, identity, self.share.index)

  def _pass(
    self, state: TrainState, partial: EvalProgress, voting: bool, permutation: np.ndarray | None = None
  ) -> EvalAccumulator:
    """The tally of all examples on process 0; that of its own share elsewhere."""
    save_every = self.setup.config.evaluation.save_every
    start, saved = partial.load()
    task, dataset = self.setup.task, self.dataset
    taken = self.outputs
    new = EvalAccumulator(dataset, taken.per_example, (*taken.kept, *taken.collected), voting)
    tally = EvalAccumulator.from_state(dataset, saved) if saved else new
    for done, (batch, result) in enumerate(self._results(state, start, permutation), start=start + 1):
      tally.add(batch, result)
      stopping = interrupts.stop_requested()
      if stopping or (save_every and done % save_every == 0):
        partial.save(done, tally.to_state)
      if stopping:
        raise interrupts.Interrupted(
          f"asked to stop in an evaluation, after {done} of {self._length()} batches: saved; run the same command to "
          "resume"
        )
    samples = task.samples(self.dataset, self._batch(0), lambda batch: self._answers(state, batch))
    if samples is not None:
      tally.examples = samples
    return self._merged(tally)

  def _answers(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    result = self.rollout(state.evaluated, state.buffers, state.table, self.share.place(_arrays(batch)))
    return self.share.collect({"predictions": result["predictions"]})["predictions"]

  def _merged(self, tally: EvalAccumulator) -> EvalAccumulator:
    if jax.process_count() == 1:
      return tally
    # Processes that hold the same rows have the same tally: each share counts once, in the order of the examples.
    gathered = distributed.gather([self.share.index, tally.to_state()])
    if not distributed.is_primary():
      return tally
    by_share = dict(gathered)
    first, *others = (EvalAccumulator.from_state(self.dataset, by_share[index]) for index in sorted(by_share))
    for other in others:
      first.merge(other)
    return first

  def _length(self) -> int:
    """Batches that every process evaluates."""
    return -(-len(self.batches) // self.share.count)

  def _batch(self, i: int) -> dict[str, np.ndarray]:
    """The i-th batch of this share's range of examples; past the end, one without valid rows."""
    number = self.share.index * self._length() + i
    if number < len(self.batches):
      return self.batches[number]
    last = self.batches[len(self.batches) - 1]
    return last | {"valid": np.zeros_like(last["valid"]), "index": np.full_like(last["index"], -1)}

  def _results(
    self, state: TrainState, start: int, permutation: np.ndarray | None
  ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Local batches from `start` on with their results on the host; one batch is always in flight."""
    waiting = None
    for i in range(start, self._length()):
      batch = self._batch(i)
      fed = _arrays(batch)
      if permutation is not None:
        ids = self.setup.task.table_ids
        fed[ids] = permutation[fed[ids]]
      result = self.rollout(state.evaluated, state.buffers, state.table, self.share.place(fed))
      if waiting is not None:
        yield waiting[0], self.share.collect(waiting[1])
      waiting = (batch, result)
    if waiting is not None:
      yield waiting[0], self.share.collect(waiting[1])

  def _write_all(
    self, step: int, state: TrainState, own: EvalAccumulator, beside: Mapping[str, EvalAccumulator], seconds: float
  ) -> dict[str, float]:
    """Metrics of the merged tallies, and the files of this evaluation; beside: others by how their names begin."""
    metrics, examples, scored = self._means(own), own.examples, {}
    judged, record = self._judged(step, state, own)
    metrics |= judged
    with storing(str(self.folder)):
      if own.votes is not None:
        every = self.dataset.test_puzzles
        answered = own.votes.voted_on(every) if self.coverage.partial else every
        scored = with_outputs(answered)
        examples = own.votes.examples(answered, EXAMPLES)
        submission = own.votes.submission(every)
        check_submission(submission, every)
        self._write(self.path(step, "submission"), submission)
        pooled = self._pooled(own.votes, step) if self.setup.config.evaluation.pooled else None
        if scored:
          metrics |= own.votes.results(scored)
        if scored and pooled:
          metrics |= {f"pooled/{name}": value for name, value in pooled.results(scored).items()}
      for prefix, tally in beside.items():
        metrics |= {f"{prefix}{name}": value for name, value in self._means(tally).items() if name != "examples"}
      stored = self._earlier(step, tuple({_WRONG, UNAVERAGED} - set(beside))) | metrics
      by = {"metric": self.main_metric, "higher_is_better": self.higher_is_better}
      result: dict[str, Any] = {"step": step, "metrics": stored, "judged_by": by, "examples": examples} | record
      if self.outputs.kept:
        result["answers"] = {name: own.kept[name] for name in self.outputs.kept}
      if scored and own.votes is not None:
        result["tasks"] = own.votes.by_task(scored)
      if self.setup.config.evaluation.trajectories > 1:
        evaluation = self.setup.config.evaluation
        result["trajectories"] = {name: getattr(evaluation, name) for name in ("trajectories", "noise", "choice")}
      if self.coverage.partial:
        result["partial"] = dataclasses.asdict(self.coverage)
      if self.replaced:
        result["ablation"] = {"mixer": self.ablation.mixer, "connections": self.replaced}
      # A file of its own: results repeat bit for bit, times do not.
      self._write(self.path(step, "cost"), self._cost(own, seconds) | result.pop("cost", {}))
      self._write(self.path(step), result)
    return metrics

  def _cost(self, own: EvalAccumulator, seconds: float) -> dict[str, Any]:
    """Wall time of the pass, of one task, and on what; of one that was resumed, of its last start."""
    tasks = len(self.dataset.test_puzzles) if own.votes is not None else own.count
    devices = self.setup.mesh.devices.ravel()
    where = f"{len(devices)} × {devices[0].device_kind}"
    return {"seconds": seconds, "seconds_per_task": seconds / max(tasks, 1), "devices": where}

  def _earlier(self, step: int, prefixes: tuple[str, ...]) -> dict[str, float]:
    """The metrics that begin so of the file that this evaluation replaces."""
    try:
      earlier: Mapping = read_json(self.path(step))
      return {name: float(value) for name, value in earlier["metrics"].items() if name.startswith(prefixes)}
    except (OSError, DataError, KeyError, TypeError, ValueError, AttributeError):  # none yet, or damaged
      return {}

  def _means(self, tally: EvalAccumulator) -> dict[str, float]:
    means = self.setup.task.evaluation_metrics(tally.sums, tally.count) if tally.count else {}
    return means | {"examples": float(tally.count)}

  def _judged(self, step: int, state: TrainState, tally: EvalAccumulator) -> tuple[dict[str, float], dict[str, Any]]:
    """What the task says of all examples together."""
    if not self.outputs.collected:
      return {}, {}
    arrays = {name: np.asarray(tally.kept[name], np.float32) for name in self.outputs.collected}
    model = self.setup.model(state.evaluated, state.buffers)
    return self.setup.task.judge(model, self.dataset, arrays, self.setup.config, step)

  def _pooled(self, votes: ArcVotes, step: int) -> ArcVotes:
    """The votes of all evaluations of the same examples up to this one, the earliest first."""
    content = to_json(votes.to_state()).encode()
    write_atomically(self.path(step, "votes", ".json.gz"), gzip.compress(content, mtime=0))
    pooled = ArcVotes(self.dataset.identifiers, self.dataset.side)
    for earlier in sorted(_steps(self.folder, "votes_", f"{self.coverage.suffix}.json.gz")):
      if earlier < step and (saved := self._saved_votes(earlier)) is not None:
        pooled.merge(saved)
    pooled.merge(votes)
    return pooled

  def _saved_votes(self, step: int) -> ArcVotes | None:
    """The votes of an earlier evaluation; None, said and moved aside, where they are damaged."""
    path = self.path(step, "votes", ".json.gz")
    try:
      return ArcVotes.from_state(self.dataset.identifiers, json.loads(read_gzip(path, memory_limit())))
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
      again = f"jpmhc evaluate --workdir={shlex.quote(str(self.workdir))} --step={step}"
      print(
        f"{path} is damaged ({error}): moved to {move_aside(path, self.workdir)}; the pooled votes are without step "
        f"{step}. While its checkpoint is there, {again} votes again",
        file=sys.stderr,
      )
      return None

  def _other_puzzles(self) -> np.ndarray:
    """For every identifier another one, whose embedding the ablation uses instead (blank stays blank)."""
    key = rng.key_for(self.setup.config.seed, "wrong_puzzle")
    ids = np.arange(len(self.dataset.identifiers))
    ids[1:] = 1 + np.asarray(jax.random.permutation(key, len(ids) - 1))
    return ids

  def _write(self, path: pathlib.Path, content: Any) -> None:
    write_atomically(path, to_json(content))


def _arrays(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What the model sees of an evaluation batch."""
  return {name: values for name, values in batch.items() if name not in ("valid", "index")}


def _steps(folder: pathlib.Path, prefix: str, suffix: str) -> list[int]:
  names = (path.name.removeprefix(prefix).removesuffix(suffix) for path in folder.glob(f"{prefix}*{suffix}"))
  return [int(name) for name in names if name.isdigit()]


Predictions = dict[str, Array]
Rollout = Callable[[Any, Any, Array | None, Batch], Predictions]


def make_rollout(setup: Setup) -> Rollout:
  """A jitted (params, buffers, table, batch) -> what `Task.predict` says of every row.

  The numbers of the table's rows are read as given, so an ablation can permute them.
  """
  by_row, task = meshes.batch_sharding(setup.mesh), setup.task
  taken = task.outputs(setup.config)

  def rollout(params: Any, buffers: Any, table: Array | None, batch: Batch) -> Predictions:
    model = setup.model(params, buffers)
    predicted = task.predict(model, setup.rows(table, batch), batch, setup.config)
    check_per_row(f"{type(task).__name__}.predict", predicted, (*taken.per_example, *taken.kept), batch)
    return predicted

  layout = setup.shardings
  inputs = (layout.params, layout.buffers, layout.table, by_row)
  return jax.jit(meshes.on_mesh(setup.mesh, rollout), in_shardings=inputs, out_shardings=by_row)


_ONE_TASK = {"": {"test": [{"input": [[0]], "output": [[0]]}]}}


def metric_names(config: schema.Config) -> tuple[str, ...]:
  """Names in `evaluation/step_N.json` of a run of this config. Raises ConfigError where model and data do not fit."""
  task = task_of(config)
  taken = task.outputs(config)
  names = [*task.evaluation_metrics(dict.fromkeys(taken.per_example, 0.0), 0), *taken.judged, "examples"]
  if data.votes(config.data):
    voted = list(ArcVotes([""]).results(_ONE_TASK))
    names += voted
    names += [f"pooled/{name}" for name in voted] if config.evaluation.pooled else []
  return tuple(names)
