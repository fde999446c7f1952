"""Plans for devices that are elsewhere: TPU slices, compiled for with libtpu where it is installed."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jpmhc_jax.main import main
from jpmhc_jax.training import plan as plans

CONFIG = "sudoku:tiny"


@pytest.mark.parametrize(
  ("message", "gib"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (161.5G) exceeds "
      "available HBM (15.75G).",
      161.5,
    ),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory. Used 20.5G of 15.75G hbm.", 20.5),
    ("RESOURCE_EXHAUSTED: too many requests", None),
    ("INTERNAL: temporaries (1.0G)", None),
  ],
)
def test_what_a_compiler_ran_out_of_is_read(message, gib):
  assert plans.temporaries_in(message) == (None if gib is None else int(gib * 2**30))


def test_what_does_not_compile_does_not_fit():
  need = plans.Need({"parameters": 5}, 10, 0, 0, 0, None, 0.0, compiles=False)
  assert not need.fits(1000)
  assert dataclasses.replace(need, compiles=True).fits(15)


def test_a_missing_compiler_is_named(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert main(["train", f"--config={CONFIG}", "--plan", "--topology=v5e:2x2"]) == 2
  assert "pip install libtpu" in capsys.readouterr().err
  assert main(["train", f"--config={CONFIG}", "--plan", "--topology=h100:4"]) == 2
  assert "pip install 'jax[cuda13]'" in capsys.readouterr().err
  assert main(["train", f"--config={CONFIG}", "--plan", "--topology=v5e:2x2", "--devices=4"]) == 2
  assert "expected one of them" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
  ("topology", "implementation", "kind", "gib"),
  [
    ("v5e:2x2", "auto", "TPU v5 lite", 16),
    ("v5e:2x2", "pallas_tpu", "TPU v5 lite", 16),
    ("h100:4", "auto", "NVIDIA H100 80GB HBM3", 80),
    ("h100:4", "pallas_gpu", "NVIDIA H100 80GB HBM3", 80),
    ("h100:4", "mosaic_gpu", "NVIDIA H100 80GB HBM3", 80),
  ],
)
def test_a_step_compiles_for_devices_elsewhere(topology, implementation, kind, gib):
  """In a process of its own: libtpu writes to the process's log and keeps it."""
  compiler = "libtpu" if topology.startswith("v") else "jax_cuda13_plugin"
  pytest.importorskip(compiler, reason=f"{compiler}, which compiles for {topology}, is not installed")
  command = [sys.executable, "-m", "jpmhc_jax", "train", f"--config={CONFIG}", "--plan", f"--topology={topology}"]
  overrides = [f"--config.connection.implementation={implementation}", "--config.mesh.fsdp=2", "--json"]
  done = subprocess.run(
    [*command, *overrides], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
  )
  assert done.returncode == 0, done.stderr[-2000:]
  plan = json.loads(done.stdout)
  assert plan["device_kind"] == kind and plan["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
  assert plan["fits"] and plan["memory"] == gib * 2**30 and plan["need"]["temporaries"] > 2**20
  assert "portable formulas run instead" not in done.stderr
