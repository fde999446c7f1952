"""Maps between latent spaces under the trainer: they learn, resume bit for bit on any devices, warn of a collapse."""

import collections
import dataclasses
import json
import re
import shutil

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpmhc_jax as jp
from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.config.transport_fields import AlignStage, Transport
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.main import main
from jpmhc_jax.reporting import glossary
from jpmhc_jax.runs import session
from jpmhc_jax.training import mesh, state
from jpmhc_jax.training.step import make_train_step
from jpmhc_jax.training.tasks import pair_geometry, pair_stages, task_of
from jpmhc_jax.training.tasks.pair_model import map_rule, PairModel, Side

RUN = {
  "data.kind": "pairs", "model.kind": "transport", "data.prefetch": 0, "connection.streams": 1, "steps": 6,
  "batch_size": 16, "optimizer.ema": 0.0, "optimizer.name": "adamw", "optimizer.learning_rate": 1e-2,
  "optimizer.warmup_steps": 1, "optimizer.weight_decay": 0.0, "logging.every": 1, "logging.tensorboard": False,
  "logging.diagnostics_every": 0, "checkpoint.every": 3, "evaluation.every": 6,
}  # fmt: skip
STAGED = {
  "model.transport.map": "flow", "model.transport.hidden": 8, "model.transport.bank": 32, "model.transport.sweeps": 5,
  "model.transport.align.steps": 2, "model.transport.joint.isometry": "0.1", "model.transport.joint.volume": "0.1",
  "model.transport.joint.likelihood": "0.1",
  "model.transport.joint.steps": 2, "model.transport.distil.steps": 9, "model.transport.probed": 0.25,
  "data.pairs.known": 0.5, "model.transport.align.task": "0.1",
}  # fmt: skip


COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def written(folder, n=80, m=4, k=6, noise=0.0):
  """Two latent spaces that a rotation, a scale and a shift make equal, but for noise."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, m)) * np.linspace(1, 2, m)
  y = x @ np.linalg.qr(rng.normal(size=(k, m)))[0].T + 0.5 + noise * rng.normal(size=(n, k))
  np.savez(folder / "pairs.npz", x=x, y=y, labels=(x[:, 0] > 0).astype(np.int64))
  return str(folder / "pairs.npz")


def config(folder, fields=None, **cloud):
  return configs.resolve(jp.default_config(), RUN | {"data.pairs.source": written(folder, **cloud)} | (fields or {}))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_through_its_stages_resumes_bit_for_bit(devices, tmp_path, monkeypatch):
  monkeypatch.setattr(session, "make_mesh", lambda config: mesh.make_mesh(config, jax.devices()[:devices]))
  c = config(tmp_path, STAGED)
  run = jp.train(c, tmp_path / "whole", quiet=True)
  assert len(run.setup.mesh.devices.ravel()) == devices
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  shutil.rmtree(tmp_path / "killed" / "checkpoints" / "6")
  again = jp.train(c, tmp_path / "killed", quiet=True)
  chex.assert_trees_all_equal(jax.device_get(again.state), jax.device_get(run.state))
  stage, epsilon = (run.metrics[f"train/{name}"].values for name in ("stage", "epsilon"))
  assert stage.tolist() == [0, 0, 1, 1, 2, 2]
  assert epsilon[0] == 1 > epsilon[1] > epsilon[2] == pytest.approx(0.05)
  clock = run.state.carry.moment.clock
  assert set(np.asarray(clock.stage)) == {2} and set(np.asarray(clock.step)) == {2}
  assert np.asarray(run.state.carry.bank_weights()).sum() == 32  # five batches of 16 have come, two are kept
  metrics = run.evaluations[-1].metrics
  assert {
    "recall@1",
    "plan_entropy",
    "cka",
    "dispersion",
    "accuracy",
    "nll",
    "fused_recall@1",
    "calibration_error",
  } <= set(metrics)
  names = {name for line in _lines(run) for name in line if name != "step"}
  assert not [name for name in sorted(names) if not glossary.meaning(name).words]


def _lines(run):
  return [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]


COLLAPSE = {
  "steps": 60, "batch_size": 32, "model.transport.map": "linear", "model.transport.align.steps": 10,
  "model.transport.align.transport": "0", "model.transport.joint.pairs": "0", "model.transport.joint.transport": "1",
  "model.transport.joint.map": 1.0, "model.transport.joint.isometry": "0", "model.transport.joint.epsilon": "5",
  "model.transport.debiased": False, "model.transport.sweeps": 10, "logging.diagnostics_every": 5,
  "evaluation.every": 10, "checkpoint.every": 60,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("debiased", [False, True])
def test_an_alarm_warns_of_a_collapse_before_recall_falls(debiased, tmp_path, capsys):
  """Blurred transport without its debiasing draws the image together: it fires first. Debiased, nothing collapses."""
  c = config(tmp_path, COLLAPSE | {"model.transport.debiased": debiased}, n=240, m=8, k=10, noise=0.1)
  run = jp.train(c, tmp_path / "run")
  alarm, recall = run.metrics["map/collapsed"], run.metrics["evaluation/recall@1"]
  low = recall.steps[recall.values < 0.97 * recall.values.max()]
  assert ("map/collapsed: the image shrinks" in capsys.readouterr().out) != debiased
  if debiased:
    assert not low.size and not alarm.values.any()
  else:
    assert low.size and alarm.steps[alarm.values > 0][0] < low[0]


@pytest.mark.slow
def test_all_maps_learn_from_pairs_and_the_page_shows_them(tmp_path):
  fields = {"steps": 60, "checkpoint.every": 60, "evaluation.every": 60, "model.transport.init": "random"}
  fields |= {"model.transport.align.transport": "0", "model.transport.joint.steps": 0, "logging.diagnostics_every": 30}
  for kind in ("linear", "spectral", "mlp"):
    if kind == "mlp":
      fields |= {
        "model.transport.align.steps": 45,
        "model.transport.distil.steps": 15,
        "model.transport.distil.fused": 5.0,
      }
      fields |= {"model.transport.align.mmd": "0.1", "model.transport.align.tangent": "0.001"}
    c = config(tmp_path, fields | {"model.transport.map": kind, "optimizer.mixer.manifold_learning_rate": 0.05})
    run = jp.train(c, tmp_path / kind, quiet=True)
    loss = run.metrics["train/pairs"].values
    assert loss[-5:].mean() < 0.6 * loss[0], kind
    if kind == "spectral":
      singular = np.linalg.svd(np.asarray(run.parameters["map"]["kernel"]), compute_uv=False)
      assert singular.min() > 0.4999 and singular.max() < 2.0001
  distilled = run.metrics["train/distil"].values[45:]
  assert distilled[-3:].mean() < 0.7 * distilled[:3].mean()
  page = (run.workdir / "report.html").read_text()
  for words in ("Before: the source, in its own main axes", "fused, orthogonal", "Recall over training",
                "Singular values of the Jacobian", "Plan entropy over training", "Local distortion",
                "fused, distilled in training", "Procrustes", "ridge", "entropic map",
                "relative representations", "entropic map of ott-jax"):  # fmt: skip
    assert words in page, words


@pytest.mark.slow
def test_a_closed_form_start_has_full_recall_and_a_held_map_does_not_move(tmp_path):
  c = config(tmp_path, {"steps": 2, "model.transport.align.map": 0.0, "evaluation.every": 2})
  run = jp.train(c, tmp_path / "run", quiet=True)
  assert run.evaluations[-1].metrics["recall@1"] == 1 and run.evaluations[-1].metrics["dispersion"] == 1
  chex.assert_trees_all_equal(
    jax.device_get(run.state.params), jax.device_get(jax.tree.map(jnp.asarray, run.setup.create().params))
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.transport.align.epsilon": "0"}, "^model.transport.align.epsilon='0': expected positive"),
    ({"model.transport.align.pairs": "nan"}, "^model.transport.align.pairs: start=nan: expected a finite number"),
    ({"model.transport.joint.mmd": "linear(0, -1)"}, "^model.transport.joint.mmd=.*: expected numbers of at least 0"),
    ({"model.transport.align.pairs": "liner(1, 0)"}, "^model.transport.align.pairs: schedule='liner': .*'linear'"),
    ({"model.transport.align.pairs": "1, 2, 3"}, "^model.transport.align.pairs: schedule='1, 2, 3': expected a number"),
    ({"model.transport.bank": 8}, "^model.transport.bank=8: expected 0 or a multiple of batch_size=16"),
    (
      {"model.transport.align.contrastive": "1", "data.pairs.known": 0.0},
      "^model.transport.align.contrastive='1': expected 0, or data.pairs.known=1",
    ),
    (
      {"model.transport.align.transport": "0", "data.pairs.known": 0.0},
      "^model.transport.align.transport='0': expected a positive",
    ),
    ({"model.transport.map": "flwo"}, "^model.transport.map='flwo': expected one of .* Did you mean 'flow'"),
    ({"batch_size": 1}, "^batch_size=1: expected at least 2 rows"),
    ({"accumulation": 2}, "^accumulation=2: expected 1"),
    ({"model.transport.source_run": "/nowhere"}, "^model.transport.source_layer='': expected a layer"),
    ({"model.transport.momentum": 0.9}, "^model.transport.momentum=0.9: expected 0: only latents of encoders"),
    (
      {"model.transport.map": "attention", "model.transport.joint.volume": "1"},
      "^model.transport.joint.volume='1': expected 0: an attention map",
    ),
    (
      {"model.transport.align.steps": 0, "model.transport.joint.steps": 0},
      "^model.transport.align.steps=0: expected at least one stage",
    ),
  ],
)
def test_a_field_that_cannot_work_is_named(fields, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    task_of(config(tmp_path, fields))


def test_a_share_of_the_pairs_without_a_pair_and_an_encoder_that_is_no_run_are_named(tmp_path):
  fields = schema.PairData(source=written(tmp_path), known=1e-3)
  with pytest.raises(ConfigError, match="^data.pairs.known=0.001: expected 0, or a share of the 64 rows"):
    data.build(schema.Data(kind="pairs", pairs=fields), batch_size=2, seed=0)
  sided = {"model.transport.source_run": str(tmp_path / "no"), "model.transport.source_layer": "block0.features"}
  with pytest.raises(ConfigError, match="^model.transport.source_run='.*/no': .*: no such file"):
    task_of(config(tmp_path, sided))


def test_what_evaluation_takes_is_asked_of_a_task_that_remembers_no_config(tmp_path):
  plain, staged = config(tmp_path), config(tmp_path, STAGED)
  task = task_of(staged)
  assert task.outputs(staged).judged[-3:] == ("fused_recall@1", "fused_distortion", "calibration_error")
  assert task.outputs(plain) == task_of(plain).outputs(plain) and task.outputs(plain).kept == ()


def test_values_that_are_equal_up_to_rounding_have_a_histogram():
  rows = np.random.default_rng(0).normal(size=(9, 3))
  clouds = {"source": rows, "image": rows, "target": rows, "label": np.zeros(9)}
  values = np.float32(1) + np.linspace(0, 3e-7, 9, dtype=np.float32)
  drawn = pair_geometry.record(clouds | dict.fromkeys(pair_geometry.HISTOGRAMS, values))["histograms"]
  for histogram in drawn.values():
    edges = np.array(histogram["edges"])
    assert (
      np.all(np.diff(edges) > 0) and edges[0] < 1 < edges[-1] and sum(histogram["shares"]) == pytest.approx(1, abs=1e-3)
    )


@pytest.mark.slow
def test_devices_gather_the_clouds_once_and_exchange_nothing_in_iterations(tmp_path):
  losses = ("transport", "mmd", "tangent", "isometry")
  c = config(tmp_path, {f"model.transport.align.{loss}": "1" for loss in losses} | {"model.transport.joint.steps": 0})
  setup = state.prepare(
    c, data.build(c.data, batch_size=c.batch_size, seed=0), mesh.make_mesh(c.mesh, jax.devices()[:8])
  )
  start = jax.eval_shape(setup.create)
  text = make_train_step(setup).lower(start, start.carry.data).compile().as_text()
  assert text.count(" while(") > 3  # of Sinkhorn's iterations
  exchanged = collections.Counter(COLLECTIVE.findall(text))
  assert exchanged["all-gather"] == 3 and exchanged.total() <= 6  # source, image, target; gradients


def test_latents_go_where_a_file_can_be(tmp_path, capsys):
  for out, words in ((tmp_path / "no" / "a.npz", "expected a folder that is there"), (tmp_path, "expected the name")):
    assert main(["latents", "--workdir=/nowhere", "--layer=block0.features", f"--out={out}"]) == 2
    assert f"--out='{out}': {words}" in capsys.readouterr().err


def test_a_map_that_the_latents_do_not_have_is_named(tmp_path):
  with pytest.raises(ConfigError, match="^model.transport.map='flow': expected another map for latents of 1 and 5"):
    map_rule(Transport(map="flow"), 1, 5)
  x = np.random.default_rng(0).normal(size=(40, 3))
  np.savez(tmp_path / "grids.npz", x=x, y=x, labels=np.ones((40, 2), int))
  fields = {"data.pairs.source": str(tmp_path / "grids.npz"), "model.transport.joint.task": "1"}
  c = configs.resolve(jp.default_config(), RUN | fields)
  dataset = data.build(c.data, batch_size=c.batch_size, seed=0)
  with pytest.raises(ConfigError, match="^model.transport.joint.task='1': expected 0: the source has no `labels`"):
    task_of(c).build(c, dataset, nnx.Rngs(0))


def test_a_flow_stands_on_the_smaller_side():
  for m, k in ((3, 5), (5, 3)):
    rule = map_rule(Transport(map="flow"), m, k)
    x = np.ones((2, m), np.float32)
    assert rule.log_volumes(rule.init(jax.random.key(0)), jnp.asarray(x)) is not None


def test_a_stage_ends_where_alignment_stops_improving_and_after_a_bad_step_the_clock_goes_on():
  fields = Transport(align=AlignStage(steps=100, patience=2))
  listed = pair_stages.stages(fields)
  moment, where = pair_stages.Moment.start(4).scalar(), []
  for alignment in (4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0):
    moment = moment.later(listed, jnp.asarray(alignment), window=2)
    where.append(int(moment.clock.stage))
  assert where == [0, 0, 0, 0, 0, 0, 0, 1]  # windows 3.5, 3, 3, 3: two without a better one
  task = task_of(configs.resolve(jp.default_config(), RUN))
  carry = pair_stages.PairCarry({}, moment.spread(4), None, None, jnp.zeros(4, jnp.int32))
  sides = {"source": Side(None, None), "target": Side(None, None)}
  model = PairModel(map_rule(fields, 2, 2), sides, 0, 0, None, nnx.Rngs(0))
  again = task.restart(model, carry, {"x": jnp.zeros((4, 2)), "y": jnp.zeros((4, 2))})
  assert np.asarray(again.moment.clock.stage).tolist() == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """A tiny vision transformer that has really been trained, and the latents and inputs of all digits."""
  folder = tmp_path_factory.mktemp("digits")
  run = jp.train("digits:cayley", folder / "run", quiet=True, overrides={
    "steps": 3, "model.width": 16, "model.layers": 1, "model.heads": 2, "batch_size": 16, "evaluation.every": 3,
    "evaluation.max_examples": 32, "logging.tensorboard": False, "data.images.shift": 0, "model.patch": 4,
    "logging.diagnostics_every": 0, "evaluation.unaveraged": "never",
  })  # fmt: skip
  out = folder / "latents.npz"
  assert main(["latents", f"--workdir={run.workdir}", "--layer=block0.features", f"--out={out}", "--train"]) == 0
  return run, out


@pytest.mark.slow
def test_latents_of_a_trained_model_are_written_and_a_misspelt_layer_is_named(digits, capsys):
  run, out = digits
  with np.load(out) as file:
    assert file["latents"].shape == (1797, 16) and file["ids"].tolist() == list(range(1797))
    assert file["labels"].shape == (1797,) and file["inputs"].shape == (1797, 64) and np.ptp(file["latents"]) > 0
    held = run.dataset.evaluation_batches(359)[0]
    np.testing.assert_array_equal(file["inputs"][:359], held["inputs"])
    first = run.dataset.read(run.dataset.train, np.arange(1))
    np.testing.assert_array_equal(file["inputs"][359], first["inputs"][0])
  assert main(["latents", f"--workdir={run.workdir}", "--layer=block0.feature"]) == 2
  assert "Did you mean 'block0.features'?" in capsys.readouterr().err


@pytest.mark.slow
def test_an_encoder_is_held_in_the_first_stage_and_trained_in_the_second(digits, tmp_path):
  """Source rows are inputs of the trained network, target rows its own latents: the map starts as the identity."""
  run, out = digits
  fields = RUN | {
    "data.pairs.source": str(out), "data.pairs.target": str(out), "data.pairs.source_array": "inputs",
    "model.transport.source_run": str(run.workdir), "model.transport.source_layer": "block0.features",
    "model.transport.align.steps": 2, "model.transport.align.transport": "0", "model.transport.joint.transport": "0",
    "model.transport.align.map": 0.0, "checkpoint.every": 2, "steps": 3, "evaluation.every": 2,
    "evaluation.batch_size": 64, "model.transport.bank": 16, "model.transport.momentum": 0.75,
  }  # fmt: skip
  c = configs.resolve(jp.default_config(), fields)
  joint = jp.train(c, tmp_path / "joint", quiet=True)
  states = joint.setup.create(), jp.load(joint.workdir, step=2).state, joint.state
  before, held, after = (jax.device_get(state.params["source"]) for state in states)
  trained = jax.tree.leaves(jax.device_get(run.state.evaluated))
  for part in ("network", "average"):
    chex.assert_trees_all_equal(jax.tree.leaves(before[part]), trained)
  chex.assert_trees_all_equal(held, before)
  assert max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (after, before)), strict=True)) > 1e-4
  moved = jax.tree.map(lambda a, b: b + 0.25 * (a - b), after["network"], before["network"])
  chex.assert_trees_all_close(after["average"], moved, atol=1e-6)  # one joint step
  model = joint.setup.model(joint.state.params, joint.state.buffers)
  batch = jax.tree.map(jnp.asarray, joint.dataset.batch(0))
  (x, _), (averaged, _) = (model.latents(batch, averaged) for averaged in (False, True))
  assert 0 < np.abs(x - averaged).max() < 1
  assert joint.evaluations[0].metrics["recall@1"] > 0.9 and joint.evaluations[0].metrics["cosine"] > 0.99
  # What the trained map makes of its examples is a file of latents like any other.
  folder, made = f"--workdir={joint.workdir}", tmp_path / "image.npz"
  assert main(["latents", folder, "--layer=image", f"--out={made}", "--train"]) == 0
  with np.load(made) as file:
    rows, ids, labels = (file[name] for name in ("latents", "ids", "labels"))
  assert rows.shape == (1797, 16) and ids.tolist() == list(range(1797)) and set(labels) == set(range(10))
  np.testing.assert_allclose(rows[359:][[0]], jax.jit(model.map)(model.latents(
    jax.tree.map(jnp.asarray, joint.dataset.read(joint.dataset.train, np.arange(1))))[0]), atol=1e-5)  # fmt: skip
  assert main(["latents", folder, "--layer=target"]) == 2
  for run_of, words in ((joint, "source_run=.*'transport' has no inputs"), (run, "source_layer='image': expected one")):
    with pytest.raises(ConfigError, match=f"^model.transport.{words}"):
      jp.train(c, tmp_path / "refused", quiet=True, overrides={
        "model.transport.source_run": str(run_of.workdir), "model.transport.source_layer": "image"})  # fmt: skip
  with np.load(out) as file:
    np.savez(tmp_path / "cut.npz", inputs=file["inputs"][:, :16], ids=file["ids"], latents=file["latents"])
  with pytest.raises(DataError, match=r"^data.pairs.source: inputs are int32 of shape \(16,\); expected .* \(64,\)"):
    jp.train(c, tmp_path / "cut", quiet=True, overrides={"data.pairs.source": str(tmp_path / "cut.npz")})
  with pytest.raises(ConfigError, match="^data.pairs.source_array='latents': expected inputs"):
    jp.train(dataclasses.replace(c, data=dataclasses.replace(c.data, pairs=dataclasses.replace(
      c.data.pairs, source_array="latents"))), tmp_path / "wrong", quiet=True)  # fmt: skip
