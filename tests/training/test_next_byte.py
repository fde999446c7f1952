"""The language model through the common trainer: uneven rows, per-layer diagnostics, a falling loss."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.evaluation.evaluator import Evaluator, metric_names
from jpmhc_jax.evaluation.generation import written_on
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.main import main
from jpmhc_jax.training.checkpoint import Checkpoints
from jpmhc_jax.training.step import make_train_step


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sources")
  for i in range(12):
    (folder / f"module{i}.py").write_text(f"def f{i}(x):\n  return x + {i}\n" * (5 + i))
  text = schema.TextData(folder=str(folder), window=16, held_out=4)
  return tiny.config(
    data=schema.Data(kind="text", prefetch=0, epochs_per_interval=1, text=text),
    model=schema.Model(kind="decoder", width=16, heads=2, layers=3, mlp_multiple=8, loss="softmax"),
    evaluation=schema.Evaluation(batch_size=24),
  )


@pytest.fixture(scope="module")
def trained(config):
  return tiny.run(config, 6)


def test_the_loss_falls_and_every_parameter_moves(config, trained):
  state, metrics = trained
  assert metrics[-1]["loss"] < metrics[0]["loss"]
  assert np.isfinite([m["gradient_norm"] for m in metrics]).all()
  start = tiny.setup(config).create()
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, state.params)
  assert jax.tree.all(moved)
  assert state.table is None
  np.testing.assert_array_equal(state.carry.data["inputs"], tiny.dataset(config).batch(5)["inputs"])


@pytest.mark.slow
def test_micro_batches_and_more_devices_give_the_same_gradients(config, trained):
  first = trained[1][0]
  for changes in ({"accumulation": 4}, {"mesh": schema.Mesh(data=2, fsdp=2, tensor=2)}):
    other = tiny.run(dataclasses.replace(config, **changes), 1)[1][0]
    for name in first:
      np.testing.assert_allclose(other[name], first[name], rtol=2e-5, err_msg=f"{changes}, {name}")


@pytest.mark.slow
def test_loops_with_connections_of_their_own_train_on_a_mesh_and_resume_bit_for_bit(config, tmp_path):
  model = dataclasses.replace(config.model, layers=1, loops=3, recursion=schema.Recursion(call_embedding=True))
  connection = schema.Connection(mixer="cayley", streams=2, sharing="per_call")
  looped = dataclasses.replace(config, model=model, connection=connection)
  split = dataclasses.replace(looped, mesh=schema.Mesh(data=2, fsdp=2, tensor=2))
  setup, dataset = tiny.setup(split), tiny.dataset(split)
  step, checkpoints, state = make_train_step(setup), Checkpoints(tmp_path), setup.create()
  losses = []
  for k in range(4):
    if k == 2:
      checkpoints.save(k, state, config=split, dataset=dataset, clock={})
    state, metrics = step(state, jax.device_put(dataset.batch(k)))
    losses.append(metrics.scalars()["loss"])
  assert losses[0] == pytest.approx(tiny.run(looped, 1)[1][0]["loss"], rel=2e-5)
  resumed = checkpoints.restore(setup, dataset).state
  for k in (2, 3):
    resumed, _ = step(resumed, jax.device_put(dataset.batch(k)))
  chex.assert_trees_all_equal(state, resumed)


def test_bits_per_byte_weighs_every_byte_the_same(config, trained, tmp_path):
  setup, dataset = tiny.setup(config), tiny.dataset(config)
  metrics = Evaluator(setup, dataset, tmp_path)(trained[0], 6)
  batch = dataset.evaluation_batches(dataset.evaluation.examples)[0]
  labelled = batch["labels"] != -100
  assert len(set(labelled.sum(axis=-1).tolist())) > 1  # last windows of files are shorter
  model = tiny.model_of(setup, trained[0])
  logits = np.asarray(jax.jit(lambda inputs: model(inputs))(batch["inputs"]), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  nats = -np.take_along_axis(log_p, np.maximum(batch["labels"], 0)[..., None], axis=-1)[..., 0]
  mean = nats[labelled].mean()
  assert metrics["bits_per_byte"] == pytest.approx(mean / np.log(2), rel=1e-4)
  assert metrics["perplexity"] == pytest.approx(np.exp(mean), rel=1e-4)
  right = (logits.argmax(axis=-1) == batch["labels"])[labelled]
  assert metrics["byte_accuracy"] == pytest.approx(right.mean(), rel=1e-6)
  assert json.loads((tmp_path / "evaluation" / "step_6.json").read_text())["metrics"] == metrics
  assert set(metric_names(setup.config)) == set(metrics)


def test_a_prompt_is_written_on_as_the_model_says_and_the_same_for_the_same_seed(config, trained):
  """Against the model called token by token; the prompt and 20 more bytes pass the end of the window of 16."""
  setup, dataset, state = tiny.setup(config), tiny.dataset(config), trained[0]

  def written(prompt="def f", tokens=20, temperature=0.0, top_k=0, seed=0):
    return written_on(setup, dataset, state, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)

  model, seen = tiny.model_of(setup, state), [0, *b"def f"]
  forward = jax.jit(lambda inputs: model(inputs))
  for _ in range(20):
    window = seen[-16:]
    logits = np.array(forward(np.array([window + [0] * (16 - len(window))], np.int32))[0, len(window) - 1])
    seen.append(int(logits[1:].argmax()) + 1)
  assert written() == bytes(seen[1:]).decode("utf-8", "replace")
  assert written(temperature=2.0, top_k=1) == written()
  drawn = written(temperature=1.0, seed=1)
  assert drawn == written(temperature=1.0, seed=1) != written(temperature=1.0, seed=2)
  for field, value in (("tokens", 0), ("temperature", -1.0), ("top_k", 256)):
    with pytest.raises(ConfigError, match=f"{field}={value}"):
      written(**{field: value})


def test_windows_are_written_on_with_the_likeliest_bytes(config, trained, tmp_path):
  """Against the model called on prompts of growing length: 8 of 16 bytes are given, 8 written."""
  setup, dataset = tiny.setup(config), tiny.dataset(config)
  Evaluator(setup, dataset, tmp_path)(trained[0], 6)
  shown = json.loads((tmp_path / "evaluation" / "step_6.json").read_text())["examples"]
  model, batch = tiny.model_of(setup, trained[0]), dataset.evaluation_batches(24)[0]
  forward = jax.jit(lambda inputs: model(inputs))
  sure = [row for row in range(24) if batch["labels"][row, 7] != -100][:12]
  assert [example["task"] for example in shown] == [f"text {batch['index'][row]}" for row in sure]
  for row, example in list(zip(sure, shown, strict=True))[:3]:
    tokens, truth = batch["inputs"][row].copy(), [b for b in batch["labels"][row, 7:15] if b != -100]
    for k in range(8, 16):  # what lies behind k cannot matter: the model is causal
      tokens[k:] = 0
      tokens[k] = forward(tokens[None])[0, k - 1].argmax()
    assert example["input"].encode() == bytes(b for b in batch["inputs"][row, :8].tolist() if b)
    assert example["truth"].encode() == bytes(truth)
    expected = bytes(b for b in tokens[8 : 8 + len(truth)].tolist() if b).decode("utf-8", "replace")
    assert example["predictions"] == [{"text": expected}]
    assert example["solved_at"] == (1 if expected == example["truth"] else None)


def test_every_layer_is_diagnosed(config, trained):
  values = make_diagnose(tiny.setup(config))(trained[0])
  where = {name.removeprefix("mixer/").rsplit("/", 1)[0] for name in values}
  assert where == {f"block{i}.{part}" for i in range(3) for part in ("tokens", "features")} | {"composite"}
  assert values["mixer/block0.tokens/difference_energy"] == pytest.approx(0, abs=1e-5)
  assert values["mixer/block2.features/difference_energy"] > values["mixer/block0.features/difference_energy"]
  assert values["mixer/composite/largest_singular_value"] == pytest.approx(1, abs=1e-4)  # Cayley


def test_a_model_is_refused_data_that_it_cannot_learn_from(config):
  with pytest.raises(ConfigError, match="model.kind='decoder' learns from text"):
    tiny.setup(dataclasses.replace(config, data=schema.Data(kind="sudoku")))
  with pytest.raises(ConfigError, match="model.kind='trm' learns from arc, sudoku, maze"):
    tiny.setup(dataclasses.replace(config, model=schema.Model()))


@pytest.mark.slow
def test_the_shipped_recipe_trains_resumes_and_reports(tmp_path):
  """Below 4.2 bits a byte after 100 steps of a narrower model: the order-0 entropy of the sources is 4.5."""
  command = [
    "train", "--config=stdlib_lm:tiny_sinkhorn", f"--workdir={tmp_path}", "--config.mesh.data=8",
    "--config.steps=100", "--config.model.width=32", "--config.data.text.window=64",
    "--config.evaluation.max_examples=256", "--config.optimizer.ema=0.9",
  ]  # fmt: skip
  assert main(command) == 0
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["evaluation/bits_per_byte"] for line in lines if "evaluation/bits_per_byte" in line][-1] < 4.2
  assert "bits per byte" in (tmp_path / "report.html").read_text().replace("_", " ")
  assert main(command) == 0  # nothing left to do
