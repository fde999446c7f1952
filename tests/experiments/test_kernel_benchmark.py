"""The benchmark of kernels without an accelerator: what it reads of a trace, what it writes, and that it checks."""

import json
import math
from types import SimpleNamespace as Of

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import device_time, kernel_cases, kernels
from jpmhc_jax.connections.ops.pallas import MosaicGpu, tuning
from jpmhc_jax.connections.ops.pallas.tuning import Blocks

SIZE = kernel_cases.Size(32, 2, 16, "float32")


def _line(name, *events):
  return Of(name=name, events=[Of(name=n, duration_ns=ns, stats=list(stats.items())) for n, ns, stats in events])


def test_device_time_is_that_of_the_streams_of_a_gpu_and_of_the_programs_of_a_tpu():
  mix, read = ({"hlo_module": f"jit_{name}", "hlo_op": "fusion"} for name in ("mix", "read"))
  gpu = Of(
    name="/device:GPU:0",
    lines=[
      _line("Stream #13(Compute)", ("mix", 3000, mix), ("loop_fusion", 500, mix), ("read", 100, read)),
      _line("Stream #14(MemcpyD2D)", ("copy", 500, mix)),
      _line("XLA Ops", ("mix", 3000, mix)),  # the same once more
      _line("XLA Modules", ("jit_mix", 4000, {})),
    ],
  )
  host = Of(name="/host:CPU", lines=[_line("Stream of a host", ("mix", 9000, mix))])
  assert device_time.device_us([gpu, host]) == {"mix": 4.0, "read": 0.1}
  modules = _line("XLA Modules", ("jit_mix(123)", 2000, {}), ("jit_mix(123)", 2500, {}))
  tpu = Of(name="/device:TPU:0", lines=[modules, _line("XLA Ops", ("fusion.1", 1900, {}))])
  assert device_time.device_us([tpu]) == {"mix": 4.5}


def test_auto_takes_kernels_that_save_enough_in_the_mean_of_all_sizes():
  ratios = {
    "4x512 float32": {"a": 0.5, "b": 0.9},
    "4x128 float32": {"a": 0.9, "b": 0.9},
    "8x512 float32": {"a": 0.98},
    "16x512 float32": {},
  }
  found = list(kernels.verdicts(ratios))
  assert [(auto.streams, auto.implementation) for auto in found] == [(4, "a"), (8, "xla")]
  assert [auto.ratio for auto in found] == pytest.approx([math.sqrt(0.45), 0.98])


def test_candidates_begin_with_what_holds_without_a_measurement_and_cut_differently():
  size = kernel_cases.Size(4096, 4, 512, "float32")
  assert kernel_cases.candidates("pallas_gpu", "mix", size)[0] == Blocks(16, 64, 4)
  assert kernel_cases.candidates("mosaic_gpu", "mix", size)[0] == Blocks(8, 512)
  for implementation in kernel_cases.BY_KERNELS:
    found = kernel_cases.candidates(implementation, "mix", size)
    assert len(found) == len(set(found)) > 3


def test_without_an_accelerator_nothing_is_timed(monkeypatch):
  monkeypatch.setattr("sys.argv", ["kernels"])
  with pytest.raises(SystemExit, match="there is no GPU or TPU here: nothing is timed"):
    kernels.main()


def test_an_error_counts_beside_what_rounding_allows():
  exact = [np.linspace(-2, 3, 7)]
  near = kernel_cases.error("read", [np.float32(exact[0])], exact, SIZE)
  assert near < 0.1 < 1 < kernel_cases.error("read", [np.float32(1.001 * exact[0])], exact, SIZE)
  assert kernel_cases.error("read", [np.full(7, np.nan, np.float32)], exact, SIZE) > 1e9


@pytest.mark.slow
def test_what_is_measured_is_checked_and_written_once_and_in_time(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(kernels, "candidates", lambda *fields: kernel_cases.candidates(*fields)[:2])
  options = ["--interpret", "--kernels=read", "--dtypes=bfloat16", "--implementations=mosaic_gpu"]
  monkeypatch.setattr("sys.argv", ["kernels", *options])
  with pytest.raises(SystemExit) as end:
    kernels.main()
  assert end.value.code == 0 and "2 of 2 candidates right" in capsys.readouterr().out
  monkeypatch.setattr(kernels, "BY_KERNELS", {"mosaic_gpu": MosaicGpu(interpret=True)})
  monkeypatch.setattr(kernels, "KERNELS", {"read": kernels.KERNELS["read"]})
  monkeypatch.setattr(
    kernels, "connection", lambda name, _: kernels.compiled(name, lambda x: 2 * x, {"x": jnp.ones(9)})
  )
  out = tmp_path / "table.json"

  def measure(longest=0.0):
    bench = kernels.bench_of(("mosaic_gpu",), 5, 2, out)
    bench.longest, bench.implementations = longest, ("mosaic_gpu",)  # a CPU has none
    assert kernels.measure(bench, ["read"], [SIZE]) == 0
    return capsys.readouterr().out

  measure()
  ((kind, device),) = tuning.parse(out.read_text(), "out").items()
  assert (kind, device.blocks[0].kernel, device.auto[0].streams) == ("cpu", "read", 2)
  assert device.measured["timed by"] == device_time.CLOCK and device.measured["connections"].keys() == {"2x16 float32"}
  monkeypatch.setattr(kernels, "interleaved", lambda *_: pytest.fail("measured twice"))
  measure()
  assert "time is up: the same command goes on with read 2x16 float32, connection" in measure(longest=400)
  out.write_text(json.dumps({"cpu": json.loads(out.read_text())["cpu"] | {"measured": {"jax": "0.0"}}}))
  assert not kernels.bench_of(("mosaic_gpu",), 5, 2, out).device.blocks  # measured with other versions
