"""Stages, banks, diagnostics and the fused runtime: what they compute, and that the export needs NumPy alone."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpmhc_jax as jp
from jpmhc_jax.core.errors import ConfigError, DataError

t = jp.transport


def cloud(n=40, d=4, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), jnp.float32)


def test_affine_chains_fold_exactly_and_the_export_runs_without_this_package(tmp_path):
  chain = t.Chain.of(t.LinearMap(4, 5), t.OrthogonalMap(5, 3), t.SpectralMap(3, 6))
  parameters, x = chain.init(jax.random.key(0)), cloud()
  fused, folded = t.fuse(chain, parameters)
  np.testing.assert_allclose(fused(folded, x), chain(parameters, x), atol=1e-5)
  t.save_npz(tmp_path / "map.npz", folded)
  np.save(tmp_path / "x.npy", x)
  program = (
    "import sys\n"
    "for name in ('jax', 'jaxlib', 'flax', 'jpmhc_jax'): sys.modules[name] = None\n"  # an import of them fails
    "import numpy as np\n"
    f"with np.load({str(tmp_path / 'map.npz')!r}) as file:\n  kernel, shift = file['kernel'], file['shift']\n"
    f"np.save({str(tmp_path / 'y.npy')!r}, np.load({str(tmp_path / 'x.npy')!r}) @ kernel + shift)\n"
  )
  subprocess.run([sys.executable, "-I", "-c", program], check=True)
  np.testing.assert_allclose(np.load(tmp_path / "y.npy"), chain(parameters, x), atol=1e-5)


@pytest.mark.slow
def test_a_distilled_map_is_the_best_affine_or_orthogonal_one_and_its_price_is_told():
  flow, x = t.FlowMap(4, 4, couplings=2, hidden=8), cloud()
  parameters = flow.init(jax.random.key(0))
  bent = {**parameters, "out_kernel": parameters["out_kernel"] + 0.1, "out_bias": parameters["out_bias"] + 0.3}
  with pytest.raises(ConfigError, match="^x=None: expected points to distil FlowMap on"):
    t.fuse(flow, bent)
  affine, orthogonal = (t.fuse(flow, bent, x, kind) for kind in ("affine", "orthogonal"))
  image = flow(bent, x)
  design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
  expected = design @ np.linalg.lstsq(design, image, rcond=None)[0]
  np.testing.assert_allclose(affine[0](affine[1], x), expected, atol=1e-4)
  values = orthogonal[0].singular_values(orthogonal[1])
  np.testing.assert_allclose(values, values[0], rtol=1e-5)
  price = t.price((flow, bent), affine, x, image, repeats=2)
  assert price["recall@1_before"] == 1 and price["recall_lost"] == 1 - price["recall@1_after"]
  error = np.sqrt(np.mean((np.asarray(image) - expected) ** 2)) / np.std(
    np.asarray(image) - np.mean(np.asarray(image), axis=0)
  )
  np.testing.assert_allclose(price["distortion"], error, rtol=1e-2)
  assert price["flops_before"] > 2 * price["flops_after"] > 0


def test_schedules_stages_and_their_clock():
  cosine = t.Schedule("cosine", 1.0, 0.2, steps=10)
  np.testing.assert_allclose([cosine(s) for s in (0, 5, 10, 20)], [1, 0.6, 0.2, 0.2], rtol=1e-6)
  decay = t.Schedule("decay", 1.0, 0.05, rate=0.5)
  np.testing.assert_allclose([decay(s) for s in range(6)], [1, 0.5, 0.25, 0.125, 0.0625, 0.05])
  tied = t.Schedule("constant", 2.0, reference=0.5)
  np.testing.assert_allclose([tied(0, metric=m) for m in (0.0, 0.25, 0.9)], [0, 1, 2])
  with pytest.raises(ConfigError, match="^reference=0.5: expected a metric beside it"):
    tied(0)
  stages = (t.Stage("a", 100, patience=2), t.Stage("b", 3), t.Stage("c", 1))
  clock = t.StageClock.start().tick(stages)
  for metric in (0.5, 0.4, 0.3):  # two evaluations without a better one
    clock = clock.evaluated(stages, metric)
  assert (int(clock.stage), int(clock.step), float(clock.best)) == (1, 0, -np.inf)
  for _ in range(9):
    clock = jax.jit(lambda c: c.tick(stages))(clock)
  assert (int(clock.stage), int(clock.step)) == (2, 6)  # the last does not end
  with pytest.raises(ConfigError, match="multipliers='hed': expected one of .* Did you mean 'head'"):
    t.Stage("a", 1, multipliers={"hed": 1.0})
  with pytest.raises(ConfigError, match="^stage 'a' epsilon=0.0: expected a positive number"):
    t.Stage("a", 1, epsilon=t.Schedule("linear", 1.0, 0.0))
  with pytest.raises(ConfigError, match="^start=inf: expected a finite number"):
    t.Schedule(start=np.inf)


def test_a_bank_is_first_in_first_out_without_a_gradient():
  bank = t.RowBank.empty(5, 2)
  batches = [jnp.full((2, 2), float(k)) for k in range(4)]
  for batch in batches[:2]:
    bank = bank.push(batch)
  assert bank.weights().tolist() == [0, 1, 1, 1, 1]
  for batch in batches[2:]:
    bank = bank.push(batch)
  assert bank.rows[:, 0].tolist() == [1, 2, 2, 3, 3] and bank.weights().tolist() == [1] * 5
  assert not np.any(jax.grad(lambda rows: jnp.sum(bank.push(rows).rows))(batches[0]))
  with pytest.raises(ConfigError, match="^bank=5: expected at least the batch of 6 rows"):
    bank.push(jnp.zeros((6, 2)))
  with pytest.raises(ConfigError, match=r"^rows=\(2, 3\): expected \(b, 2\)"):
    bank.push(jnp.zeros((2, 3)))


def test_retrieval_counts_ranks_and_does_not_praise_a_collapse():
  x = cloud(12, 3)
  y = x[jnp.array([1, 0, *range(2, 12)])]
  values = t.recall(x, y)
  cosines = np.asarray(x) @ np.asarray(y).T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
  ranks = (cosines > np.diag(cosines)[:, None] + 1e-6).sum(1)
  np.testing.assert_allclose(values["recall@1"], np.mean(ranks < 1), atol=1e-6)
  np.testing.assert_allclose(
    values["recall@5_back"], np.mean((cosines > np.diag(cosines) + 1e-6).sum(0) < 5), atol=1e-6
  )
  collapsed = t.recall(jnp.ones((12, 3)), x)
  assert collapsed["recall@1"] <= 1 / 12 + 1e-6
  with pytest.raises(DataError, match=r"^image has the shape \(1, 3\)"):
    t.recall(x[:1], y[:1])


@pytest.mark.slow
def test_diagnostics_of_geometry():
  x, q = cloud(30, 4), jnp.linalg.qr(cloud(4, 4, 1))[0]
  assert abs(t.cka(x, 2 * x @ q) - 1) < 1e-5 and t.procrustes_distance(x, 2 * x @ q + 1) < 1e-5
  assert t.cka(x, cloud(30, 4, 2)) < 0.6 and t.procrustes_distance(x, cloud(30, 4, 2)) > 0.2
  few = [np.random.default_rng(width).normal(size=(3, width)).astype(np.float32) for width in (4, 7)]
  unit = [(p - p.mean(0)) / np.linalg.norm(p - p.mean(0)) for p in few]  # fewer points than dimensions
  nuclear = np.linalg.svd(unit[1].T @ unit[0], compute_uv=False).sum()
  np.testing.assert_allclose(jax.jit(t.procrustes_distance)(*few), 2 - 2 * nuclear, atol=1e-5)
  assert t.neighbour_overlap(x, x @ q, 5) == 1 > t.neighbour_overlap(x, cloud(30, 4, 2), 5)
  assert abs(t.effective_rank(x @ jnp.diag(jnp.array([1.0, 0, 0, 0]))) - 1) < 1e-3
  basis = jnp.broadcast_to(jnp.eye(4), (30, 4, 4))
  stretch = jnp.array([1.0, 1.0, 1.0, 3.0])
  distortion = t.local_distortion(lambda r: stretch * r, x, basis, jax.random.key(0))
  assert 0.99 < distortion.min() and distortion.max() < 3.01
  p = jnp.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
  np.testing.assert_allclose(t.calibration_error(p, jnp.array([0, 0, 0, 1])), 0.5 * 0.2 + 0.5 * 0.1, atol=1e-6)


def test_the_alarm_fires_in_a_run_that_collapses_before_its_task_metric_falls():
  x = cloud(64, 6)
  alarm, fired, accuracies = t.CollapseAlarm(share=0.5, patience=2), None, []
  labels = np.asarray(x[:, 0] > 0)
  for step in range(12):  # all directions but the first fade: what the task needs is the last to go
    image = x * jnp.concatenate([jnp.ones(1), jnp.full((5,), 0.6**step)])[None]
    if step > 9:
      image = image * 0 + 1e-3 * x[:, 1:2]
    accuracies.append(float(np.mean(np.asarray(image[:, 0] > 0) == labels)))
    if alarm.look({"effective_rank": float(t.effective_rank(image))}) and fired is None:
      fired = step
  falls = next(step for step, value in enumerate(accuracies) if value < 0.9)
  assert fired is not None and fired < falls
  quiet = t.CollapseAlarm(share=0.5)
  assert not any(quiet.look({"effective_rank": 5 + 0.1 * np.sin(k)}) for k in range(20))
