"""Numbers, paths and names on the command line: what each verb refuses in words, with exit code 2, before any work."""

import argparse
import pathlib

import pytest

from jpmhc_jax.core import arguments, objects
from jpmhc_jax.main import main, parser

TYPES = {
  "whole": (arguments.whole(1, 9), {"1": 1, "9": 9, " 5 ": 5}, ("0", "10", "-1", "1.5", "1e3", "nan", "")),
  "count": (arguments.whole(0), {"0": 0, "2147483647": 2**31 - 1}, ("-1", "2147483648", "9" * 5000)),
  "wholes": (arguments.wholes(1), {"12,48": (12, 48), "3": (3,)}, ("0", "", "1,", "1,,2", "12,-48", "1.5,2", "nan")),
  "number": (arguments.number(0), {"0": 0.0, "1e-3": 1e-3}, ("-1", "nan", "inf", "-inf", "1e999", "one", "")),
  "positive": (arguments.number(0, 10, above=True), {"1e-9": 1e-9, "10": 10.0}, ("0", "-0.0", "-1", "10.1", "nan")),
  "path": (arguments.path, {"a b": pathlib.Path.cwd() / "a b", ".": pathlib.Path.cwd()}, ("", " ", "gs://a/b")),
  "stored": (arguments.stored, {"s3://a/b": objects.ObjectPath("s3://a/b"), ".": pathlib.Path.cwd()}, ("", "az://a/b")),
  "line": (arguments.line, {"arc 1": "arc 1"}, ("", " ", "a\nb", "a\u2028b")),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_type_reads_what_is_in_its_bounds_and_names_what_is_not(name):
  read, good, bad = TYPES[name]
  assert {text: read(text) for text in good} == good
  for text in bad:
    with pytest.raises(argparse.ArgumentTypeError) as refusal:
      read(text)
    assert str(refusal.value).startswith(f"{text!r}: expected ")


def _options():
  """(verb, option, type) of every option of the command line that takes a value which is not one of a list."""
  for verb, sub in next(iter(parser()._subparsers._group_actions)).choices.items():
    for action in sub._actions:
      if action.option_strings and action.nargs is None and not action.choices:
        yield verb, action.option_strings[-1], action.type


NUMERIC = [option for option in _options() if option[2] not in (None, arguments.path, arguments.stored, arguments.line)]


@pytest.mark.parametrize(("verb", "option", "read"), NUMERIC, ids=lambda value: value if isinstance(value, str) else "")
def test_every_number_of_every_verb_has_its_bounds(verb, option, read, capsys):
  for text in ("nan", "inf", "-inf", "-1", "-1e9", "1e400", "", "x"):
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
      read(text)
  with pytest.raises(SystemExit) as end:
    main([verb, f"{option}=-1"])
  assert end.value.code == 2
  assert f"argument {option}: '-1': expected " in capsys.readouterr().err


def test_no_number_and_no_path_is_read_without_bounds():
  assert {read for _, _, read in _options()}.isdisjoint({int, float, pathlib.Path})
  numeric = {verb for verb, _, _ in NUMERIC}
  assert numeric == {"spectrum", "sweep", "train", "evaluate", "generate", "figures", "export", "latents", "predict"}


def test_zero_is_refused_where_it_means_nothing():
  reads = {option: read for verb, option, read in NUMERIC if verb == "spectrum"}
  for option in ("--depth", "--n", "--sigma-w", "--threshold", "--lanczos-steps", "--probes", "--examples"):
    with pytest.raises(argparse.ArgumentTypeError, match="'0': expected"):
      reads[option]("0")
