"""Claims: what `--check` accepts and refuses, what the cache keeps, and that the cheap claims still hold."""

import importlib
import json
import math
import pathlib

import pytest

from experiments.claim import Cache, Claim, compare, Number

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
NAMES = sorted({path.parent.name for path in FOLDER.glob("*/run.py")} - {"faults", "fig1_spectra"})


def _claim(folder, values):
  numbers = {name: Number(value, 0.1) for name, value in values.items()}
  return Claim(folder, lambda quick, cache: numbers, seeds="1", budget="none")


def test_a_rerun_within_tolerance_passes_and_one_outside_or_incomplete_fails(tmp_path, capsys):
  assert _claim(tmp_path, {"a": 1.0, "b": math.inf}).command(["--record"]) == 0
  written = json.loads((tmp_path / "expected.json").read_text(), parse_constant=pytest.fail)["full"]
  assert set(written) == {"seeds", "budget", "hardware", "numbers"}
  assert _claim(tmp_path, {"a": 1.09, "b": math.inf}).command(["--check"]) == 0
  capsys.readouterr()
  assert _claim(tmp_path, {"a": 1.11, "b": math.inf}).command(["--check"]) == 1
  assert capsys.readouterr().out == "a: 1.11, expected 1 ± 0.1\n"
  assert _claim(tmp_path, {"a": math.nan, "b": math.inf}).command(["--check"]) == 1
  assert _claim(tmp_path, {"a": 1.0, "b": 5.0}).command(["--check"]) == 1
  assert _claim(tmp_path, {"a": 1.0, "c": 5.0}).command(["--check"]) == 1


def test_quick_and_full_numbers_are_recorded_apart(tmp_path):
  _claim(tmp_path, {"a": 1.0}).command(["--record"])
  _claim(tmp_path, {"a": 2.0}).command(["--quick", "--record"])
  assert _claim(tmp_path, {"a": 1.0}).command(["--check"]) == 0
  assert _claim(tmp_path, {"a": 1.0}).command(["--quick", "--check"]) == 1


def test_parts_are_measured_checked_and_recorded_one_by_one(tmp_path, capsys):
  def claim(first, second):
    values = {"a": first, "b": second}

    def measure(quick, cache, parts=("a", "b")):
      return {f"{part}/x": Number(values[part], 0.1) for part in parts}

    return Claim(tmp_path, measure, seeds="1", budget="none", parts=tuple(values))

  assert claim(1.0, 2.0).command(["--part=a", "--record", "--check"]) == 0
  assert claim(1.0, 2.0).command(["--part=b", "--check"]) == 1
  assert "no b numbers to compare with" in capsys.readouterr().out
  assert claim(1.0, 2.0).command(["--part=b", "--record"]) == 0
  assert claim(1.5, 2.0).command(["--part=b", "--check"]) == 0
  assert claim(1.5, 2.0).command(["--part=a", "--check"]) == 1
  assert claim(1.0, 2.0).command(["--check"]) == 0
  assert claim(1.0, 2.5).command(["--check"]) == 1
  with pytest.raises(SystemExit):
    claim(1.0, 2.0).command(["--part=c"])
  assert "'a', 'b'" in capsys.readouterr().err


def test_a_check_without_recorded_numbers_fails_and_says_so(tmp_path, capsys):
  assert _claim(tmp_path, {"a": 1.0}).command(["--check"]) == 1
  assert "no full numbers to compare with; --record writes them" in capsys.readouterr().out


def test_a_number_over_seeds_allows_two_deviations_but_never_less_than_its_floor():
  number = Number.over([1.0, 2.0, 3.0], floor=0.5)
  assert (number.value, number.spread, number.tolerance) == (2.0, 1.0, 2.0)
  assert Number.over([2.0], floor=0.5) == Number(2.0, 0.5, 0.0)
  assert compare({"x": Number(2.5, 0)}, {"x": {"value": 2.0, "tolerance": 0.5}}) == []


def test_a_bound_holds_on_any_machine_and_a_noted_value_is_not_compared(tmp_path, capsys):
  def claim(ratio, size):
    numbers = {"ratio": Number.bounded(ratio, least=2.0, most=4.0), "bytes": Number.noted(size)}
    return Claim(tmp_path, lambda quick, cache: numbers, seeds="1", budget="none")

  assert claim(3.0, 100).command(["--record"]) == 0
  written = json.loads((tmp_path / "expected.json").read_text())["full"]["numbers"]
  assert written["ratio"] == {"value": 3.0, "tolerance": None, "spread": 0.0, "least": 2.0, "most": 4.0}
  assert written["bytes"] == {"value": 100, "tolerance": None, "spread": 0.0}
  assert claim(2.1, 10**9).command(["--check"]) == 0
  capsys.readouterr()
  assert claim(1.9, 100).command(["--check"]) == 1
  assert capsys.readouterr().out == "ratio: 1.9, expected at least 2\n"
  assert claim(4.1, 100).command(["--check"]) == 1
  assert capsys.readouterr().out == "ratio: 4.1, expected at most 4\n"
  assert claim(math.nan, 100).command(["--check"]) == 1


def test_finished_parts_survive_and_other_settings_make_them_anew(tmp_path):
  made = []

  def make():
    made.append(1)
    return {"value": len(made)}

  path = tmp_path / "deep" / "cache.json"
  assert Cache(path).get("a", {"seeds": (1, 2)}, make) == {"value": 1}
  assert Cache(path).get("a", {"seeds": (1, 2)}, make) == {"value": 1}
  assert Cache(path).get("a", {"seeds": (1,)}, make) == {"value": 2}
  assert Cache(path).get("b", {}, make) == {"value": 3} and len(made) == 3


def test_parts_that_the_file_lacks_are_made_together(tmp_path):
  asked = []

  def make(missing):
    asked.append(missing)
    return [10 * k for k in missing]

  cache = Cache(tmp_path / "cache.json")
  assert cache.get("b", {}, lambda: 7) == 7
  assert cache.get_all(["a", "b", "c"], {}, make) == [0, 7, 20] and asked == [[0, 2]]
  assert Cache(cache.path).get_all(["c", "a"], {}, make) == [20, 0] and len(asked) == 1


# Claims whose full runs have not ended: the README says so, and a part's numbers are missing.
UNFINISHED = ("decoherence", "vision_claims")


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_claim_without_all_numbers_says_so(name):
  expected = FOLDER / name / "expected.json"
  full = json.loads(expected.read_text()).get("full", {}) if expected.is_file() else {}
  recorded = {number.partition("/")[0] for number in full.get("numbers", {})}
  assert recorded < set(importlib.import_module(f"experiments.{name}.run").CLAIM.parts)
  readme = " ".join((FOLDER / name / "README.md").read_text().split())
  assert "not run to its end yet" in readme
  assert len((FOLDER / name / "README.md").read_text().splitlines()) <= 30


@pytest.mark.parametrize("name", sorted({*NAMES} - {*UNFINISHED}))
def test_every_claim_states_its_outcome_and_what_it_expects(name):
  assert len((FOLDER / name / "README.md").read_text().splitlines()) <= 30
  expected = json.loads((FOLDER / name / "expected.json").read_text())
  assert expected["full"]["numbers"] and expected["full"]["hardware"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixer_accuracy", "mixer_costs"])
def test_the_cheap_claims_hold(name, tmp_path):
  claim = importlib.import_module(f"experiments.{name}.run").CLAIM
  assert claim.command(["--quick", "--check", f"--cache={tmp_path / 'cache.json'}"]) == 0
