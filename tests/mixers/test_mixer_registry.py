"""A user's own family: registered by a decorator, then known wherever ours are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax import mixers
from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand
from jpmhc_jax.connections.diagnostics import connection_diagnostics
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import FAMILIES, Mixer, parse, register_mixer, Traits
from jpmhc_jax.models.connections import hyper_connection_fn


class Reflection(Mixer):
  """H = I − 2 v vᵀ / ‖v‖²: the mirror in the plane across v."""

  @property
  def traits(self):
    return Traits("reflections", orthogonal=True, contractive=True, contains_identity=False, determinant="-1")

  def logit_shape(self, n):
    return (n,)

  def dimension(self, n):
    return n - 1

  def identity_logits(self, n, strength):
    return jnp.eye(n)[0]

  def _project(self, logits, n):
    unit = logits / jnp.linalg.norm(logits, axis=0, keepdims=True)
    eye = jnp.eye(n, dtype=logits.dtype).reshape(n, n, *(1,) * (logits.ndim - 1))
    return eye - self.strength * unit[:, None] * unit[None]


@dataclasses.dataclass(frozen=True)
class Mirror(Reflection):
  strength: float = 2.0


@pytest.fixture
def mirror(monkeypatch):
  monkeypatch.setattr(mixers.registry, "FAMILIES", dict(FAMILIES))
  register_mixer("mirror")(Mirror)


def test_a_registered_family_is_read_written_and_blended(mirror):
  assert parse("mirror", "strength=1") == Mirror(strength=1.0)
  assert mixers.name_of(Mirror(strength=1.0)) == "mirror(strength=1)"
  assert parse("hybrid", "first=mirror(strength=1),second=iso,weight=0.5").first == Mirror(1.0)
  assert parse("choice", "families=mirror/cayley").families[0] == Mirror()
  with pytest.raises(ConfigError, match=r"connection.mixer='mirrors'.*Did you mean 'mirror'\?"):
    parse("mirrors")
  with pytest.raises(ConfigError, match="'strngth' is no option of 'mirror'; its options: strength. Did you mean"):
    parse("mirror", "strngth=1")
  register_mixer("mirror")(Mirror)  # the module that defines it may run twice


@pytest.mark.parametrize("parameterisation", ["logits", "manifold"])
def test_a_connection_mixes_measures_and_stores_a_registered_family(mirror, parameterisation):
  rule = hyper_connection_fn(schema.Connection(mixer="mirror", streams=3, parameterisation=parameterisation), 4, 0)

  @jax.jit
  def measured(x):
    parameters = rule.init(jax.random.key(1))
    values, mix = connection_diagnostics(rule, parameters, x)
    return values["distance_to_set"], mix, jax.grad(lambda x: jnp.sum(rule(parameters, x, jnp.tanh) ** 2))(x)

  distance, mix, gradient = measured(expand(jax.random.normal(jax.random.key(0), (5, 4)), 3))
  assert float(distance) < 1e-6
  np.testing.assert_allclose(np.linalg.det(np.moveaxis(np.atleast_3d(mix), -1, 0)), -1.0, atol=1e-5)
  assert bool(jnp.all(jnp.isfinite(gradient))) and float(jnp.max(jnp.abs(gradient))) > 0


@dataclasses.dataclass(frozen=True)
class Listed(Mirror):
  sizes: list = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare(Mirror):
  size: int


@pytest.mark.parametrize(
  ("name", "cls", "message"),
  [
    ("cayley", Mirror, r"the name is taken by jpmhc_jax.mixers.cayley.Cayley; choose another for .*Mirror"),
    ("Mirror 2", Mirror, "expected a word of lower-case letters"),
    ("other", dict, "builtins.dict is no Mixer"),
    ("other", type("Half", (Mixer,), {}), "Half lacks _project, dimension, identity_logits, logit_shape, traits"),
    ("other", Reflection, "is no frozen dataclass"),
    ("other", Listed, "option 'sizes' of .*Listed is a <class 'list'>; expected bool"),
    ("other", Bare, "option 'size' of .*Bare has no default"),
  ],
)
def test_what_is_no_family_is_refused(name, cls, message):
  before = dict(FAMILIES)
  with pytest.raises(ConfigError, match=message):
    register_mixer(name)(cls)
  assert before == FAMILIES
