"""FLOP counts against closed forms and the compiler, norms by layer against the trees, and what a run writes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import flops
from jpmhc_jax.training import loop, telemetry
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import LayerNorms, prepare
from jpmhc_jax.training.telemetry import flops_per_step, parse_window, peak_flops, Throughput


def _flops(function, *shapes):
  return flops.count(function, *(jnp.zeros(shape) for shape in shapes), products_only=True)


def test_loops_branches_and_gradients_are_counted():
  square, product = (8, 8), 2 * 8**3
  assert _flops(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  assert _flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 3, 5), (4, 5, 7)) == 2 * 4 * 3 * 5 * 7

  def scanned(x):
    return jnp.sum(jax.lax.scan(lambda c, _: (jnp.tanh(c @ x), None), x, None, length=10)[0])

  assert _flops(scanned, square) == 10 * product
  assert _flops(jax.grad(scanned), square) == 30 * product
  assert _flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), square) == 2 * product
  image, kernel = (2, 3, 10, 10), (6, 3, 3, 3)
  assert _flops(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), image, kernel) == 2 * (2 * 6 * 100) * (3 * 9)


def test_the_count_is_the_compilers_where_there_is_no_loop():
  def network(x, w):
    return jnp.sum(jnp.square(jnp.tanh(x @ w) @ w.T))

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 128), (128, 512))]
  compiled = jax.jit(jax.value_and_grad(network, argnums=(0, 1))).lower(*shapes).compile().cost_analysis()["flops"]
  counted = flops.count(jax.value_and_grad(network, argnums=(0, 1)), *shapes, products_only=True)
  assert counted == pytest.approx(compiled, rel=0.02)


def test_the_full_recipe_costs_what_was_derived_by_hand():
  """306 TFLOP a step: matrix products and attention of the official model, batch 768, 916 positions, n = 4."""
  config = configs.load("arc1:trm", ["--config.mesh.data=1"])
  dataset = dataclasses.replace(tiny.dataset(tiny.config()), side=30, vocab_size=12)
  setup = prepare(config, dataset, make_mesh(config.mesh, jax.devices()[:1]))
  assert flops_per_step(setup, dataset) == pytest.approx(306e12, rel=0.03)


@pytest.mark.slow
def test_rematerialisation_adds_no_model_flops():
  config = tiny.config()
  again = dataclasses.replace(config, model=dataclasses.replace(config.model, rematerialise="call"))
  assert flops_per_step(tiny.setup(again), tiny.dataset(again)) == flops_per_step(
    tiny.setup(config), tiny.dataset(config)
  )


def test_norms_by_layer_are_those_of_the_leaves():
  tree = {"embedding": (5, 4), "block0": {"down": (4, 3), "up": (3, 4)}, "blocks": {"down": (2, 4, 3), "up": (2, 3)}}
  axes = {
    "embedding": ("vocab", "embed"),
    "block0": {"down": ("mlp", "embed"), "up": ("embed", "mlp")},
    "blocks": {"down": ("layers", "mlp", "embed"), "up": ("layers", None)},
  }
  gradients, parameters, updates = (_normal(tree, seed) for seed in range(3))
  layers = LayerNorms.of(gradients, axes)
  assert layers.names == ("block0", "blocks[0]", "blocks[1]", "embedding")
  found = layers.scalars(jax.device_get(layers(gradients, parameters, updates)))

  def norm(tree, pick=lambda leaf: leaf):
    return np.sqrt(sum(float(np.sum(np.square(pick(leaf)))) for leaf in jax.tree.leaves(tree)))

  assert found["gradient_norm/block0"] == pytest.approx(norm(gradients["block0"]), rel=1e-6)
  assert found["gradient_norm/blocks[1]"] == pytest.approx(norm(gradients["blocks"], lambda x: x[1]), rel=1e-6)
  expected = norm(updates["embedding"]) / norm(parameters["embedding"])
  assert found["update_ratio/embedding"] == pytest.approx(expected, rel=1e-6)


def _normal(tree, seed):
  shapes, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, tuple))
  random = np.random.default_rng(seed)
  return jax.tree.unflatten(structure, [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes])


@pytest.mark.parametrize(
  ("kind", "tflops"),
  [("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v4", 275), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756)],
)
def test_peaks_of_known_devices(kind, tflops):
  assert peak_flops(kind) == tflops * 1e12


def test_utilisation_is_flops_over_peak_and_absent_where_the_peak_is_unknown():
  assert peak_flops("cpu") is None and peak_flops("cpu", 0.5) == 0.5e12
  speed = Throughput(batch=16, flops=2e12, peak=8e12)
  values = speed.scalars(0.5)
  assert values["time/mfu"] == 0.5 and values["time/step_ms"] == 500.0 and values["time/examples_per_s"] == 32.0
  assert "time/mfu" not in dataclasses.replace(speed, peak=None).scalars(0.5)


@pytest.mark.parametrize("text", ["5", "5:5", "7:3", "-1:3", "a:b", ":"])
def test_a_window_that_is_none_is_refused(text):
  with pytest.raises(ConfigError, match="START:STOP"):
    parse_window(text, 100)


def test_a_window_behind_the_last_step_is_refused():
  assert parse_window("99:105", 100) == range(99, 105)
  with pytest.raises(ConfigError, match=r"--profile=100:105: expected START below steps=100"):
    parse_window("100:105", 100)


class _NoEvaluation:
  main_metric, higher_is_better = "exact_accuracy", True

  def __call__(self, state, step):
    return {"exact_accuracy": 0.0}


def test_diagnostics_are_charged_to_the_steps_between_them_without_the_first_which_compiles(tmp_path, monkeypatch):
  monkeypatch.setattr(telemetry, "flops_per_step", lambda setup, dataset: 1)
  config = tiny.config()
  observer = telemetry.Telemetry(tiny.setup(config), tiny.dataset(config), tmp_path, 0, range(0))
  norms = jnp.ones((3, len(observer.layers.names)))
  observer.diagnosed(100, 9.0)
  assert "time/diagnostics_ms" not in observer.scalars(100, norms)
  observer.diagnosed(200, 0.1)
  observer.diagnosed(300, 0.3)
  assert observer.scalars(300, norms)["time/diagnostics_ms"] == pytest.approx(2.0)


@pytest.mark.slow
def test_a_run_writes_its_observations_and_the_profile_of_its_window(tmp_path):
  logging = schema.Logging(every=4, tensorboard=False, peak_tflops=0.5)
  config = tiny.config(checkpoint=schema.Checkpoint(every=0), evaluation=schema.Evaluation(every=0), logging=logging)
  setup = tiny.setup(config)
  run = loop.Run(setup, tiny.dataset(config), tmp_path, _NoEvaluation(), None, profile=parse_window("3:5", 8))
  loop.train(run, ["train"])
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  last = {name: value for line in lines if line["step"] == 8 for name, value in line.items()}
  assert sum(value for name, value in last.items() if name.startswith("goodput/")) == pytest.approx(1.0)
  assert last["goodput/compile"] > 0 and last["goodput/lost"] == 0
  assert last["memory/host_peak_gib"] > 0.05 and last["time/eta_s"] == 0.0
  total = sum(last[f"gradient_norm/{name}"] ** 2 for name in setup.layers.names)
  assert total == pytest.approx(last["train/gradient_norm"] ** 2, rel=1e-4)
  assert all(last[f"update_ratio/{name}"] > 0 for name in setup.layers.names)
  facts = json.loads((tmp_path / "environment.json").read_text())
  assert facts["peak_flops"] == 0.5e12
  assert last["time/mfu"] == pytest.approx(facts["flops_per_step"] / (1e-3 * last["time/step_ms"]) / 0.5e12)
  assert len(list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 1
