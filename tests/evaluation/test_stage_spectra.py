"""Spectra of residual networks: stages are those of the model, their product is its Jacobian, the page shows them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.spectra import measure, moments
from jpmhc_jax.evaluation.spectra.cells import Cells
from jpmhc_jax.evaluation.spectra.networks import network_of
from jpmhc_jax.reporting import spectra
from jpmhc_jax.reporting.workdir import read_run

pytestmark = pytest.mark.slow

EFFORT = measure.Effort(drawn=40, cells=4, points=48, carry_points=32, steps=24, exact_limit=200)


def _setup(order, **vision):
  config = tiny.config(
    data=schema.Data(kind="images", prefetch=0),
    model=schema.Model(
      kind="resnet", width=4, loss="softmax", puzzle=schema.Puzzle(width=0), recursion=schema.Recursion(max_steps=1),
      vision=schema.Vision(group=2, order=order, **vision),
    ),
    connection=schema.Connection(mixer="cayley", streams=2, generator="static"),
  )  # fmt: skip
  setup, dataset = tiny.setup(config), tiny.dataset(config)
  state, rng = jax.device_get(setup.create()), np.random.default_rng(0)
  noisy = lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)  # noqa: E731
  return setup, dataset, dataclasses.replace(state, ema=jax.tree.map(noisy, state.params))


@pytest.mark.parametrize("order", ["post", "pre"])
def test_the_linearised_stages_multiply_to_the_jacobian(order, monkeypatch):
  """Unturned: static coefficients depend on no streams, so that nothing is left out."""
  monkeypatch.setattr(moments, "rotation", lambda key, shape: (moments.unchanged, moments.unchanged))
  setup, dataset, state = _setup(order, depth=14, streams=(3, 3))
  network, arrays = network_of(setup.task, setup), (state.evaluated, state.buffers)
  inputs, cells = jnp.asarray(dataset.batch(0)["inputs"][:1]), Cells(jnp.arange(4), jnp.arange(4))

  @jax.jit
  def both(u, arrays, inputs):
    starts = [stage.start(*arrays, inputs, None)[0] for stage in network.stages]
    key, each = jax.random.key(0), zip(network.stages, starts, strict=True)
    traces = [stage.trace(h, *arrays, h, cells, key) for stage, h in each]
    rows = [jnp.ones((stage.calls, h[0, :, 0].size)) for stage, h in zip(network.stages, starts, strict=True)]
    turned = network.rotated(u, *arrays, inputs, [trace.states for trace in traces], rows)
    return turned, network.carry(u, *arrays, inputs), traces[0].gains

  shape = network.behind(3, *arrays, inputs).shape
  turned, pulled, gains = both(jax.random.normal(jax.random.key(0), shape), arrays, inputs)
  assert_allclose(turned, pulled, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(pulled))))
  assert set(np.unique(np.round(gains, 3))) == ({0.0, 1.0} if order == "post" else {1.0})


def test_stages_changes_and_the_whole_are_measured_and_drawn(tmp_path):
  setup, dataset, state = _setup("post", depth=8)
  lines = []
  *_, result = measure.findings(setup, dataset, state, 0, effort=EFFORT, say=lines.append)
  result.save(tmp_path)
  sites = {site.name: site for site in result.sites}
  assert list(sites) == ["stage0.block0", "stage0", "stage1.block0", "stage2.block0", "all stages"]
  assert sites["all stages"].size == 2 * 2 * 2 * 16 and sites["all stages"].rotated is not None
  assert sites["stage0"].w1 < 0.3 and sites["stage0"].rotated_w1 < 0.15
  assert sites["all stages"].rotated_w1 < 0.15
  page = str(spectra.section(read_run(tmp_path, "run", "run")))
  assert "Every block: mean log" in page and "all stages" in page
