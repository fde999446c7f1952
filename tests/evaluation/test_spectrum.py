"""Spectra of a real network: the layers are those of the network, the measurement is that of its Jacobian."""

import dataclasses
import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

from jpmhc_jax import main
from jpmhc_jax.config import plugins, schema
from jpmhc_jax.evaluation.spectra import measure, moments, stacks
from jpmhc_jax.evaluation.spectra.cells import Cells
from jpmhc_jax.evaluation.spectra.networks import network_of
from jpmhc_jax.models import transformer
from jpmhc_jax.models.trm import supervision_step

EFFORT = measure.Effort(examples=1, drawn=6, cells=2, points=64, carry_points=32, exact_limit=700, steps=48)


def _linearised(config=None, **connection):
  config = config or tiny.config(connection=schema.Connection(**{"mixer": "cayley", "streams": 2} | connection))
  setup, dataset = tiny.setup(config), tiny.dataset(config)
  state, rng = jax.device_get(setup.create()), np.random.default_rng(0)
  noisy = lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)  # noqa: E731
  state = dataclasses.replace(state, ema=jax.tree.map(noisy, state.params))
  return config, measure.linearise(setup, dataset, state, 3, EFFORT)


@pytest.fixture(scope="module")
def carried():
  return _linearised()


def test_the_calls_are_those_of_the_model(carried):
  config, at = carried
  assert len(at.network.answers) == 12
  model, recursion = at.network.model(*at.arrays), config.model.recursion
  z_h, z_l = at.latents
  for _ in range(2):
    z_h, z_l = supervision_step(model.network, z_h, z_l, at.x, recursion)
  found = at.network.carry(at.latents, *at.arrays, at.x, jnp.asarray(12))
  assert_allclose(found, jnp.stack([z_h, z_l]), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("sharing", ["all", "per_call"])
def test_mixers_reads_and_writes_are_those_of_the_connection(sharing, request):
  """Of the last call, whose connection is one of three where every call of a cycle has its own."""
  _, at = request.getfixturevalue("carried") if sharing == "all" else _linearised(sharing=sharing)
  model = at.network.model(*at.arrays)
  part = model.parts((at.network.calls - 1) % at.network.period)[0]
  streams = jnp.asarray(at.trace.inputs[0])
  coefficients, seen = part.connect.coefficients(streams), at.trace.mixers[-1, 0]
  every = np.moveaxis(np.asarray(coefficients.mix).reshape(2, 2, -1), -1, 0)
  tokens = [int(np.argmin(np.abs(every - mix).sum(axis=(1, 2)))) for mix in seen]
  assert_allclose(seen, every[tokens], rtol=1e-5, atol=1e-6)
  reads = np.asarray(coefficients.read).reshape(2, -1).T
  assert_allclose(at.trace.reads[-1, 0, :, 0], reads[tokens], rtol=1e-5)
  out = np.asarray(part.connect(streams, part.sublayer)).reshape(-1, 2, 16)[tokens]
  assert_allclose(at.trace.gains[-1, 0], 1 / np.sqrt(np.mean(out**2, axis=-1)), rtol=1e-3)


def test_the_noise_is_the_projected_jacobian_of_the_sub_layer(carried):
  """K_ll + m_l² = |X|²/N, X = diag(ρ)⁻¹ P_out F' P_in, of the features of the last call, behind the norm of tokens."""
  _, at = carried
  first, part = at.network.model(*at.arrays).parts()
  streams = jnp.asarray(at.trace.inputs[1])
  coefficients = part.connect.coefficients(streams)
  read, write = (jnp.moveaxis(c, 0, -1) for c in (coefficients.read, coefficients.write))
  u = jnp.einsum("blj,bljd->bld", read, streams)
  out = part.connect(streams, part.sublayer)
  into = moments.before(streams, first.axes, read[:, :, None, :])
  behind = moments.behind(out, part.axes, write[..., None])
  dense = lambda f: np.asarray(jax.jacrev(lambda v: f(v.reshape(u.shape)).ravel())(u.ravel()))  # noqa: E731
  jacobian = dense(behind) @ dense(part.sublayer) @ dense(into)
  noise, size = at.trace.noise, len(jacobian)
  rows = np.sqrt(np.mean(jacobian**2, axis=1, keepdims=True) / np.mean(jacobian**2))
  jacobian /= rows
  assert_allclose(noise.covariance[-1, -1] + noise.mean[-1] ** 2, np.sum(jacobian**2) / size, rtol=0.15)
  squared = np.trace(jacobian @ jacobian) / size
  assert abs(noise.elliptic[-1, -1] + noise.mean[-1] ** 2 - squared) < 0.15 * np.sum(jacobian**2) / size
  assert 0 < noise.error < 0.2


def test_a_norm_removes_the_direction_of_its_vector():
  rng = np.random.default_rng(0)
  streams, write = rng.normal(size=(1, 3, 1, 8)), rng.normal(size=(1, 3, 1, 1))
  unit = streams[:, :, 0] / np.linalg.norm(streams[:, :, 0], axis=-1, keepdims=True)
  vector = jnp.asarray(rng.normal(size=(1, 3, 8)), jnp.float32)
  expected = vector - unit * np.sum(unit * np.asarray(vector), axis=-1, keepdims=True)
  assert_allclose(moments.behind(jnp.asarray(streams), -1, jnp.asarray(write))(vector), expected, rtol=1e-4, atol=1e-5)
  assert moments.behind(jnp.asarray(streams), (), jnp.asarray(write)) is moments.unchanged
  # Two equal streams lose what one would: the reads and writes do not matter.
  twice, ends = jnp.asarray(np.concatenate([streams, streams], axis=2)), jnp.asarray(rng.normal(size=(1, 3, 1, 2)))
  assert_allclose(moments.before(twice, -1, ends)(vector), expected, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_the_matrices_within_their_sampling_error():
  rng, size = np.random.default_rng(1), 400
  common = rng.normal(size=(size, size)) / np.sqrt(size)
  matrices = [common, common + 0.5 * rng.normal(size=(size, size)) / np.sqrt(size), common.T + 0.3 * np.eye(size)]
  matrices[0][: size // 2] *= 3  # half of the rows

  def pairs(probe, rows):
    v, both = np.ravel(probe), zip(matrices, np.asarray(rows), strict=True)
    return np.stack([[m @ v / row, m.T @ (v / row)] for m, row in both])

  result, rows = moments.estimate(pairs, (1, 1, size), 3, jax.random.key(0))
  assert_allclose(np.median(rows[0, : size // 2]) / np.median(rows[0, size // 2 :]), 3, rtol=0.05)
  matrices = [m / row[:, None] for m, row in zip(matrices, rows, strict=True)]
  mean = np.array([np.trace(m) / size for m in matrices])
  exact = lambda turn: np.array([[np.sum(a * turn(b)) / size for b in matrices] for a in matrices])  # noqa: E731
  assert_allclose(result.mean, mean, atol=0.05)
  assert_allclose(result.covariance, exact(lambda b: b) - np.outer(mean, mean), atol=0.1)
  assert_allclose(result.elliptic, exact(np.transpose) - np.outer(mean, mean), atol=0.1)
  for sign in (1, -1):
    assert np.min(np.linalg.eigvalsh(result.covariance + sign * result.elliptic)) > -1e-12


def test_a_rotation_is_orthogonal_and_meets_every_entry():
  forwards, backwards = moments.rotation(jax.random.key(0), (4, 30))
  dense = np.asarray(jax.vmap(forwards)(jnp.eye(120).reshape(120, 4, 30))).reshape(120, 120).T
  assert_allclose(dense.T @ dense, np.eye(120), atol=1e-5)
  assert np.abs(dense).max() < 6 / np.sqrt(120)
  back = np.asarray(jax.vmap(backwards)(jnp.eye(120).reshape(120, 4, 30))).reshape(120, 120).T
  assert_allclose(back, dense.T, atol=1e-5)


@pytest.mark.slow
def test_the_rotated_network_is_the_product_of_its_rotated_layers(carried):
  """Against the dense product of twelve calls: QF̂Qᵀ between the coefficients of every token and feature."""
  _, at = carried
  network, length, width = at.network, at.x.shape[1], at.x.shape[-1]
  size = length * width
  cells = Cells(jnp.repeat(jnp.arange(length), width), jnp.tile(jnp.arange(width), length))
  trace = jax.jit(network.trace)(at.latents, *at.arrays, at.x, cells, jax.random.key(0))
  columns = jax.jit(
    jax.vmap(lambda v: network.products(trace.states, *at.arrays, v.reshape(1, length, width), at.rows)[:, 0])
  )
  noise = np.moveaxis(np.asarray(columns(jnp.eye(size))), 0, 2)
  turn, _ = moments.rotation(jax.random.key(0), (1, length, width))
  rotation = np.asarray(jax.vmap(turn)(jnp.eye(size).reshape(size, 1, length, width))).reshape(size, size).T
  noise = np.asarray(at.rows)[:, :, None] * (rotation @ noise @ rotation.T)
  gains, mixers, reads, writes = (np.asarray(a).reshape(-1, *a.shape[2:]) for a in trace[2:6])
  state = np.eye(2 * 2 * size).reshape(2, 2, size, -1)
  for call, answers in enumerate(network.answers):
    streams = state.sum(axis=0)
    for part in (2 * call, 2 * call + 1):
      written = noise[part] @ np.einsum("ci,icx->cx", reads[part, :, 0], streams)
      passed = np.einsum("cij,jcx->icx", mixers[part], streams) + writes[part, :, :, 0].T[:, :, None] * written
      streams = gains[part].T[:, :, None] * passed
    state[0 if answers else 1] = streams
  rotated = jax.jit(network.rotated(trace.states, at.rows))
  tangent = np.random.default_rng(0).normal(size=at.latents.shape).astype(np.float32)
  by_stream = np.moveaxis(tangent[:, 0], 2, 1).reshape(-1)  # (2, n, l·d)
  expected = np.moveaxis((state.reshape(4 * size, -1) @ by_stream).reshape(2, 2, length, width), 1, 2)
  result = np.asarray(rotated(tangent, *at.arrays))[:, 0]
  assert_allclose(result, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_without_noise_the_carry_is_the_recurrence_of_its_mixers(carried):
  _, at = carried
  stack = stacks.carry_layers(at.trace, at.network.answers[:4], 1)
  z_h, z_l = np.eye(4)[:2], np.eye(4)[2:]
  for k, answers in enumerate(at.network.answers[:4]):
    h = z_h + z_l
    for mixer in stacks.stream_layers(at.trace, k, 1).mixers:
      h = mixer @ h
    z_h, z_l = (h, z_l) if answers else (z_h, h)
  product = np.eye(4)
  for mixer in stack.mixers:
    product = mixer @ product
  assert_allclose(product, np.concatenate([z_h, z_l]), rtol=1e-9)
  part, call = stacks.part_layers(at.trace, 1, 0), stacks.stream_layers(at.trace, -1, 0)
  assert_allclose(part.mixers, [np.eye(2), call.mixers[1]])
  assert_allclose(part.noise.covariance, np.diag([0, call.noise.covariance[1, 1]]))
  assert_allclose(call.independent.noise.covariance, np.diag(np.diagonal(call.noise.covariance) + call.noise.mean**2))


def test_a_spectrum_far_below_what_is_resolved_is_known_unsolved(carried):
  _, at = carried
  place = measure._Place(
    "carry", "calls", 4, None, ([stacks.carry_layers(at.trace, at.network.answers[:4], 1)], None), 16
  )
  law, residual, _ = measure._predicted(place, 1e6, tick=lambda share: pytest.fail("solved"))
  assert_allclose(law.log_values, np.log(1e6))
  assert residual == 0.0


@pytest.mark.slow
def test_streams_made_inside_a_call_are_closed_at_its_ends():
  _, at = _linearised(scope="call", mixer="sinkhorn")
  assert_allclose(at.trace.enter, [1, 1], rtol=1e-5)
  assert_allclose(at.trace.leave, [0.5, 0.5], rtol=1e-5)
  stack, inner = stacks.call_layers(at.trace, 0, 0), stacks.stream_layers(at.trace, 0, 0)
  product, inside = np.eye(2), np.ones(2)
  for mixer in stack.mixers:
    product = mixer @ product
  for mixer in inner.mixers:
    inside = mixer @ inside
  assert_allclose(product, np.diag([inside.mean(), 0]), atol=1e-6)


@pytest.mark.parametrize("part", [0, 1])
def test_a_norm_inside_the_sub_layer_has_projected_its_jacobian_already(part):
  """F' u = 0 for the input u of a decoder's part: to project the probes once more would change nothing."""
  model = schema.Model(kind="decoder", width=16, heads=2, layers=1, mlp_multiple=8)
  network = transformer.Decoder(model, schema.Connection(streams=2), vocab_size=5, sequence_length=6, rngs=nnx.Rngs(0))
  sublayer = jax.tree.map(lambda leaf: leaf[0], network.layers).parts()[part].sublayer
  u, v = jax.random.normal(jax.random.key(0), (2, 1, 6, 16))
  along, across = (jnp.linalg.norm(jax.jvp(sublayer, (u,), (tangent,))[1]) for tangent in (u, v))
  assert along < 1e-4 * across


def test_every_task_of_ours_with_a_network_of_layers_has_spectra():
  """A map between spaces has no layers with connections; `jp.transport` measures its Jacobian."""
  without = network_of.dispatch(object)
  tasks = {name: network_of.dispatch(plugins.TASKS[name].value) for name in plugins.TASKS.names(())}
  assert [name for name, network in tasks.items() if network is without] == ["transport"]


@pytest.mark.slow
def test_measured_and_predicted_spectra_agree(carried):
  """Exact and matrix-free agree on the Jacobian, and the prediction is near (W1 above 0.5 without the norms)."""
  _, at = carried
  few = dataclasses.replace(at, network=dataclasses.replace(at.network, answers=at.network.answers[:3]))
  few = dataclasses.replace(
    few,
    rows=at.rows[:6],
    trace=few.trace._replace(
      **{k: v[:3] for k, v in few.trace._asdict().items() if k not in ("inputs", "enter", "leave", "noise", "shares")},
      noise=stacks.chosen_noise(few.trace, np.arange(6)),
    ),
  )
  sites = {site.name: site for site in measure.measure(few, EFFORT)}
  assert [site.scale for site in sites.values()] == ["part"] * 2 + ["recursion"] * 3 + ["carry"]
  call = sites["call 3"]
  model = at.network.model(*at.arrays)
  state = jnp.asarray(at.trace.states[2])
  dense = jax.jacrev(lambda h: model.network(h.reshape(state.shape), jnp.zeros_like(state)).ravel())(state.ravel())
  values = np.linalg.svd(np.asarray(dense), compute_uv=False)
  assert call.exact and not sites["calls 1 to 3"].exact
  assert_allclose(call.measured.largest, np.quantile(values, 0.99), rtol=0.05)
  assert_allclose(call.measured.mean_log, np.mean(np.log(np.maximum(values, call.floor))), atol=1e-3)
  lanczos = list(measure.measure(few, dataclasses.replace(EFFORT, exact_limit=0, steps=96)))[4]
  clipped = np.mean(np.log(np.maximum(values, lanczos.floor)))
  assert abs(lanczos.measured.mean_log - clipped) < 0.1
  for site in sites.values():
    assert site.residual < 1e-6
    assert site.w1 < 0.4, (site.name, site.w1)


@pytest.mark.slow
def test_a_looped_decoder_is_its_layers_one_after_the_other_with_correlated_noise(tmp_path):
  """Its whole Jacobian is the dense product; weights that come back have correlated noise, others have not."""
  for k in range(12):
    (tmp_path / f"module{k}.py").write_text(f"def f{k}(x):\n  return x + {k}\n" * 8)
  recursion = schema.Recursion(call_embedding=True)
  config, at = _linearised(
    tiny.config(
      data=schema.Data(kind="text", prefetch=0, text=schema.TextData(folder=str(tmp_path), window=8, held_out=4)),
      model=schema.Model(kind="decoder", width=16, heads=2, layers=2, loops=2, mlp_multiple=8, recursion=recursion),
      connection=schema.Connection(mixer="cayley", streams=2, sharing="per_call"),
    )
  )
  model = at.network.model(*at.arrays)
  assert at.network.calls == 4 and at.network.counts == (2, 4) and at.parts == ("block1.tokens", "block1.features")
  behind = at.network.carry(at.latents, *at.arrays, at.x, jnp.asarray(4))
  assert_allclose(behind, model.run(at.latents)[0], rtol=2e-4, atol=2e-5)
  dense = jax.jit(jax.jacrev(lambda h: model.run(h.reshape(at.latents.shape))[0].ravel()))(at.latents.ravel())
  values = np.linalg.svd(np.asarray(dense), compute_uv=False)
  covariance = at.trace.noise.covariance
  similarity = covariance / np.sqrt(np.outer(np.diagonal(covariance), np.diagonal(covariance)))
  same = np.arange(8)[:, None] % 4 == np.arange(8) % 4
  assert similarity[same].min() > 0.3 and np.abs(similarity[~same]).max() < 0.2
  first, whole = measure.measure(at, EFFORT, scales=("depth",))
  assert (first.name, whole.name, whole.exact) == ("layers 1 to 2", "layers 1 to 4", True)
  assert_allclose(whole.top, values[0], rtol=1e-3)
  assert_allclose(whole.measured.mean_log, np.mean(np.log(np.maximum(values, whole.floor))), atol=1e-3)
  assert first.rotated is None and whole.rotated_w1 < 0.3 and whole.w1 < 0.3 and whole.residual < 1e-6
  assert at.network.design(at.trace, 0).mixers.shape == (4, 2, 2)


@pytest.fixture
def little(monkeypatch):
  monkeypatch.setattr(measure, "Effort", functools.partial(measure.Effort, cells=2, points=64, carry_points=32))


@pytest.mark.slow
def test_the_command_measures_a_run_and_the_report_draws_it(little, tmp_path, capsys):
  workdir = tmp_path / "run"
  overrides = {
    "steps": 2, "batch_size": 8, "data.sudoku.train_puzzles": 20, "data.sudoku.test_puzzles": 4, "model.width": 16,
    "model.heads": 2, "model.mlp_multiple": 8, "model.layers": 1, "connection.streams": 2,
  }  # fmt: skip
  fields = [f"--config.{name}={value}" for name, value in overrides.items()]
  assert main.main(["train", "--config=sudoku:tiny", f"--workdir={workdir}", *fields]) == 0
  assert main.main(["spectrum", f"--workdir={workdir}"]) == 0
  found = json.loads((workdir / "spectrum.json").read_text())
  assert found["step"] == 2
  assert {site["scale"] for site in found["sites"]} == {"part", "recursion", "carry"}
  assert [site["name"] for site in found["sites"] if site["rotated"]] == ["calls 1 to 12"]
  assert main.main(["report", str(workdir)]) == 0
  page = (workdir / "report.html").read_text()
  assert "Jacobian spectra" in page and "Density of log singular values: block0.tokens" in page
  (workdir / "spectrum.json").unlink()
  command = ["spectrum", f"--workdir={workdir}", "--mixer=sinkhorn", "--exact-limit=100", "--lanczos-steps=24"]
  assert main.main(command) == 0
  out = capsys.readouterr().out
  assert "calls 1 to 12" in out and "recommended:" in out
  again = json.loads((workdir / "spectrum.json").read_text())
  assert [row["mixer"] for row in again["design"]["predictions"]] == ["checkpoint", "sinkhorn"]
  assert not again["sites"][0]["exact"]
  assert (workdir / "spectrum.svg").read_text().lstrip().startswith("<?xml")


def _decoder_run(tmp_path, **model):
  overrides = {
    "steps": 2, "batch_size": 8, "data.text.window": 8, "model.width": 16, "model.heads": 2, "model.layers": 2,
    "connection.streams": 2, "evaluation.max_examples": 8, "evaluation.batch_size": 8,
  }  # fmt: skip
  fields = [f"--config.{name}={value}" for name, value in (overrides | model).items()]
  workdir = tmp_path / "run"
  assert main.main(["train", "--config=stdlib_lm:tiny", f"--workdir={workdir}", *fields]) == 0
  return workdir


@pytest.mark.slow
def test_a_decoder_is_measured_by_layer_and_through_all_of_them(little, tmp_path, capsys):
  workdir = _decoder_run(tmp_path)
  assert main.main(["spectrum", f"--workdir={workdir}", "--mixer=sinkhorn", "--lanczos-steps=24"]) == 0
  assert "layers 1 to 2" in capsys.readouterr().out
  found = json.loads((workdir / "spectrum.json").read_text())
  names = ["block1.tokens", "block1.features", "layer 1", "layer 2", "layers 1 to 2"]
  assert [site["name"] for site in found["sites"]] == names
  for site in found["sites"]:
    assert site["exact"] and site["residual"] < 1e-6
    assert site["w1"] < 0.3, (site["name"], site["w1"])
  assert found["design"]["predictions"][0]["depth"] == 4
  assert main.main(["report", str(workdir)]) == 0
  page = (workdir / "report.html").read_text()
  assert "Every layer: largest" in page
  # Densities are drawn over a log axis, which says so at its own end, and on a linear one.
  assert 'text-anchor="end" class="axis">singular value · log scale<' in page and "density · log scale" not in page


@pytest.mark.slow
def test_the_design_rules_are_written_and_drawn(tmp_path, capsys):
  assert main.main(["spectrum", "--mixer=cayley", "--n=2", "--depth=2", f"--out={tmp_path}"]) == 0
  assert "no recommendation: it takes two" in capsys.readouterr().out
  row = json.loads((tmp_path / "spectrum.json").read_text())["predictions"][0]
  mass = np.trapezoid(row["log_density"], np.log(row["singular_values"]))
  assert_allclose(mass, 1.0, atol=1e-2)
  assert (tmp_path / "spectrum.svg").stat().st_size > 5000
