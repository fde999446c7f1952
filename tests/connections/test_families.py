"""Every family × generator × parameterisation: parameters, gradients, start, diagnostics; one compilation a family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand, reduce
from jpmhc_jax.connections.diagnostics import connection_diagnostics
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import FAMILIES, make
from jpmhc_jax.models.connections import hyper_connection_fn

N, D, TOKENS = 4, 8, 6
GENERATORS = ("static", "dynamic", "gated")
# These run always, the others with the slow tests and without the gradients of the gate, which are the same for all.
QUICK = ("sinkhorn", "cayley")


def _rules(family):
  """generator × parameterisation -> connection, where the family has the parameterisation."""
  rules = {}
  for parameterisation in ("logits", "manifold"):
    for generator in GENERATORS:
      config = schema.Connection(mixer=family, generator=generator, parameterisation=parameterisation, streams=N)
      try:
        rules[generator, parameterisation] = hyper_connection_fn(config, D, layer_index=1)
      except ConfigError:
        assert parameterisation == "manifold"
  return rules


def _sublayer(u):
  return 3.0 * jnp.tanh(u)


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_parameters_gradients_and_start_of_every_generator_and_parameterisation(family):
  rules = _rules(family)
  logits = sum(rules["dynamic", "logits"].logit_sizes)
  parameters = {case: rule.init(jax.random.key(0)) for case, rule in rules.items()}
  for (generator, parameterisation), values in parameters.items():
    stored = {"mixer"} if parameterisation == "manifold" else {"choice"} & values.keys()
    expected = {"static": {"bias"}, "dynamic": {"bias", "projection"}, "gated": {"bias", "projection", "gate"}}
    assert values.keys() == expected[generator] | stored
    assert all(leaf.dtype == jnp.float32 for leaf in values.values())
    if parameterisation == "logits":
      assert values["bias"].shape == (logits,)
    if generator != "static":
      assert values["projection"].shape == (N, D, values["bias"].size)

  x = jax.random.normal(jax.random.key(1), (TOKENS, D))
  streams = jax.random.normal(jax.random.key(2), (TOKENS, N, D))
  target = jax.random.normal(jax.random.key(3), (TOKENS, N, D))

  def loss(parameters):
    cases = [case for case in rules if family in QUICK or case[0] != "gated"]
    return sum(jnp.sum(jnp.square(rules[c](parameters[c], streams, _sublayer) - target)) for c in cases)

  @jax.jit
  def everything(parameters):
    starts = {case: reduce(rule(parameters[case], expand(x, N), _sublayer)) for case, rule in rules.items()}
    measured, _ = connection_diagnostics(rules["dynamic", "logits"], parameters["dynamic", "logits"], streams)
    return starts, jax.grad(loss)(parameters), measured

  starts, gradients, measured = everything(parameters)
  plain = x + _sublayer(x)
  for (generator, parameterisation), start in starts.items():
    rule = rules[generator, parameterisation]
    manifold, point = rule.mixer, parameters[generator, parameterisation].get("mixer")
    if point is None:
      off = manifold.identity_error(N, rule.identity_bias)
    else:
      off = float(jnp.max(jnp.abs(rule.mixer.of_point(point) - jnp.eye(N))))
    rows = 0.0 if manifold.traits.row_sums_one and manifold.traits.exact else N * off * float(jnp.max(jnp.abs(x)))
    # The random projection moves the start a little, the gate of 0.01 a hundredth of that, a static one not at all.
    slack = {"static": 5e-6, "gated": 5e-3, "dynamic": 0.3}[generator]
    np.testing.assert_allclose(start, plain, atol=slack + rows, err_msg=f"{generator} {parameterisation}")
  for case, tree in gradients.items():
    for name, gradient in tree.items() if family in QUICK or case[0] != "gated" else ():
      assert np.isfinite(gradient).all() and float(jnp.max(jnp.abs(gradient))) > 0, (case, name)
  values = {name: float(value) for name, value in measured.items()}
  assert all(np.isfinite(list(values.values()))), values
  assert values["frozen_gradient"] == 0 and values["logit_saturation"] < 0.3, values
  assert ("mixer_sensitivity" in values) == (make(family).logit_shape(N) != (0,))
