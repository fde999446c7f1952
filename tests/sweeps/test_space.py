"""The algebra: what products, zips and chains list, what a search draws from them, and what they refuse."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.core.names import LONGEST, run_names
from jpmhc_jax.sweeps import between, Budget, cases, chain, product, seeds, Sweep, sweep, zipped
from jpmhc_jax.sweeps.space import check_size, split_seeds, SweepError

A, B = sweep("a", [1, 2]), sweep("b", ["x", "y"])


class Scripted:
  """Answers a search's questions from a list and remembers them."""

  def __init__(self, *picks):
    self.picks, self.asked = list(picks), []

  def suggest_categorical(self, name, choices):
    self.asked.append((name, list(choices)))
    return choices[self.picks.pop(0)]

  def suggest_float(self, name, low, high, *, log):
    self.asked.append((name, low, high, log))
    return self.picks.pop(0)


def test_a_product_is_every_combination_with_the_last_fastest():
  expected = [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
  assert list(product(A, B).points()) == expected
  assert len(product(A, B, seeds(5))) == 20
  assert list(product(product(A), B).points()) == expected


def test_a_zip_pairs_and_a_chain_joins():
  assert list(zipped(A, B).points()) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
  assert list(chain(zipped(A, B), cases({"c": 0})).points()) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"c": 0}]
  nested = product(chain(A, zipped(sweep("a", [3, 4]), B)), seeds(2))
  assert len(nested) == 8 and next(nested.points()) == {"a": 1, "seed": 0}


def test_a_search_draws_each_factor_by_itself_a_zip_as_one_and_a_chain_by_branches():
  trial = Scripted(1, 0, 0.25)
  space = product(A, zipped(sweep("c", [1, 2]), sweep("d", [3, 4])), between("e", 0.1, 1.0, log=True))
  assert space.suggest(trial) == {"a": 2, "c": 1, "d": 3, "e": 0.25}
  assert trial.asked == [("a", [1, 2]), ("c+d", [0, 1]), ("e", 0.1, 1.0, True)]
  trial = Scripted(1, 0)
  assert chain(A, B).suggest(trial) == {"b": "x"}
  assert trial.asked == [("branch", [0, 1]), ("1/b", ["x", "y"])]


def test_every_point_of_a_list_can_be_drawn():
  space = product(chain(A, zipped(A, B)), sweep("c", [5, 6, 7]))
  drawn = [space.suggest(Scripted(branch, i, j)) for branch in (0, 1) for i in (0, 1) for j in (0, 1, 2)]
  assert drawn == list(space.points())


def test_seeds_are_split_off_for_a_search():
  rest, found = split_seeds(product(A, seeds(3)))
  assert found == (0, 1, 2) and list(rest.points()) == [{"a": 1}, {"a": 2}]
  assert split_seeds(A)[1] == ()
  with pytest.raises(SweepError, match="seeds belong at the top level"):
    split_seeds(chain(product(A, seeds(2)), B))


@pytest.mark.parametrize(
  ("build", "expected"),
  [
    (lambda: product(A, sweep("a", [3])), "'a' is set by two"),
    (lambda: zipped(A, sweep("b", [1, 2, 3])), "have 2, 3 points"),
    (lambda: sweep("a", []), "at least one value"),
    (lambda: sweep("a", "xy"), "expected a list"),
    (lambda: sweep("a", [1, 1]), "listed twice"),
    (lambda: list(between("a", 0.1, 1).points()), "--search=optuna"),
    (lambda: between("a", 0, 1, log=True), "low > 0"),
    (lambda: cases(), "dict of config fields"),
    (lambda: product(), "at least one space"),
    (lambda: product([A, B]), "expected spaces"),
    (lambda: chain(A, None), "None: expected spaces"),
    (lambda: zipped("a", "b"), "expected spaces"),
    (lambda: sweep("a", 3), "expected a list"),
    (lambda: sweep("a", {1, 2}), "expected a list"),
    (lambda: sweep("a", {"b": 1}), "expected a list"),
    (lambda: sweep("a", np.array(3)), "expected a list"),
    (lambda: sweep("a", itertools.count()), "more than 100000 values"),
    (lambda: sweep(["a"], [1]), "name of a config field"),
    (lambda: sweep("a", [1, None]), "None: expected a number, True or False, a text"),
    (lambda: sweep("a", [{}]), "expected a number"),
    (lambda: sweep("a", [np.zeros((2, 2, 2))]), "expected a number"),
    (lambda: cases([{"a": 1}]), "expected a dict"),
    (lambda: cases({1: 2}), "name of a config field"),
    (lambda: cases({"a": {"b": 1}}), "expected a number"),
    (lambda: seeds(0), "expected how many"),
    (lambda: seeds(2.0), "expected how many"),
    (lambda: seeds([1, 2]), "listed by sweep"),
    (lambda: seeds(10**9), "1 to 100000"),
    (lambda: between("a", 1, "2"), "two numbers, not '2'"),
    (lambda: between("a", 1, float("inf")), "two numbers, not inf"),
    (lambda: between("a", float("nan"), 1), "two numbers, not nan"),
    (lambda: between("a", False, True), "two numbers, not False"),
    (lambda: between("a", 2, 2), "low < high"),
    (lambda: between("model.width", 8.5, 64), "whole numbers"),
    (lambda: between("seed", 0, 2**60), r"up to 2\^53"),
    (lambda: len(product(A, between("b", 0, 1))), "--search=optuna"),
    (lambda: Sweep([A]), "expected a space"),
    (lambda: Sweep(A, budget=5), "a kind and an amount"),
    (lambda: Sweep(A, budget="flops"), "a kind and an amount"),
    (lambda: Sweep(A, budget=("flops",)), "a kind and an amount"),
    (lambda: Sweep(A, budget=("flops", "1e9")), "positive number"),
    (lambda: Sweep(A, budget=("flops", None)), "positive number"),
    (lambda: Sweep(A, budget=(np.arange(2), 3)), "expected one of steps"),
    (lambda: Sweep(A, budget=("steps", float("inf"))), "positive number"),
    (lambda: Sweep(A, budget=("steps", float("nan"))), "positive number"),
    (lambda: Sweep(A, budget=("steps", True)), "positive number"),
    (lambda: Sweep(A, metric=3), "name of a metric"),
  ],
)
def test_what_cannot_be_is_refused_with_a_reason(build, expected):
  with pytest.raises(SweepError, match=expected):
    build()


def test_values_of_numpy_and_jax_are_those_of_python():
  values = [np.int64(4), np.float32(0.5), np.bool_(True), np.str_("x"), jnp.int32(5), jnp.float32(0.25), np.array(6)]
  plain = [point["a"] for point in sweep("a", values).points()]
  assert plain == [4, 0.5, True, "x", 5, 0.25, 6]
  assert [type(value) for value in plain] == [int, float, bool, str, int, float, int]
  for listed in (
    2 ** np.arange(4, 6),
    jnp.array([16, 32]),
    range(16, 33, 16),
    (16 * k for k in (1, 2)),
    iter([16, 32]),
  ):
    assert list(sweep("a", listed).points()) == [{"a": 16}, {"a": 32}]
  rows = sweep("a", np.array([[0.5, 0.75], [0.5, 0.25]]))
  assert list(rows.points()) == [{"a": (0.5, 0.75)}, {"a": (0.5, 0.25)}]
  assert rows.suggest(Scripted(1)) == {"a": (0.5, 0.25)}  # by its number: a study keeps no tuples
  assert run_names(list(rows.points())) == ["a=0.5x0.75", "a=0.5x0.25"]
  assert list(cases({"a": np.int32(1)}).points()) == [{"a": 1}] and len(seeds(np.int64(3))) == 3
  assert between("a", np.float32(0.5), jnp.int32(2)).suggest(Scripted(0.5)) == {"a": 0.5}
  assert Budget("steps", np.int64(5)).amount == 5 and Sweep(A, budget=["flops", np.float64(1e9)]).limit.amount == 1e9


def test_the_number_of_points_is_known_without_listing_them():
  vast = product(*(sweep(field, range(10)) for field in "abcdefghijklmnopqrstuvwxyz"))
  assert vast.size() == 10**26 and product(sweep("c", [1, 2]), chain(A, B)).size() == 8
  with pytest.raises(SweepError, match="100,000,000,000,000,000,000,000,000 points; expected at most 100,000"):
    check_size("sweep.py", vast.size())


def test_names_tell_what_differs_and_no_more():
  points = list(product(sweep("connection.mixer", ["iso", "cayley"]), sweep("steps", [10]), seeds(2)).points())
  expected = ["mixer=iso,seed=0", "mixer=iso,seed=1", "mixer=cayley,seed=0", "mixer=cayley,seed=1"]
  assert run_names(points) == expected
  arms = [{"streams": 1}, {"streams": 4, "mixer": "iso"}, {"streams": 4, "mixer": "cayley"}]
  assert run_names(arms) == ["streams=1", "mixer=iso", "mixer=cayley"]
  decays = [{"optimizer.weight_decay": 0.1, "optimizer.mixer.weight_decay": d} for d in (0.0, 1e-5)]
  assert run_names(decays) == ["weight_decay=0", "weight_decay=1e-05"]
  both = [{"optimizer.weight_decay": a, "mixer.weight_decay": b} for a in (0.0, 1.0) for b in (0.0, 1.0)]
  assert run_names(both)[1] == "optimizer.weight_decay=0,mixer.weight_decay=1"
  assert run_names([{"a": 1}]) == ["run"]


def test_names_are_unique_safe_and_short():
  odd = ["/a b", "-a:b", "a*b", "ü" * 200, "ü" * 201, "", "x" * 200, True, (1, 2)]
  names = run_names([{"options": value} for value in odd])
  assert len(set(names)) == len(odd) and max(map(len, names)) <= LONGEST
  assert all(not set(name) - set("abcdefghijklmnopqrstuvwxyzTrue0123456789=,.+-") for name in names)


def test_names_do_not_depend_on_the_order_of_the_points():
  points = list(product(A, B, seeds(2)).points())
  forwards = dict(zip(map(str, points), run_names(points), strict=True))
  backwards = dict(zip(map(str, points[::-1]), run_names(points[::-1]), strict=True))
  assert forwards == backwards
