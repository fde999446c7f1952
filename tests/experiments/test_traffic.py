"""What is counted in a compiled program, by hand on a few lines of HLO."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import traffic

HLO = """
HloModule test

%body (arg: (f32[7,10,4], bf16[10,4])) -> (f32[7,10,4], bf16[10,4]) {
  %arg = (f32[7,10,4]{2,1,0}, bf16[10,4]{1,0}) parameter(0)
  %stack = f32[7,10,4]{2,1,0} get-tuple-element(%arg), index=0
  %state = bf16[10,4]{1,0} get-tuple-element(%arg), index=1
  %near = f32[10,4]{1,0:T(8,128)S(1)} fusion(%stack, %state), kind=kLoop, backend_config={"estimated_cycles":"300"}
  %far = bf16[10,4]{1,0} fusion(%near), kind=kLoop, backend_config={"estimated_cycles":"45"}
  ROOT %out = (f32[7,10,4]{2,1,0}, bf16[10,4]{1,0}) tuple(%stack, %far)
}

ENTRY %main (x: bf16[10,4]) -> bf16[10,4] {
  ROOT %x = bf16[10,4]{1,0} parameter(0)
}
"""


def test_reads_and_writes_of_main_memory_are_counted_and_a_stack_by_its_slice():
  bodies = dict(traffic._COMPUTATION.findall(HLO))
  assert set(bodies) == {"body", "main"}
  # near reads a slice of the stack (160 bytes) and the state (80) into on-chip memory; far writes 80 from there
  assert traffic.body_traffic(bodies["body"]) == (160 + 80 + 80, 0, 345)
  assert traffic.body_traffic(bodies["main"]) == (0, 0, 0)
  assert traffic.main_memory_bytes("(f32[], pred[8], f32[3,5]{1,0:T(8,128)})") == 4 + 8 + 60


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "h100"])
def test_sixteen_streams_compile_every_way_for_devices_elsewhere(topology, tmp_path):
  compiler = "libtpu" if topology.startswith("v") else "jax_cuda13_plugin"
  if not importlib.util.find_spec(compiler):
    pytest.skip(f"{compiler}, which compiles for {topology}, is not installed")
  command = [sys.executable, "-m", "experiments.benchmarks.traffic", f"--topology={topology}", "--streams=16"]
  sizes = ["--tokens=2048", "--width=128", f"--out={tmp_path / 'rows.json'}"]
  subprocess.run([*command, *sizes], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
  assert [row["computed"] for row in rows] == ["portable", "by stream", "kernels"] * 2
  assert all(row["backward"] > 0 and row["forward"] > 0 for row in rows)
