"""Programs are compared by what they do, and an attention call that is fused plans less memory."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import programs


def test_programs_are_equal_up_to_names_and_places():
  x = jax.ShapeDtypeStruct((3, 5), jnp.float32)

  def renamed(y):
    return jnp.tanh(y @ y.T) + 1

  first = programs.described(lambda x: jnp.tanh(x @ x.T) + 1, x)
  assert programs.described(renamed, x) == first
  other = programs.described(lambda x: jnp.tanh(x @ x.T) + 2, x)
  assert other["digest"] != first["digest"] and other["temporaries"] == first["temporaries"]
  ratios = {"temporaries": 1.0, "operations": 1.0, "bytes": 1.0}
  assert programs.compared({"a": first, "b": other}, {"a": first, "b": first}) == {"a": "identical", "b": ratios}


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "h100"])
def test_a_fused_attention_call_plans_less_memory(topology, tmp_path):
  compiler = "libtpu" if topology.startswith("v") else "jax_cuda13_plugin"
  pytest.importorskip(compiler, reason=f"{compiler}, which compiles for {topology}, is not installed")
  command = [sys.executable, "-m", "experiments.benchmarks.attention", f"--topology={topology}", "--batch=256"]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""}
  subprocess.run([*command, f"--out={tmp_path / 'rows.json'}"], check=True, env=environment)
  fused, formulas, wide = json.loads((tmp_path / "rows.json").read_text())["rows"]
  assert (fused["computed"], formulas["computed"], wide["computed"]) == ("fused", "formulas", "formulas")
  assert fused["temporary_GiB"] < formulas["temporary_GiB"] / 2 and "not float32" in wide["not fused because"]
