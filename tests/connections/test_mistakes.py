"""What a user of the library gets wrong is said in words: fields, shapes, parameters."""

import dataclasses
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand, HyperConnection, HyperConnectionFn, reduce, Routing, StreamExpansionFn
from jpmhc_jax.connections.expansion import EXPANSIONS, REDUCTIONS
from jpmhc_jax.connections.routing import FORMS
from jpmhc_jax.connections.spec import CHOICES
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import make, parse
from jpmhc_jax.models.connections import hyper_connection_fn, stream_expansion_fn

N, D = 4, 8


def connection(width=D, **fields):
  return hyper_connection_fn(schema.Connection(**({"streams": N} | fields)), width, 0)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"read_write": "softmx"}, r"connection.read_write='softmx': expected one of .* Did you mean 'softmax'\?"),
    ({"generator": "dinamic"}, "connection.generator='dinamic': .*'dynamic'"),
    ({"norm": "rmsnrm"}, "connection.norm='rmsnrm'"),
    ({"init": "zeros"}, "connection.init='zeros'"),
    ({"parameterisation": "matrix"}, "connection.parameterisation='matrix'"),
    ({"segments": 3, "width": 64}, "connection.segments=3: expected a divisor of width=64"),
    ({"segments": 0}, "connection.segments=0: expected 1 to streams=4"),
    ({"segments": 5, "width": 40}, "connection.segments=5: expected 1 to streams=4"),
    ({"streams": 0}, "connection.streams=0: expected at least 1"),
    ({"width": 0}, "model.width=0: expected at least 1"),
    ({"temperature": 0.0}, "connection.temperature=0.0: expected a positive number"),
    ({"init_scale": float("nan")}, "connection.init_scale=nan: expected a finite number"),
  ],
)
def test_fields_of_a_config_are_refused_by_their_names_there(fields, message):
  with pytest.raises(ConfigError, match=message):
    connection(**fields)


def test_an_unknown_form_or_reduction_is_not_taken_for_another():
  with pytest.raises(ConfigError, match=r"form='lineer'.*Did you mean 'linear'\?"):
    Routing("lineer")
  with pytest.raises(ConfigError, match=r"how='maen'.*Did you mean 'mean'\?"):
    reduce(jnp.ones((2, N, D)), "maen")


@pytest.mark.parametrize(("n", "m"), [(0, 1), (-1, 1), (2, 0), (2, 3), (4, 3)])
def test_streams_that_cannot_be_made_are_refused(n, m):
  with pytest.raises(ValueError, match=f"n={n}, m={m}: expected at least one stream, and 1 to n segments .* d=8"):
    expand(jnp.ones((2, D)), n, m)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize(
  ("sublayer", "made"),
  [
    (lambda u: u[..., :1], r"\(2, 3, 1\)"),  # would spread over the streams' features
    (lambda u: jnp.concatenate([u, u], axis=-1), r"\(2, 3, 16\)"),
    (lambda u: u[:, :1], r"\(2, 1, 8\)"),
    (lambda u: ((u, None), None), "tuple"),
    (lambda u: (), "tuple"),
  ],
)
def test_an_output_of_another_shape_than_the_input_is_refused(segments, sublayer, made):
  rule = connection(segments=segments)
  x = expand(jnp.ones((2, 3, D)), N, segments)
  with pytest.raises(ValueError, match=rf"the sub-layer made {made} of \(2, 3, 8\): expected the shape it was given"):
    rule(rule.init(jax.random.key(0)), x, sublayer)


def test_parameters_of_another_connection_are_named():
  x = jnp.ones((2, N, D))
  parameters = connection(generator="static").init(jax.random.key(0))
  with pytest.raises(ValueError, match=r"parameters: no 'projection' among 'bias'; expected what `init`.*'dynamic'"):
    connection()(parameters, x, jnp.tanh)
  with pytest.raises(ValueError, match="no 'bias', 'projection', 'gate' among none"):
    connection(generator="gated").coefficients({}, x)
  # Without its bias a connection that learns one would silently be back at its start.
  with pytest.raises(ValueError, match="no 'bias' among 'projection'"):
    connection().coefficients({"projection": connection().init(jax.random.key(0))["projection"]}, x)


@pytest.mark.parametrize(
  ("generator", "bias", "norm"),
  list(itertools.product(("static", "dynamic", "gated"), (True, False), ("rmsnorm", "layernorm"))),
)
def test_the_names_are_those_that_init_makes(generator, bias, norm):
  for more in ({}, {"mixer": "choice"}, {"mixer": "iso", "parameterisation": "manifold"}):
    rule = connection(generator=generator, bias=bias, norm=norm, **more)
    assert set(jax.eval_shape(rule.init, jax.random.key(0))) == set(rule.parameter_names)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, jnp.int32, np.array])
def test_a_whole_number_of_any_library_is_a_layer_index_and_a_width(kind):
  config = schema.Connection(streams=N, init="round_robin")
  rule = hyper_connection_fn(config, kind(D), kind(1))
  plain = hyper_connection_fn(config, D, 1)
  assert rule == plain and hash(rule) == hash(plain)
  assert (type(rule.layer_index), type(rule.width)) == (int, int)
  module = HyperConnection(hyper_connection_fn(config, kind(D), kind(1)), rngs=nnx.Rngs(0))
  assert module.rule == rule and not hasattr(module, "layer_index")  # which only a stack of layers holds
  assert expand(jnp.ones(D), kind(N)).shape == (N, D)
  assert isinstance(make("sinkhorn", sweeps=kind(5)).sweeps, int) and parse("sinkhorn", "sweeps=5").sweeps == 5


@pytest.mark.parametrize("index", [True, np.arange(2)])
def test_what_is_no_whole_number_is_no_layer_index(index):
  with pytest.raises(ConfigError, match="layer_index=.*: expected a whole number"):
    hyper_connection_fn(schema.Connection(), D, index)


def test_the_config_and_the_library_have_the_same_choices_and_defaults():
  assert hyper_connection_fn(schema.Connection(), D, 0) == HyperConnectionFn(
    make("cayley"), streams=N, width=D, layer_index=0
  )
  assert stream_expansion_fn(schema.Connection(init="zero"), D) == StreamExpansionFn(streams=N, width=D)
  library = CHOICES | {"read_write": FORMS, "expand": EXPANSIONS, "reduce": REDUCTIONS}
  library["init"] = library.pop("initialisation")
  del library["ablation"]
  in_a_config = {field.name: field.metadata["choices"] for field in dataclasses.fields(schema.Connection)}
  assert library.items() <= in_a_config.items()
  of_models = {"scope", "sharing", "single_pass", "sublayer"}
  assert {name for name, choices in in_a_config.items() if choices} == {*library, *of_models}
