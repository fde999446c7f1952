"""Names, options, errors, generating sets and operation counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import (  # fmt: skip
  best_generators,
  Cayley,
  FAMILIES,
  flops,
  Hybrid,
  Iso,
  make,
  name_of,
  parse,
  PermutationMixture,
  Sinkhorn,
  spectral_gap,
)
from jpmhc_jax.mixers.permutation import generators
from jpmhc_jax.models.connections import hyper_connection_fn


def test_options_are_read_by_the_type_of_their_field():
  assert parse("cayley", "") == Cayley()
  assert parse("sinkhorn", "sweeps=5, adjoint=unrolled,clip=0") == Sinkhorn(sweeps=5, adjoint="unrolled", clip=0.0)
  assert parse("unconstrained", "tanh=true").tanh is True
  assert parse("hybrid", "first=cayley,weight=0.25") == Hybrid(first=Cayley(), weight=0.25)
  assert parse("hybrid", "first=iso(method=newton_schulz, steps=7),second=sinkhorn,weight=0.5") == Hybrid(
    first=Iso(method="newton_schulz", steps=7), second=Sinkhorn(), weight=0.5
  )
  assert parse("choice", "families=cayley(alpha=1)/permutation(permutations=0123/1032)/cayley").families == (
    Cayley(alpha=1.0), PermutationMixture(permutations="0123/1032"), Cayley(),
  )  # fmt: skip
  assert make("cayley", alpha=1) == Cayley(alpha=1.0)
  assert FAMILIES["birkhoff"] is FAMILIES["sinkhorn"]


@pytest.mark.parametrize(
  "name",
  (
    "cayley", "birkhoff_newton", "cayley(alpha=1)", "transport(delta=0.00033535)", "unconstrained(tanh=true)",
    "permutation(permutations=0123/1032)", "hybrid(first=cayley(alpha=0.5),second=sinkhorn(clip=0),weight=0.25)",
    "choice(families=hybrid(first=iso(method=newton))/permutation(permutations=0123/1032)/sinkhorn,hot=2)",
  ),
)  # fmt: skip
def test_a_name_tells_the_options_and_is_read_back(name):
  assert parse(name_of(parse(name))) == parse(name)
  assert name_of(parse(name)) == name


def test_a_family_without_a_name_goes_by_its_class():
  @dataclasses.dataclass(frozen=True)
  class Own(Cayley):
    extra: int = 2

  assert name_of(Own()) == "Own" and name_of(Own(extra=3)) == "Own(extra=3)"


def test_manifolds_are_static_arguments():
  assert len({make(name) for name in FAMILIES}) == len(FAMILIES) - 1  # "birkhoff" and "sinkhorn" are one
  assert make("iso") == Iso() and hash(make("iso")) == hash(Iso())


@pytest.mark.parametrize(
  "name, options, message",
  (
    ("caley", "", r"connection.mixer='caley'.*Did you mean 'cayley'"),
    ("cayley", "alpa=1", r"'alpa' is no option of 'cayley'; its options: alpha. Did you mean 'alpha'"),
    ("sinkhorn", "sweeps=2.5", r"sweeps='2.5': 'sinkhorn' expects an integer"),
    ("sinkhorn", "sweeps", r"'sweeps' is not of the form name=value"),
    ("sinkhorn", "sweeps=1,sweeps=2", r"'sweeps' is given twice"),
    ("sinkhorn", "adjoint=exact", r"adjoint='exact': expected one of implicit, gauss_seidel, unrolled"),
    ("sinkhorn", "sweeps=0", r"sweeps=0: expected a positive number"),
    ("sinkhorn", "clip=-1", r"clip=-1.0"),
    ("birkhoff_newton", "clip=50", r"clip=50.0: expected at most 20"),
    ("unconstrained", "tanh=yes", r"tanh='yes': 'unconstrained' expects true or false"),
    ("hybrid", "first=sinkhron", r"connection.options: first='sinkhron'.*Did you mean 'sinkhorn'"),
    ("hybrid", "first=cayley(alpa=1)", r"'alpa' is no option of 'cayley'.*Did you mean 'alpha'"),
    ("hybrid", "first=iso(method=newton", r"'\(' without its partner.*first=iso\(method=newton\),second=sinkhorn"),
    ("hybrid", "first=iso method=newton),weight=0", r"'\)' without its partner"),
    ("hybrid", "first=iso(alpha=1)x", r"first='iso\(alpha=1\)x': expected nothing behind the options of 'iso'"),
    ("hybrid", "first=iso(alpha=1,alpha=2)", r"'alpha' is given twice"),
    ("hybrid", "first=iso(steps=many)", r"steps='many': 'iso' expects an integer"),
    ("hybrid", "first=choice", r"a choice or a schedule cannot run inside a blend"),
    ("choice", "families=cayley(alpha=1/sinkhorn", r"'\(' without its partner"),
    ("choice", "families=cayley(alpha=1)/cayley(alpha=1)", r"a family is named twice"),
    ("choice", "families=cayley/hybrid(weight=0,final=1)", r"no choice or schedule among them"),
    ("hybrid", "weight=2", r"weight=2.0"),
    ("hybrid", "final=1", r"final=1.0, weight=-1.0: a schedule goes from one fraction to another"),
    ("hybrid", "weight=0,final=1,start=1", r"start=1.0, end=1.0: expected shares of the run"),
    ("circulant", "leak=0", r"leak=0.0"),
    ("transport", "delta=1", r"delta=1.0"),
    ("identity", "alpha=1", r"its options: none"),
    ("polar", "steps=0", r"steps=0"),
    ("polar", "method=svd", r"method='svd'"),
    ("orthostochastic", "copies=0", r"copies=0"),
    ("sphere", "gamma=0", r"gamma=0"),
  ),
)
def test_bad_options_are_explained(name, options, message):
  with pytest.raises(ConfigError, match=message):
    parse(name, options)


@pytest.mark.parametrize(
  "name, options, n, message",
  (
    ("kronecker", "", 3, r"streams=3: 'kronecker' needs a power of two \(2, 4, 8, …\); use 2 or 4"),
    ("kronecker", "", 1, r"streams=1"),
    ("quaternion", "", 3, r"exactly 4 streams"),
    ("permutation", "", 6, r"720 logits with basis=full; use basis=generators"),
    ("permutation", "basis=jpmhc", 3, r"4 streams with basis=jpmhc"),
    ("permutation", "permutations=012/021", 4, r"permutations of the digits 0 to 3"),
    ("permutation", "permutations=1023/0123", 4, r"the identity first"),
    ("grassmann", "rank=5", 4, r"rank=5"),
  ),
)
def test_sizes_that_do_not_exist_are_explained(name, options, n, message):
  with pytest.raises(ConfigError, match=message):
    parse(name, options).logit_shape(n)


def test_spectral_gaps():
  everything = PermutationMixture().terms(3)
  assert abs(spectral_gap(everything) - 1) < 1e-12  # one step of the full basis is uniform
  assert spectral_gap(((0, 1, 2), (1, 2, 0), (2, 0, 1))) < 1e-12  # shifts alone never leave the rotations
  assert spectral_gap(generators(4)) > 0.1
  chosen, gap = best_generators(3, 3)
  assert gap >= spectral_gap(generators(3)[:3]) and abs(spectral_gap(chosen) - gap) < 1e-9
  with pytest.raises(ValueError, match="expected 1 to 1,000,000 sets"):
    best_generators(5, 4)


@pytest.mark.slow
def test_exhaustive_search_over_four_streams():
  chosen, gap = best_generators(4, 4)
  assert len(chosen) == 4 and gap > 0.2 and abs(spectral_gap(chosen) - gap) < 1e-9


def test_named_permutations_are_used():
  manifold = PermutationMixture(permutations="0123/1032")
  matrix = manifold.project(jnp.zeros((2,)), 4)
  np.testing.assert_allclose(matrix[0], [0.5, 0.5, 0, 0])
  assert manifold.dimension(4) == 1
  assert len(set(generators(5))) == 7


@pytest.mark.parametrize("n", (2, 4))
def test_blending_is_convex_and_schedulable(n, projected):
  manifold = Hybrid()
  logits = jax.random.normal(jax.random.key(0), (*manifold.logit_shape(n), 3))
  blend = jax.jit(lambda weight: manifold.blend(logits, n, weight))
  first, second = (blend(weight) for weight in (0.0, 1.0))
  np.testing.assert_allclose(blend(0.25), 0.75 * first + 0.25 * second, atol=1e-6)
  np.testing.assert_allclose(first, projected(Iso(), n)(logits[: n * n].reshape(n, n, 3)), atol=1e-6)
  per_token = blend(jnp.asarray([0.0, 0.5, 1.0]))
  np.testing.assert_allclose(per_token[..., 2], second[..., 2], atol=1e-6)


def test_published_operation_counts():
  assert make("sinkhorn").published_flops(4) == (320, 256)
  assert make("cayley").published_flops(4) == (128, 128)
  assert make("grassmann").published_flops(4) == (8, 64)
  assert make("iso").published_flops(4) is None


def test_operations_are_counted_as_defined():
  square = jnp.ones((3, 3))
  assert flops.count(lambda x: x @ x, square) == 54
  assert flops.count(lambda x: jnp.sum(jnp.exp(x) / 2), square) == 9 + 9 + 8
  assert flops.count(lambda x: jax.lax.scan(lambda c, _: (c * c, None), x, length=5)[0], square) == 45
  assert make("unconstrained").flops(4) == (0, 0)
  forward, backward = make("cayley").flops(4)
  assert 150 < forward < 300 and 200 < backward < 350
  assert make("sinkhorn").flops(4)[0] > make("sinkhorn", sweeps=10).flops(4)[0] > forward
  # The gradient of the sweeps goes back through each of them; the implicit one is flat in their number.
  assert make("sinkhorn").flops(4)[1] > make("sinkhorn", sweeps=10).flops(4)[1]
  assert len({make("sinkhorn", sweeps=sweeps, adjoint="implicit").flops(4)[1] for sweeps in (10, 20)}) == 1


def test_a_scheduled_blend_goes_from_one_family_to_the_other():
  manifold = parse("hybrid", "first=cayley,second=sinkhorn,weight=0.2,final=1,start=0.25,end=0.75")
  assert manifold.follows_progress and not Hybrid(weight=0.2).follows_progress
  shares = [float(manifold.at(p)) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
  np.testing.assert_allclose(shares, [0.2, 0.2, 0.6, 1.0, 1.0], atol=1e-6)
  rule = hyper_connection_fn(
    schema.Connection(mixer="hybrid", options="first=cayley,second=birkhoff_newton,weight=0,final=1"), 8, 0
  )
  parameters, streams = rule.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 4, 8))
  parameters["projection"] = 100 * parameters["projection"]
  mix = jax.jit(lambda progress: rule.coefficients(parameters | {"progress": progress}, streams).mix)
  halves = [mix(jnp.float32(p)) for p in (0.0, 0.5, 1.0)]
  assert float(jnp.max(Cayley().distance(halves[0]))) < 1e-6
  assert float(jnp.max(parse("birkhoff_newton", "").distance(halves[2]))) < 1e-6
  np.testing.assert_allclose(halves[1], (halves[0] + halves[2]) / 2, atol=1e-6)
