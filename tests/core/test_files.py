"""Strict JSON: what is no number there is null or a word, and older files are still read."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.core.files import from_json, to_json

ODD = {"a": [1, math.nan, {"b": -math.inf}], "c": (math.inf, 0.5), "d": None, "e": "NaN-like", "f": True}


def _strict(text):
  def refuse(token):
    raise AssertionError(f"{token} is no JSON")

  return json.loads(text, parse_constant=refuse)


def test_what_json_does_not_have_is_null():
  assert _strict(to_json(ODD)) == {
    "a": [1, None, {"b": None}], "c": [None, 0.5], "d": None, "e": "NaN-like", "f": True,
  }  # fmt: skip
  assert to_json({"a": 0.1, "b": [1]}, indent=2) == json.dumps({"a": 0.1, "b": [1]}, indent=2)


def test_words_are_read_as_the_same_numbers_again_and_so_are_bare_tokens():
  for text in (to_json(ODD, words=True), json.dumps(ODD)):
    value = from_json(text)
    assert math.isnan(value["a"][1]) and value["a"][2] == {"b": -math.inf} and value["c"] == [math.inf, 0.5]
    assert (value["d"], value["e"], value["f"]) == (None, "NaN-like", True)
  assert _strict(to_json(ODD, words=True))["a"] == [1, "NaN", {"b": "-Infinity"}]


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_scalars_and_arrays_are_numbers_and_lists(array):
  values = {"i": array(3), "f": array(0.5, np.float32), "b": array(True), "a": array([[1, 2]]), "n": array([1, np.nan])}
  assert _strict(to_json(values)) == {"i": 3, "f": 0.5, "b": True, "a": [[1, 2]], "n": [1, None]}
  with pytest.raises(TypeError, match="a object is no value of JSON"):
    to_json({"x": object()})
