"""The evaluator against its definition: padded batches, any mesh, examples, ARC votes and their pooling."""

import dataclasses
import functools
import gzip
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.ablations import Ablation, NOTHING
from jpmhc_jax.evaluation.arc import PASS_KS
from jpmhc_jax.evaluation.evaluator import Evaluator, metric_names

TRUTH, WRONG = 0, 1


@functools.cache
def _setup(devices=1):
  return tiny.setup(tiny.config(mesh=schema.Mesh(data=devices)))


@pytest.fixture(scope="module")
def state():
  """Fresh parameters on the host, with a halting head that says something different about every puzzle."""
  state = jax.device_get(_setup().create())
  ema = dict(state.ema)
  ema["q_kernel"] = np.random.default_rng(0).normal(size=ema["q_kernel"].shape).astype(np.float32)
  ema["q_bias"] = np.zeros_like(ema["q_bias"])
  return dataclasses.replace(state, ema=ema)


@pytest.fixture(scope="module")
def answers(state):
  """(logits, q) of all 20 held-out puzzles: the model called in a Python loop, unpadded, in one batch."""
  setup, dataset = _setup(), tiny.dataset(tiny.config())
  batch = dataset.evaluation_batches(20)[0]
  assert batch["valid"].all()
  params, buffers, table = jax.tree.map(jnp.asarray, (state.ema, state.buffers, state.table))
  model = nnx.merge(setup.graph, nnx.State(params), nnx.State(buffers))
  rows = table[batch["puzzle_identifiers"]]
  graph, variables = nnx.split(model)
  step = jax.jit(lambda v, z_h, z_l: nnx.merge(graph, v)(z_h, z_l, jnp.asarray(batch["inputs"]), rows))
  z_h, z_l = model.initial_latents(20, dataset.sequence_length + 1)
  for _ in range(setup.config.model.recursion.max_steps):
    z_h, z_l, logits, q = step(variables, z_h, z_l)
  return np.asarray(logits, np.float64), np.asarray(q[:, 0], np.float64)


@pytest.fixture(scope="module")
def dataset(answers):
  """Every third puzzle is given the model's own answer as its solution, so that some rows are exactly right."""
  original = tiny.dataset(tiny.config())
  predictions = answers[0].argmax(axis=-1).astype(np.uint8)

  def encode(examples):
    inputs, labels = original.evaluation.encode(examples)
    return inputs, np.where((examples % 3 == 0)[:, None], predictions[examples], labels).astype(np.uint8)

  return dataclasses.replace(original, evaluation=dataclasses.replace(original.evaluation, encode=encode))


@pytest.fixture(scope="module")
def evaluated(state, dataset, tmp_path_factory):
  folder = tmp_path_factory.mktemp("evaluated")
  return Evaluator(_setup(), dataset, folder)(state, 7), json.loads((folder / "evaluation" / "step_7.json").read_text())


def test_metrics_over_a_padded_last_batch_equal_a_computation_by_hand(evaluated, answers, dataset):
  logits, q = answers
  labels = dataset.evaluation_batches(20)[0]["labels"]
  labelled, right = labels != -100, logits.argmax(axis=-1) == labels
  exact = (right | ~labelled).all(axis=-1)
  assert 0 < exact.sum() < 20 and 0 < (q >= 0).sum() < 20
  terms = np.where(logits >= 0, logits + 1, 1 / (1 - np.minimum(logits, 0)))
  chosen = np.take_along_axis(terms, np.where(labelled, labels, 0)[..., None], axis=-1)[..., 0]
  token_loss = np.where(labelled, np.log(terms.sum(axis=-1) / chosen), 0)
  halting = np.logaddexp(0, q) - exact * q
  expected = {
    "lm_loss": (token_loss.sum(axis=-1) / labelled.sum(axis=-1)).mean(),
    "q_halt_loss": halting.mean(),
    "accuracy": ((right & labelled).sum(axis=-1) / labelled.sum(axis=-1)).mean(),
    "exact_accuracy": exact.mean(),
    "q_halt_accuracy": ((q >= 0) == exact).mean(),
    "examples": 20.0,
  }
  expected["loss"] = expected["lm_loss"] + 0.5 * expected["q_halt_loss"]
  assert evaluated[0] == pytest.approx(expected, rel=1e-5)
  assert set(metric_names(_setup().config)) == set(evaluated[0])


def test_every_example_is_written_once_with_its_answer_and_the_metrics(evaluated, answers, dataset):
  metrics, written = evaluated
  logits, q = answers
  assert (written["step"], written["metrics"]) == (7, metrics)
  assert [example["task"] for example in written["examples"]] == [f"sudoku {k}" for k in range(20)]
  batch = dataset.evaluation_batches(20)[0]
  for k, example in enumerate(written["examples"]):
    np.testing.assert_array_equal(np.ravel(example["input"]), batch["inputs"][k])
    np.testing.assert_array_equal(np.ravel(example["truth"]), batch["labels"][k])
    prediction = example["predictions"][0]
    np.testing.assert_array_equal(np.ravel(prediction["grid"]), logits[k].argmax(axis=-1))
    assert prediction["q"] == pytest.approx(1 / (1 + np.exp(-q[k])), rel=1e-4)
    labelled = batch["labels"][k] != -100
    right = np.array_equal(np.ravel(prediction["grid"])[labelled], batch["labels"][k][labelled])
    assert example["solved_at"] == (1 if right else None)


def test_eight_devices_give_the_metrics_of_one(evaluated, state, dataset, tmp_path):
  assert Evaluator(_setup(8), dataset, tmp_path)(state, 7) == pytest.approx(evaluated[0], rel=1e-5)


def test_the_batch_is_rounded_up_to_the_devices_and_max_examples_is_kept(dataset, tmp_path):
  setup = _setup(8)
  limited = schema.Evaluation(batch_size=6, max_examples=11)
  changed = dataclasses.replace(setup, config=dataclasses.replace(setup.config, evaluation=limited))
  batches = Evaluator(changed, dataset, tmp_path).batches
  assert (batches.batch_size, len(batches), sum(int(b["valid"].sum()) for b in batches)) == (8, 2, 11)


# ARC: what the network answers is decided by the test, what is done with the answers by the evaluator.


@functools.cache
def _arc():
  arc = schema.ArcData(
    canvas=5, max_side=5, max_tasks=4, test_subset="training", subsets="training",
    augmentations=2, evaluation_augmentations=2, translate=False,
  )  # fmt: skip
  config = tiny.config(data=schema.Data(kind="arc", prefetch=0, arc=arc))
  setup = tiny.setup(config)
  return tiny.dataset(config), setup, setup.create()


def _answering(kind, q, seen=None):
  """A rollout that answers with the labels, or with one colour everywhere, and is `q` sure of it."""

  def rollout(params, buffers, table, batch):
    host = jax.device_get(batch)
    if seen is not None:
      seen.append(host["puzzle_identifiers"])
    labels = np.where(host["labels"] == -100, 0, host["labels"])
    zeros = np.zeros(labels.shape[0], np.float32)
    return {
      "predictions": labels if kind == TRUTH else np.full_like(labels, 2),
      "q_halt": zeros + q,
      "valid": (host["labels"] != -100).any(axis=1).astype(np.float32),
      **dict.fromkeys(("loss", "lm_loss", "q_halt_loss", "accuracy", "exact_accuracy", "q_halt_accuracy"), zeros),
    }

  return rollout


def _evaluate(folder, kind, q, step, seen=None, max_examples=0, ablation=NOTHING):
  """A new evaluator each time, as after a restart."""
  dataset, setup, state = _arc()
  asked = dataclasses.replace(setup.config.evaluation, max_examples=max_examples)
  setup = dataclasses.replace(setup, config=dataclasses.replace(setup.config, evaluation=asked))
  evaluator = Evaluator(setup, dataset, folder, ablation)
  evaluator.rollout = _answering(kind, q, seen)
  return evaluator(state, step)


def test_an_arc_evaluation_has_every_pass_at_k_and_a_submission(tmp_path):
  dataset, setup, state = _arc()
  evaluator = Evaluator(setup, dataset, tmp_path, Ablation(wrong_puzzle=True))
  metrics = evaluator(state, 3)
  plain = {f"{kind}pass@{k}" for k in PASS_KS for kind in ("", "strict/", "outputs/")}
  plain |= {"unaugmented/pass@1", "augmentations_voted"}
  assert plain | {f"pooled/{name}" for name in plain} <= set(metrics)
  assert set(metric_names(setup.config)) == {name for name in metrics if not name.startswith("wrong_puzzle/")}
  assert evaluator.main_metric in plain
  assert all(metrics[f"pooled/{name}"] == metrics[name] for name in plain)
  assert all(metrics[f"pass@{a}"] <= metrics[f"pass@{b}"] for a, b in zip(PASS_KS, PASS_KS[1:], strict=False))
  # The puzzle table starts at zero: another puzzle's row is the same row.
  for name in setup.task.per_example:
    assert metrics[f"wrong_puzzle/{name}"] == metrics[name]
  submission = json.loads((tmp_path / "evaluation" / "submission_3.json").read_text())
  assert {task: len(entries) for task, entries in submission.items()} == {
    task: len(puzzle["test"]) for task, puzzle in dataset.test_puzzles.items()
  }
  written = json.loads((tmp_path / "evaluation" / "step_3.json").read_text())
  assert written["metrics"] == metrics
  assert {example["kind"] for example in written["examples"]} == {"arc"}
  cost = json.loads((tmp_path / "evaluation" / "cost_3.json").read_text())
  assert written["tasks"].keys() == dataset.test_puzzles.keys() and cost["devices"] == "1 × cpu"
  assert 0 < cost["seconds"] == pytest.approx(len(written["tasks"]) * cost["seconds_per_task"])


def test_test_inputs_without_an_output_are_answered_and_not_scored(tmp_path):
  _, setup, state = _arc()
  pair = {"input": [[1, 2]], "output": [[3]]}
  tasks = {name: {"train": [pair], "test": [{"input": [[4, 5]]}, pair]} for name in ("one", "two")}
  del tasks["two"]["test"][1]
  for subset, content in (("training", tasks), ("evaluation", {"three": tasks["one"]})):
    (tmp_path / f"{subset}_challenges.json").write_text(json.dumps(content))
  arc = schema.ArcData(
    dataset="folder", folder=str(tmp_path), canvas=5, test_subset="training", augmentations=1,
    evaluation_augmentations=1, translate=False,
  )  # fmt: skip
  dataset = data.build(schema.Data(kind="arc", arc=arc), batch_size=2, seed=0)

  def evaluated(folder, dataset):
    evaluator = Evaluator(setup, dataset, tmp_path / folder)
    evaluator.rollout = _answering(TRUTH, 0.0)
    metrics = evaluator(state, 1)
    return metrics, *(json.loads(evaluator.path(1, what).read_text()) for what in ("step", "submission"))

  metrics, written, submission = evaluated("some", dataset)
  assert (metrics["pass@1"], metrics["strict/pass@1"], metrics["examples"]) == (1.0, 1.0, 2)  # one test, two copies
  assert {task: len(entries) for task, entries in submission.items()} == {"one": 2, "two": 1}
  judged = {(e["task"], e["test"]): e.get("solved_at") for e in written["examples"] if "truth" in e}
  assert judged == {("one", 1): 1} and len(written["examples"]) == 3
  asked = {name: task | {"test": [{"input": [[4, 5]]}]} for name, task in tasks.items()}
  (tmp_path / "training_challenges.json").write_text(json.dumps(asked))
  metrics, written, submission = evaluated("none", data.build(schema.Data(kind="arc", arc=arc), batch_size=2, seed=0))
  assert metrics == {"examples": 0.0} and submission.keys() == {"one", "two"}


def test_right_answers_pass_and_wrong_ones_do_not(tmp_path):
  right = _evaluate(tmp_path / "right", TRUTH, 0.0, 1)
  assert {right[f"pass@{k}"] for k in PASS_KS} == {1.0} and right["unaugmented/pass@1"] == 1.0
  wrong = _evaluate(tmp_path / "wrong", WRONG, 0.0, 1)
  assert {wrong[f"pass@{k}"] for k in PASS_KS} == {0.0} and wrong["unaugmented/pass@1"] == 0.0


def test_votes_are_pooled_over_evaluations_and_survive_a_restart(tmp_path):
  first = _evaluate(tmp_path, TRUTH, 3.0, 1)
  second = _evaluate(tmp_path, WRONG, -3.0, 2)
  voted = first["augmentations_voted"]
  assert voted > 1 and second["augmentations_voted"] == voted
  assert second["pooled/augmentations_voted"] == 2 * voted
  # Alone the second evaluation knows nothing; pooled, the truth of the first is as often voted for and surer.
  assert (second["pass@2"], second["pooled/pass@1"]) == (0.0, 1.0)
  # Surer wrong answers push it to the second place.
  third = _evaluate(tmp_path, WRONG, 3.0, 3)
  assert third["pooled/augmentations_voted"] == 3 * voted
  assert (third["pooled/pass@1"], third["pooled/pass@2"]) == (0.0, 1.0)


def test_an_evaluation_repeated_after_a_restart_counts_once_and_later_votes_do_not_leak_back(tmp_path):
  voted = _evaluate(tmp_path, WRONG, 0.0, 1)["augmentations_voted"]
  before = _evaluate(tmp_path, TRUTH, 1.0, 2)
  again = _evaluate(tmp_path, TRUTH, 1.0, 2)
  assert again == before and again["pooled/augmentations_voted"] == 2 * voted
  earlier = _evaluate(tmp_path, WRONG, 0.0, 1)
  assert (earlier["pooled/augmentations_voted"], earlier["pooled/pass@1000"]) == (voted, 0.0)


@pytest.mark.parametrize(
  "content",
  [b"", b"no gzip", gzip.compress(b'{"tasks', mtime=0)[:-9], gzip.compress(b"[]", mtime=0)],
  ids=["empty", "no_gzip", "cut_off", "another"],
)
def test_damaged_votes_of_an_earlier_evaluation_are_moved_aside_and_said(content, tmp_path, capsys):
  voted = _evaluate(tmp_path, WRONG, 0.0, 1)["augmentations_voted"]
  _evaluate(tmp_path, TRUTH, 1.0, 2)
  path = tmp_path / "evaluation" / "votes_1.json.gz"
  path.write_bytes(content)
  assert _evaluate(tmp_path, TRUTH, 1.0, 3)["pooled/augmentations_voted"] == 2 * voted
  aside = tmp_path / "damaged" / "votes_1.json.gz"
  assert f"moved to {aside}; the pooled votes are without step 1. While" in capsys.readouterr().err
  assert aside.read_bytes() == content and not path.exists()
  _evaluate(tmp_path, WRONG, 0.0, 1)  # as the message proposes
  assert _evaluate(tmp_path, TRUTH, 1.0, 3)["pooled/augmentations_voted"] == 3 * voted


@pytest.mark.parametrize("examples", [1, 4])
def test_a_partial_evaluation_keeps_to_itself(examples, tmp_path):
  dataset, *_ = _arc()
  held_out, folder, mark = dataset.evaluation.examples, tmp_path / "evaluation", f"_partial_{examples}_of_"
  voted = [_evaluate(tmp_path, WRONG, 0.0, step)["augmentations_voted"] for step in (1, 2)][0]
  running = folder / "partial_1.0.2.json.gz"  # what an interrupted evaluation of all examples has counted
  running.write_bytes(b"")
  files = {path: path.read_bytes() for path in folder.iterdir()}
  for step in (1, 2):
    part = _evaluate(tmp_path, TRUTH, 0.0, step, max_examples=examples)
    # What was not evaluated is no unsolved task, and only votes of the same examples are pooled.
    assert part["examples"] == examples and {part[f"{kind}pass@1"] for kind in ("", "strict/", "pooled/")} == {1.0}
    assert 1 <= part["augmentations_voted"] < voted
    assert part["pooled/augmentations_voted"] == step * part["augmentations_voted"]
  assert {path: path.read_bytes() for path in files} == files
  marked = sorted(path.name for path in folder.iterdir() if path not in files)
  names = [("cost", ".json"), ("step", ".json"), ("submission", ".json"), ("votes", ".json.gz")]
  assert marked == [f"{what}_{step}{mark}{held_out}{ending}" for what, ending in names for step in (1, 2)]
  written = json.loads((folder / marked[2]).read_text())
  assert written["partial"] == {"examples": examples, "held_out": held_out}
  assert "partial" not in json.loads((folder / "step_1.json").read_text())
  assert {example["solved_at"] for example in written["examples"]} == {1}
  submission = json.loads((folder / marked[4]).read_text())
  assert {task: len(entries) for task, entries in submission.items()} == {
    task: len(puzzle["test"]) for task, puzzle in dataset.test_puzzles.items()
  }
  assert _evaluate(tmp_path, TRUTH, 0.0, 3)["pooled/augmentations_voted"] == 3 * voted
  assert _evaluate(tmp_path, TRUTH, 0.0, 3, max_examples=held_out)["examples"] == held_out  # all of them: no part
  assert not list(folder.glob(f"*3_partial*{held_out}.*"))


def test_the_wrong_puzzle_ablation_permutes_the_identifiers_and_keeps_blank_rows_blank(tmp_path):
  dataset, *_ = _arc()
  seen = []
  metrics = _evaluate(tmp_path, TRUTH, 0.0, 1, seen, ablation=Ablation(wrong_puzzle=True))
  half = len(seen) // 2
  own, other = np.concatenate(seen[:half]), np.concatenate(seen[half:])
  assert own.shape == other.shape
  np.testing.assert_array_equal(own == 0, other == 0)
  pairs = set(zip(own.tolist(), other.tolist(), strict=True))
  assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
  assert sum(a != b for a, b in pairs) > len(pairs) / 2
  path = tmp_path / "evaluation" / "step_1.json"
  assert json.loads(path.read_text())["metrics"] == metrics
  again = _evaluate(tmp_path, TRUTH, 0.0, 1)  # without: what was found stays in the file
  assert not any(name.startswith("wrong_puzzle/") for name in again)
  assert json.loads(path.read_text())["metrics"] == again | metrics
  assert max(other) < dataset.num_identifiers


def test_the_parameters_themselves_are_evaluated_beside_their_average_at_the_end(tmp_path):
  dataset, setup, state = _arc()
  names = setup.task.per_example
  fed = []

  def evaluated(step, unaveraged="end", ablation=NOTHING):
    asked = dataclasses.replace(setup.config.evaluation, unaveraged=unaveraged)
    config = dataclasses.replace(setup.config, evaluation=asked, steps=7)
    evaluator = Evaluator(dataclasses.replace(setup, config=config), dataset, tmp_path, ablation)
    answer = _answering(TRUTH, 0.0)
    evaluator.rollout = lambda params, *rest: (fed.append(params), answer(params, *rest))[1]
    metrics = evaluator(state, step)
    return {name.removeprefix("unaveraged/") for name in metrics if name.startswith("unaveraged/")}

  assert evaluated(3) == set() and all(params is state.ema for params in fed)
  assert evaluated(3, "always") == set(names) and fed[-1] is state.params
  assert evaluated(7) == set(names) and evaluated(7, "never") == set()
  stored = json.loads((tmp_path / "evaluation" / "step_7.json").read_text())["metrics"]
  assert {f"unaveraged/{name}" for name in names} <= set(stored)  # of the evaluation before
  assert evaluated(7, ablation=Ablation("mean")) == set()
