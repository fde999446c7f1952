"""A map between latent spaces that two processes train is the one that a single process trains."""

import json

import chex
import jax
import numpy as np
import pytest
import tiny

from experiments.faults.launch import Layout, Start
import jpmhc_jax as jp
from jpmhc_jax.config import load as configs

RUN = {
  "data.kind": "pairs", "model.kind": "transport", "data.prefetch": 0, "connection.streams": 1, "steps": 4,
  "batch_size": 16, "optimizer.ema": 0.0, "optimizer.name": "adamw", "optimizer.learning_rate": 1e-2, "mesh.data": -1,
  "logging.every": 1, "logging.tensorboard": False, "logging.diagnostics_every": 2, "checkpoint.every": 4,
  "evaluation.every": 4, "data.pairs.known": 0.5, "model.transport.map": "flow", "model.transport.hidden": 8,
  "model.transport.bank": 16, "model.transport.sweeps": 5, "model.transport.align.steps": 2,
  "model.transport.joint.steps": 1, "model.transport.joint.isometry": "0.1", "model.transport.probed": 0.5,
  "model.transport.distil.steps": 1,
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_the_map_that_one_does(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(80, 4))
  np.savez(tmp_path / "pairs.npz", x=x, y=x @ rng.normal(size=(4, 6)))
  config = configs.resolve(jp.default_config(), RUN | {"data.pairs.source": str(tmp_path / "pairs.npz")})
  source, runs = tiny.write_config(tmp_path / "config.py", config), {}
  for layout in ("1x2", "2x1"):
    workdir = tmp_path / layout
    with Start(
      Layout.parse(layout), workdir, ["train", f"--config={source}", f"--workdir={workdir}"], tmp_path / "cache"
    ) as start:
      assert start.finish() == [0] * start.layout.processes, start.output()
    runs[layout] = jp.load(workdir)
  one, two = (jax.device_get(run.state) for run in runs.values())
  chex.assert_trees_all_close(two.params, one.params, atol=1e-5)
  chex.assert_trees_all_close(two.carry, one.carry, atol=1e-5)  # the bank and the clock
  results, other = (json.loads((run.workdir / "evaluation" / "step_4.json").read_text()) for run in runs.values())
  assert other["metrics"] == pytest.approx(results["metrics"], rel=1e-4, abs=1e-5)
