"""The layout: what is exchanged between devices in the compiled step, slices, and errors that name leaf and remedy."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core import sharding
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.step import make_train_step

COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)
POSITIONS, STREAMS = 17, 3  # no parameter has an axis of the one size and an axis of the other
WAYS = {
  "data": schema.Mesh(data=8),
  "fsdp": schema.Mesh(data=1, fsdp=8),
  "tensor": schema.Mesh(data=4, tensor=2),
  "all": schema.Mesh(data=2, fsdp=2, tensor=2),
  "slices": schema.Mesh(data=4, fsdp=2, slices=2),
}


def _exchanged(mixer, mesh, **changes):
  """(kind, shapes) of every collective in the compiled step of a network with this mixer."""
  model = dataclasses.replace(tiny.config().model, recursion=schema.Recursion(outer=1, inner=1, max_steps=4))
  connection = schema.Connection(mixer=mixer, streams=STREAMS)
  setup = tiny.setup(tiny.config(**({"mesh": mesh, "model": model, "connection": connection} | changes)))
  state = jax.eval_shape(setup.create)
  text = make_train_step(setup).lower(state, state.carry.data).compile().as_text()
  found = []
  for line in text.splitlines():
    if match := COLLECTIVE.search(line):
      shapes = [tuple(map(int, dims.split(","))) if dims else () for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])]
      found.append((match[2], shapes))
  return found


def _assert_mixers_exchange_nothing(mesh, mixers):
  plain = _exchanged("identity", mesh)
  kinds = collections.Counter(kind for kind, _ in plain)
  assert kinds
  for mixer in mixers:
    found = _exchanged(mixer, mesh)
    assert collections.Counter(kind for kind, _ in found) == kinds, mixer
    assert sum(len(shapes) for _, shapes in found) == sum(len(shapes) for _, shapes in plain), mixer
    assert not [s for _, shapes in found for s in shapes if {POSITIONS, STREAMS} <= set(s)], mixer


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_mixers_add_no_collective(way):
  _assert_mixers_exchange_nothing(WAYS[way], ["cayley", "sinkhorn"])


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_leaves_activations_where_they_are():
  found = _exchanged("cayley", WAYS["fsdp"])
  assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
  assert not [shapes for _, shapes in found for s in shapes if POSITIONS in s]


@pytest.mark.slow
def test_fsdp_leaves_the_activations_of_the_decoder_where_they_are_too(tmp_path):
  for k in range(12):
    (tmp_path / f"module{k}.py").write_text(f"def f{k}(x):\n  return x + {k}\n" * (5 + k))
  text = schema.TextData(folder=str(tmp_path), window=POSITIONS, held_out=4)
  changes = {
    "data": schema.Data(kind="text", prefetch=0, epochs_per_interval=1, text=text),
    "model": schema.Model(kind="decoder", width=16, heads=2, layers=3, mlp_multiple=8, loss="softmax"),
  }
  found = _exchanged("cayley", WAYS["fsdp"], **changes)
  assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
  assert not [shapes for _, shapes in found for s in shapes if POSITIONS in s]


def test_every_device_of_a_parameter_group_lies_in_one_slice():
  assert meshes.deal([0, 1, 0, 1, 0, 1, 0, 1], 2) == [[0, 2, 4, 6], [1, 3, 5, 7]]
  assert meshes.deal([0, 0, 1, 1, 2, 2, 3, 3], 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  for where, count in (([0, 1] * 4, 3), ([0, 0, 0, 1], 2)):
    with pytest.raises(ConfigError, match=f"mesh.slices={count}: the devices lie on 2 slices or hosts"):
      meshes.deal(where, count)
  mesh = make_mesh(WAYS["slices"])
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
  ids = np.vectorize(lambda device: device.id)(mesh.devices).reshape(2, 4)
  assert [sorted(half) for half in ids.tolist()] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
  ("shape", "names", "message"),
  [
    ((6, 4), ("embed", None), r"mesh.fsdp=4 does not divide axis 'embed' of size 6 \(parameter \['w'\]\); use a div"),
    ((8, 4), ("embd", None), r"parameter \['w'\]: logical axis 'embd' has no rule; add it to PARAMETERS"),
    (
      (8, 4),
      ("embed",),
      r"parameter \['w'\] of shape \(8, 4\): logical axes \('embed',\); give its nnx.Param one name",
    ),
  ],
)
def test_a_leaf_that_is_not_covered_or_not_divisible_is_named(shape, names, message):
  mesh = make_mesh(schema.Mesh(data=2, fsdp=4))
  with pytest.raises(ConfigError, match=message):
    meshes.shardings(mesh, {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, {"w": names})


def test_slices_divide_the_data_axis():
  with pytest.raises(ConfigError, match="mesh.slices=3: expected a divisor of the 4 devices along mesh.data"):
    make_mesh(schema.Mesh(data=4, fsdp=2, slices=3))


def test_an_activation_is_named_axis_by_axis():
  x = jnp.ones((2, 3, 4))
  assert sharding.constrain(x, "batch", "positions", "features") is x
  with pytest.raises(ValueError, match="2 names"):
    sharding.constrain(x, "batch", "features")
  with pytest.raises(KeyError):
    sharding.constrain(x, "batch", "positions", "embed")
