"""Labels cover every leaf or say which one they miss; each group of the run's optimiser does what its fields say."""

import dataclasses
import math

from golden import assert_kept_close, kept
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import optax
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.fields import field
from jpmhc_jax.optim.adam_atan2 import adam_atan2
from jpmhc_jax.optim.ema import ema_decay, ema_init, ema_update
from jpmhc_jax.optim.labels import label_tree, manifold_names
from jpmhc_jax.training.optimizer import make_optimizer, register_optimizer

PARAMS = {"block": [{"kernel": jnp.ones((2, 3)), "mixer": jnp.ones(4)}], "table": jnp.ones((5, 2))}
ROLES = {"block": [{"kernel": "trunk", "mixer": "mixer"}], "table": "puzzle"}


def test_labels_keep_the_structure_of_the_parameters():
  assert label_tree(PARAMS, ROLES) == ROLES
  assert manifold_names({"a": "manifold:iso", "b": "trunk", "c": ["manifold:birkhoff"]}) == ("birkhoff", "iso")


@pytest.mark.parametrize(
  "roles, message",
  [
    ({"block": [{"kernel": "trunk"}], "table": "puzzle"}, r"\['block'\]\[0\]\['mixer'\] has no role"),
    ({"block": [{"kernel": "trunk", "mixer": None}], "table": "puzzle"}, r"\['mixer'\] has no role"),
    ({"block": [{"kernel": "trunk", "mixer": "mixr"}], "table": "puzzle"}, r"\['mixer'\].*Did you mean 'mixer'"),
    ({"block": [{"kernel": "trunk", "mixer": 3}], "table": "puzzle"}, "expected a string"),
    ({"block": [{"kernel": "trunk", "mixer": "mixer"}], "table": "puzzle", "x": "trunk"}, "no such parameter"),
    ({"block": [{"kernel": "trunk", "mixer": "manifold:stief"}], "table": "puzzle"}, "Did you mean 'stiefel'"),
  ],
)
def test_bad_roles_name_the_leaf(roles, message):
  with pytest.raises(ConfigError, match=message):
    label_tree(PARAMS, roles, manifolds=("stiefel",))


def one_step(config, params=PARAMS, gradients=None):
  optimizer = make_optimizer(config, ROLES, total_steps=100)
  gradients = jax.tree.map(jnp.ones_like, params) if gradients is None else gradients
  return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_groups_have_their_own_rate_and_decay():
  mixer = schema.MixerOptimizer(learning_rate_multiplier=0.25, weight_decay=0.0)
  config = schema.Optimizer(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, mixer=mixer)
  updates = one_step(config)
  direction = np.arctan2(0.1, np.sqrt(0.05) / np.sqrt(0.05)) / 0.1  # first step of the imoneoi form
  assert_allclose(updates["block"][0]["kernel"], -0.1 * (direction + 0.5), rtol=1e-5)
  assert_allclose(updates["block"][0]["mixer"], -0.025 * direction, rtol=1e-5)
  assert_array_equal(updates["table"], 0.0)
  decayed = dataclasses.replace(config, mixer=dataclasses.replace(mixer, weight_decay=0.5))
  assert_allclose(one_step(decayed)["block"][0]["mixer"], -0.025 * (direction + 0.5), rtol=1e-5)


def test_clips_act_on_the_whole_tree_and_on_the_mixers_alone():
  # AdamW is scale free on the first step; its epsilon of 1e-8 makes a clipped norm visible.
  config = schema.Optimizer(name="adamw", learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
  gradients = jax.tree.map(jnp.ones_like, PARAMS)
  norm = float(optax.tree.norm(gradients))

  def first_step(gradient):
    return -gradient / (abs(gradient) + 1e-8)

  clipped = one_step(dataclasses.replace(config, clip_norm=2e-8 * norm), gradients=gradients)
  assert_allclose(clipped["block"][0]["kernel"], first_step(2e-8), rtol=1e-4)
  own = dataclasses.replace(config, mixer=schema.MixerOptimizer(clip_norm=2e-8))
  clipped = one_step(own, gradients=gradients)
  assert_allclose(clipped["block"][0]["mixer"], first_step(1e-8), rtol=1e-4)  # norm of four ones is 2
  assert_allclose(clipped["block"][0]["kernel"], -1.0, rtol=1e-4)


@pytest.mark.parametrize("name", ["adam_atan2", "adam_atan2_lucidrains", "adamw"])
def test_every_named_optimiser_descends(name):
  config = schema.Optimizer(name=name, learning_rate=0.05, warmup_steps=5, weight_decay=0.0)
  optimizer = make_optimizer(config, ROLES, total_steps=200)

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(params, state, params)  # gradient of |p|^2 / 2
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=200))(PARAMS)
  assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(params["block"])) < 0.05
  assert_array_equal(params["table"], 1.0)


def test_bad_settings_are_refused():
  with pytest.raises(ConfigError, match=r"optimizer.clip_norm=-1"):
    make_optimizer(schema.Optimizer(clip_norm=-1.0), ROLES, 10)
  with pytest.raises(ConfigError, match="Did you mean 'adamw'"):
    make_optimizer(schema.Optimizer(name="adam_w"), ROLES, 10)


def test_ema_of_a_constant():
  start, params = {"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([1.0, 2.0])}
  shadow = ema_init(start)
  for _ in range(10):
    shadow = ema_update(shadow, params, 0.9)
  assert_allclose(shadow["w"], params["w"] + 0.9**10 * (start["w"] - params["w"]), rtol=1e-6)


@pytest.mark.parametrize("name", ["lion", "muon", "sgd", "root"])
def test_the_optimisers_of_optax_and_of_ones_own_descend(name):
  """From optax, from optax.contrib, and `root` through the door of plugins, with a field of its own."""
  register_optimizer("root", fields=RootFields)(root)  # here: names of one's own are forgotten behind every module
  params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
  cls = dataclasses.make_dataclass("Own", [("root", RootFields, RootFields())], bases=(schema.Optimizer,), frozen=True)
  config = cls(name=name, learning_rate=0.05, warmup_steps=0, weight_decay=0.0)
  optimizer = make_optimizer(config, {"w": "trunk", "b": "mixer"}, 10)
  state, loss = optimizer.init(params), lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))
  first = float(loss(params))
  for _ in range(6):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
  assert float(loss(params)) < 0.9 * first


@dataclasses.dataclass(frozen=True)
class RootFields:
  power: float = field(0.5, "of the gradient's entries")


def root(config, group):
  def direction(gradient, _):
    return jax.tree.map(lambda g: jnp.sign(g) * jnp.abs(g) ** config.root.power, gradient)

  return optax.chain(optax.stateless(direction), optax.scale_by_learning_rate(group.learning_rate))


@pytest.mark.slow
def test_muon_moves_matrices_of_features_alone_also_stacked_ones():
  shapes = {"kernel": (2, 3, 4, 4), "bias": (2, 4), "own": (2, 3, 4), "table": (5, 4), "plain": (4, 4)}
  axes = {
    "kernel": ("layers", "calls", "embed", "mlp"), "bias": ("layers", None), "own": ("layers", "calls", None),
    "table": ("vocab", "embed"), "plain": (None, None),
  }  # fmt: skip
  params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  gradient = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in shapes.items()}
  for name in ("kernel", "plain"):
    gradient[name] = jnp.einsum("...ij,j->...ij", jnp.linalg.qr(gradient[name])[0], jnp.arange(1.0, 5.0))
  config = schema.Optimizer(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
  optimizer = make_optimizer(config, dict.fromkeys(shapes, "trunk"), 10, axes=axes)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  for name in ("kernel", "plain"):
    assert float(jnp.sqrt(jnp.mean(updates[name] ** 2))) == pytest.approx(0.2, rel=0.3)
    values = jnp.linalg.svd(updates[name], compute_uv=False)  # Newton-Schulz brings them between 0.7 and 1.2
    assert float(jnp.max(values[..., 0] / values[..., -1])) < 2
  for name in ("bias", "own", "table"):  # Adam's first step is the sign, with Nesterov's factor (1 + b1 / (1 + b1))
    assert_allclose(updates[name], -jnp.sign(gradient[name]) * (1 + 0.9 / 1.9), rtol=1e-3)


def test_a_warm_average_forgets_the_start_and_follows_the_last_tenth():
  """Of parameters that grow as the step: 9/10 of the way after 199 updates, where a constant decay is at a tenth."""
  warm = constant = {"w": jnp.zeros(1)}
  start = 1.0
  for k in range(1, 200):
    params, decay = {"w": jnp.full(1, float(k))}, ema_decay(0.999, k)
    warm, constant = ema_update(warm, params, decay), ema_update(constant, params, 0.999)
    start *= float(decay)
  assert start == pytest.approx(10 / math.comb(199 + 10, 9), rel=1e-4)
  assert float(warm["w"][0]) / 199 == pytest.approx(0.9, abs=0.01)
  assert float(constant["w"][0]) / 199 < 0.1
  assert float(ema_decay(0.9, 10_000)) == pytest.approx(0.9)


def test_golden_run_of_the_trainer(shared):
  """EMA of the published run; and the stored moments of step 5 give the parameters of step 5 from those of step 4."""
  folder = shared / "fixtures"
  with np.load(folder / "trm_model.npz") as model, np.load(folder / "trm_optim.npz") as golden:
    names = [key.removeprefix("step1/params/") for key in golden.files if key.startswith("step1/params/")]
    steps = [{n: golden[f"step{t}/params/{n}"] for n in names} for t in range(1, 6)]
    shadow = {n: jnp.asarray(model[f"attn_T2n2/weights/{n}"]) for n in names}
    for t, params in enumerate(steps, start=1):
      shadow = ema_update(shadow, params, 0.9)
      for n in names:
        assert_kept_close(shadow[n], golden[f"step{t}/ema/{n}"], rtol=0, atol=1e-5)
    lr = float(golden["step5/lr"][1])
    optimizer = adam_atan2(lr, weight_decay=0.1)
    before, after = steps[3], steps[4]
    mu, nu = ({n: jnp.asarray(golden[f"step5/{kind}/{n}"]) for n in names} for kind in ("exp_avg", "exp_avg_sq"))
    # A gradient equal to m leaves m in place; v is pre-compensated so that it lands on the stored value.
    previous = {n: (nu[n] - 0.05 * mu[n] ** 2) / 0.95 for n in names}
    state = optimizer.init(before)
    state = (state[0]._replace(count=jnp.array(4, jnp.int32), mu=mu, nu=previous), *state[1:])
    updates, _ = optimizer.update(mu, state, before)
    for n in names:
      valid = np.asarray(previous[n] >= 0)  # float32 rounding aside, v - 0.05 m^2 can be negative when m dwarfs v
      assert valid[kept(mu[n])].mean() > 0.5
      assert_allclose(np.asarray(before[n] + updates[n])[valid], after[n][valid], rtol=0, atol=1e-5)
