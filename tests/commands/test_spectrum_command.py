"""jpmhc spectrum keeps what it computed, marks what it could not, and says how long it takes."""

import io
import json
import math
import os
import signal

import pytest
from rich.console import Console

from jpmhc_jax.core.errors import differing_digits
from jpmhc_jax.main import main
from jpmhc_jax.spectral import density, dyson, table
from jpmhc_jax.training import progress


def _strict(path):
  def refuse(word):
    raise ValueError(word)

  return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def unsolved(monkeypatch):
  """The Dyson equation is solved for no row, by a hair."""

  def spectrum(*_, **__):
    raise dyson.NotSolvedError.of(dyson.SOLVED * (1 + 1e-6))

  monkeypatch.setattr(density, "spectrum", spectrum)


@pytest.mark.slow
def test_a_row_that_is_not_solved_is_sampled_and_marked(unsolved, tmp_path, capsys):
  assert main(["spectrum", "--mixer=cayley,sinkhorn", "--n=3", "--depth=2", "--draw=random", f"--out={tmp_path}"]) == 0
  out = capsys.readouterr().out
  assert out.count("sampled\n") == 2 and "recommended: cayley" in out
  head, units = out.splitlines()[1:3]
  assert head.split()[:2] == ["mixer", "depth"] and units.split()[0] == "layers" and len(units) == len(head)
  assert "a residual of 0.001000001, expected less than 0.001;" in out
  report = _strict(tmp_path / "spectrum.json")
  assert report["complete"] and [row["mixer"] for row in report["predictions"]] == ["cayley", "sinkhorn"]
  for row in report["predictions"]:
    assert row["residual"] is None and row["remark"] and row["dead"] == 0
  cayley, sinkhorn = report["predictions"]
  assert abs(cayley["mean_log"]) < 0.05 and sinkhorn["mean_log"] < -1
  assert (tmp_path / "spectrum.svg").stat().st_size > 5000


@pytest.mark.slow
def test_a_recursion_has_rows_with_the_coherence_of_its_weights(tmp_path, capsys):
  """A static rotation decoheres repeated weights, identity cannot; what is sampled is marked."""
  words = ["spectrum", "--mixer=identity,polar", "--n=2", "--depth=2", "--calls=2", "--tied=0.9", "--draw=random"]
  assert main([*words, f"--out={tmp_path}"]) == 0
  assert "no recommendation: " in (out := capsys.readouterr().out) and "2 calls with similarity 0.9" in out
  identity, polar = _strict(tmp_path / "spectrum.json")["predictions"]
  assert identity["depth"] == 4 and abs(identity["coherence"] - 1) < 1e-6 and polar["coherence"] < 0.9
  assert max(identity["residual"], polar["residual"]) < 1e-6
  assert "coherence is how much" in out


def test_a_slow_row_is_announced_before_it_starts():
  depths, lines = (1, 60, 25_000), []

  def rows():
    for depth in depths:
      lines.append(f"row {depth}")
      yield depth

  found = list(table.announced(rows(), [("sinkhorn", depth) for depth in depths], 4, lines.append))
  assert found == [*depths]
  assert [line.split(";")[0] for line in lines] == [
    "row 1",
    "  sinkhorn, depth 60: at most about 2 min",
    "row 60",
    "  sinkhorn, depth 25000: at most about 6 min",
    "row 25000",
  ]


def test_a_family_that_does_not_exist_for_so_many_streams_is_a_row(unsolved, tmp_path, capsys):
  assert main(["spectrum", "--mixer=quaternion,cayley", "--n=3", "--depth=2", f"--out={tmp_path}"]) == 2
  captured = capsys.readouterr()
  assert "quaternion           2  not predicted: " in captured.out and "no recommendation: " in captured.out
  assert captured.err.endswith("not predicted: quaternion at depth 2; all other rows are written\n")
  report = _strict(tmp_path / "spectrum.json")
  assert [row["mixer"] for row in report["predictions"]] == ["cayley"]
  assert "exactly 4 streams" in report["absent"][0]["reason"]


def test_an_interrupt_leaves_the_rows_that_are_done(tmp_path, capsys, monkeypatch):
  calls = []

  def spectrum(*_, **__):
    calls.append(1)
    if len(calls) == 2:
      os.kill(os.getpid(), signal.SIGINT)
    raise dyson.NotSolvedError("it was not tried")

  monkeypatch.setattr(density, "spectrum", spectrum)
  before = signal.getsignal(signal.SIGINT)
  assert main(["spectrum", "--mixer=cayley", "--n=3", "--depth=1,2,3", f"--out={tmp_path}"]) == 75
  assert signal.getsignal(signal.SIGINT) is before
  error = capsys.readouterr().err
  assert "SIGINT at cayley, depth 2" in error and error.endswith("what was computed until then is written\n")
  report = _strict(tmp_path / "spectrum.json")
  assert not report["complete"] and [row["depth"] for row in report["predictions"]] == [1]
  assert (tmp_path / "spectrum.svg").is_file()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--depth=312501"], "depth=312501 of 4 streams: expected depth · streams³ of at most 2e+07, a depth of 312500"),
    (["--sigma-w=1000", "--depth=2", "--activation=nothing"], "activation='nothing': expected one of relu"),
    (["--draw=some"], "draw='some': expected one of init, random"),
    (["--mixer=,"], "--mixer=',': names no family; expected some of identity"),
    (["--noise=some"], "noise='some': expected one of block, full"),
    (["--calls=3", "--sharing=some"], "sharing='some': expected one of all, per_call"),
  ],
)
def test_what_no_row_could_be_predicted_with_is_refused_at_once(arguments, words, tmp_path, capsys):
  assert main(["spectrum", *arguments, f"--out={tmp_path}"]) == 2
  assert words in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_family_has_a_row_in_one_command(tmp_path, capsys):
  assert main(["spectrum", "--mixer=all", "--n=3", "--depth=1,2", "--noise=block", f"--out={tmp_path}"]) == 0
  report = _strict(tmp_path / "spectrum.json")
  assert len(report["predictions"]) == 40 and not report["absent"]  # all but kronecker and quaternion
  assert all(math.isfinite(row["mean_log"]) and 0 <= row["stalled"] <= 1 for row in report["predictions"])


def test_a_log_shows_the_share_that_is_done_and_the_time_left(monkeypatch):
  log = io.StringIO()
  now = iter([0.0, 5.0, 12.0, 25.0, 30.0, 50.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
  with progress.Waiting(Console(file=log)) as shown:
    for share in (0.001, 0.01, 0.25, 0.3, 0.5):
      shown.tick("iso, depth 48", share)
  assert log.getvalue().splitlines() == [
    "iso, depth 48: 1% of all",
    "iso, depth 48: 25% of all, about 1 min 15 s left",
    "iso, depth 48: 50% of all, about 50 s left",
  ]


def test_a_terminal_shows_a_bar():
  screen = io.StringIO()
  with progress.Waiting(Console(file=screen, force_terminal=True, width=100)) as shown:
    shown.tick("iso, depth 48", 0.25)
    shown._bar.refresh()
  assert "iso, depth 48" in screen.getvalue() and "25%" in screen.getvalue()


@pytest.mark.parametrize(
  ("pair", "words"),
  [((4e3, 1e-3), ("4e+03", "0.001")), ((1.0001e-3, 1e-3), ("0.0010001", "0.001")), ((1.0, 1.0), ("1", "1"))],
)
def test_two_numbers_that_differ_look_different(pair, words):
  assert differing_digits(*pair) == words
