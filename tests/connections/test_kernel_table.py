"""Who computes the sums over streams, and what was measured on devices: both are read from a table."""

import functools
import json

import jax.numpy as jnp
import pytest

from jpmhc_jax.connections.ops import base, xla, xla_tpu
from jpmhc_jax.connections.ops.pallas import Kernels, MosaicGpu, tuning
from jpmhc_jax.core import sharding
from jpmhc_jax.core.errors import ConfigError


def test_who_computes_follows_device_and_streams(monkeypatch):
  assert all(isinstance(ops, base.StreamOps) for ops in (xla, xla_tpu, Kernels("tpu")))
  assert base.stream_ops("auto", 4) is xla
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert base.stream_ops("auto", 4) is xla_tpu
  assert base.stream_ops("xla", 16) is xla
  assert base.stream_ops("pallas_tpu", 4) == Kernels("tpu")
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  assert base.stream_ops("auto", 4) is xla
  assert base.stream_ops("mosaic_gpu", 8) == MosaicGpu()


MEASURED = {
  "measured": {"date": "2027-01-01"},
  "auto": [
    {"streams": 4, "implementation": "mosaic_gpu", "ratio": 0.7},
    {"streams": 8, "implementation": "xla", "ratio": 1.0},
  ],
  "blocks": [
    {"implementation": "mosaic_gpu", "kernel": "mix", "streams": n, "width": d, "dtype": "float32", "tokens": tokens,
     "features": 128, "warps": 4, "us": 1.5, "formulas_us": 2}
    for n, d, tokens in ((4, 512, 2), (4, 1024, 3), (8, 512, 4))
  ],
}  # fmt: skip


def test_what_was_measured_on_a_device_decides_there(monkeypatch):
  table = tuning.parse(json.dumps({"NVIDIA H100 80GB HBM3": MEASURED}), "measured.json")
  monkeypatch.setattr(tuning, "table", lambda: table)
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  assert base.stream_ops("auto", 4) is xla  # another device
  assert tuning.blocks("mosaic_gpu", "mix", 4, 512, "float32") is None
  monkeypatch.setattr(sharding, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
  assert [base.stream_ops("auto", n) for n in (2, 4, 5, 8, 9)] == [MosaicGpu(), MosaicGpu(), xla, xla, xla]
  sizes = ((2, 64), (4, 512), (4, 513), (5, 512), (8, 513), (9, 64))
  found = [tuning.blocks("mosaic_gpu", "mix", *size, "float32") for size in sizes]
  assert [blocks and blocks.tokens for blocks in found] == [2, 2, 3, 4, None, None]
  assert tuning.blocks("mosaic_gpu", "mix", 4, 512, "bfloat16") is tuning.blocks("pallas_gpu", "mix", 4, 512, "float32")
  x, mixer, write, y = jnp.ones((17, 4, 512)), jnp.ones((4, 4, 17)), jnp.ones((4, 17)), jnp.ones((17, 512))
  seen = []
  monkeypatch.setattr(MosaicGpu, "launch", lambda self, body, layout, _, results: seen.append(layout) or [x])
  base.stream_ops("auto", 4).mix(x, mixer, write, y)
  assert (seen[0].block, seen[0].shape.chunk) == (2, 128)


@pytest.mark.parametrize(
  ("place", "value", "message"),
  [
    (("blocks", 1, "tokens"), 0, r"measured.json, 'H': blocks\[1\].tokens=0: expected a whole number above 0; measure"),
    (("blocks", 0, "features"), 100, r"blocks\[0\].features=100: expected a multiple from 128 on"),
    (("blocks", 0, "implementation"), "xla", r"blocks\[0\].implementation='xla': expected one of pallas_gpu"),
    (("auto", 0, "streams"), 4.0, r"auto\[0\].streams=4.0: expected a whole number above 0"),
    (("auto", 0, "speed"), 4, r"auto\[0\]: fields=.*expected streams, implementation, ratio"),
    (("measured",), None, "measured=None: expected where and when"),
  ],
)  # fmt: skip
def test_a_malformed_table_is_refused_in_words(place, value, message):
  table = json.loads(json.dumps({"H": MEASURED}))
  holder = functools.reduce(lambda found, key: found[key], place[:-1], table["H"])
  holder[place[-1]] = value
  with pytest.raises(ConfigError, match=message):
    tuning.parse(json.dumps(table), "measured.json")
  with pytest.raises(ConfigError, match="measured.json: expected JSON"):
    tuning.parse("{", "measured.json")


def test_the_packaged_table_is_one():
  assert all(device.measured for device in tuning.table().values())
