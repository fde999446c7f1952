"""The page in a real browser: its script runs without errors, and nothing sticks out of a phone's screen."""

import csv
import html
import json
import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image
import pytest

from jpmhc_jax.reporting.glossary import COSTS, MIXERS, ROUTING, STREAMS
from jpmhc_jax.reporting.report import write_report

BROWSER = next(
  (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]
FLAGS = (
  "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
  "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=8000"
)
PROBE = (pathlib.Path(__file__).parent / "probe.js").read_text()
LISTEN = "<script>window.errors = []; addEventListener('error', e => errors.push(e.message));</script>"


def probe(report, tmp_path, width):
  """Opens the report in a frame of the given width, works its controls, and returns what they did."""
  source = report.read_text(encoding="utf-8").replace("<title>", f"{LISTEN}<title>", 1)
  page = tmp_path / "probe.html"
  frame = f'<iframe width="{width}" height="800" srcdoc="{html.escape(source)}"></iframe>'
  page.write_text(f"<!doctype html><meta charset=utf-8>{frame}<script>{PROBE}</script>", encoding="utf-8")
  command = [BROWSER, *FLAGS.split(), "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
  dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
  found = dom.rsplit('<pre id="probe">', 1)
  assert len(found) == 2, "the page did not finish loading"
  return json.loads(html.unescape(found[1].split("</pre>")[0]))


SUDOKU = [[2, 1, 4, 1], [1, 5, 1, 3], [3, 1, 5, 1], [1, 4, 1, 2]]


@pytest.fixture
def sudoku(make_run):
  """A run with every scalar that the glossary knows, in four connections, and sixty small grids."""
  folder = make_run("sudoku", data__kind="sudoku", model__token_mixer="attention")
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  for line in lines[9::10]:
    step, places = line["step"], {name.split("/")[1] for name in line if name.startswith("mixer/")}
    line |= {f"mixer/{c}/{name}": 1 + step % 60 / 50 for c in places for name in STREAMS | MIXERS | ROUTING}
    line |= {f"mixer/{c}/singular_value_{k}": 1 + step % 7 * 1e-8 for c in places for k in range(4)}
    line |= {f"mixer/{c}/angle_deg_{k}": step / (k + 1) for c in places for k in range(4)}
    line |= {name: step % 60 / 9 for name in (*COSTS, "update_ratio/block0", "gradient_norm/block0")}
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  for path in (folder / "evaluation").glob("*.json"):
    example = {"kind": "sudoku", "input": SUDOKU, "truth": SUDOKU, "predictions": [{"grid": SUDOKU, "q": 0.98}]}
    examples = [example | {"task": f"sudoku {i}", "test": 0, "solved_at": 1 if i % 3 else None} for i in range(60)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"examples": examples}))
  return folder


@pytest.mark.parametrize("width", [390, 1400])
def test_a_sudoku_page_is_short_and_whole_and_its_charts_do_what_they_offer(sudoku, tmp_path, width):
  seen = probe(write_report([sudoku], tmp_path / "report.html"), tmp_path, width)
  assert seen["errors"] == [] and seen["overflow"] == 0
  assert seen["cut"] == [] and seen["outside"] == [] and seen["broken"] == []
  assert seen["height"] <= 9000 or width < 1400
  assert seen["changed"] == []
  assert seen["tip"].startswith("400") and "loss, train" in seen["tip"] and seen["cleared"] == ""
  assert "100" not in seen["zoomed"][0].split(",") and not seen["zoomed"][1] and seen["whole"] == [True, True]
  assert seen["hidden"] == ["none", "", ""]
  assert "log scale" in seen["log"][0] and seen["log"][1] == "true"
  assert (seen["first"], seen["every"], seen["solved"], seen["found"]) == (12, 60, 40, 1)
  picture = ElementTree.fromstring(seen["svg"])
  assert picture.tag == "{http://www.w3.org/2000/svg}svg" and not re.search("var\\(|class=|style=", seen["svg"])
  strokes = {node.get("stroke") for node in picture.iter("{http://www.w3.org/2000/svg}path")}
  assert strokes and all(stroke.startswith("rgb(") for stroke in strokes)
  words = [node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")]
  assert {"Loss", "loss, train", "lm_loss, train"} <= set(words)
  table = list(csv.DictReader(seen["csv"].splitlines()))
  recorded = [json.loads(line) for line in (sudoku / "metrics.jsonl").read_text().splitlines()]
  assert [float(row["loss, train"]) for row in table] == pytest.approx([r["train/loss"] for r in recorded], rel=1e-5)
  assert [row["step"] for row in table if row["loss, evaluation"]] == ["100", "200", "300", "400"]


def test_no_tile_of_a_run_with_long_words_is_cut(make_run, tmp_path):
  report = write_report([make_run("killed", steps=130, planned=1000)], tmp_path / "report.html")
  for width in (360, 1200):
    seen = probe(report, tmp_path, width)
    assert seen["cut"] == [] and seen["broken"] == []


def test_several_runs_sort_and_filter(make_run, tmp_path):
  levels = {"cayley": 0.4, "sinkhorn": 0.2, "identity": 0.3}
  folders = [make_run(name, level=level, connection__mixer=name) for name, level in levels.items()]
  (tmp_path / "empty").mkdir()
  seen = probe(write_report([*folders, tmp_path / "empty"], tmp_path / "report.html"), tmp_path, width=1100)
  assert seen["errors"] == [] and seen["overflow"] == 0
  assert seen["ascending"] == ["sinkhorn", "identity", "cayley", "empty"] and seen["sort"] == "ascending"
  assert seen["descending"] == ["cayley", "identity", "sinkhorn", "empty"]
  assert seen["filtered"] == ["sinkhorn"]


def screenshot(report, tmp_path, width, height, *flags):
  """The page as the browser paints it, (height, width, 3) in [0, 1]."""
  picture = tmp_path / "page.png"
  command = [BROWSER, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}"]
  command += [*flags, f"--screenshot={picture}", report.as_uri()]
  subprocess.run(command, capture_output=True, timeout=120, check=True)
  with Image.open(picture) as image:
    pixels = np.asarray(image.convert("RGB")) / 255
  assert pixels.shape == (height, width, 3)
  return pixels


def test_screenshots_in_light_and_dark_on_a_desk_and_a_phone(make_run, tmp_path):
  levels = {"cayley": 0.4, "sinkhorn": 0.2}
  folders = [make_run(name, level=level, connection__mixer=name) for name, level in levels.items()]
  report = write_report(folders, tmp_path / "report.html")
  dark = "--blink-settings=preferredColorScheme=0"
  for width, height in ((1280, 2400), (390, 2400)):
    for flags, low, high in (((), 0.85, 0.99), ((dark,), 0.03, 0.25)):
      pixels = screenshot(report, tmp_path, width, height, *flags)
      assert low < pixels.mean() < high  # the paper
      assert np.abs(pixels - np.median(pixels, axis=(0, 1))).max() > 0.5  # ink on it
      # Both lines of the charts are painted: their colours are saturated and occur in number.
      saturated = pixels[np.ptp(pixels, axis=-1) > 0.3]
      assert len(saturated) > 500
      hues = saturated.argmax(axis=-1)
      assert (hues == 2).sum() > 100 and (hues == 0).sum() > 100  # blue and orange


def test_a_sweep_on_a_phone_does_not_stick_out(make_run, tmp_path):
  folder = make_run("s/connection=cayley,learning_rate=0.0001,seed=0")
  entry = {"name": folder.name, "workdir": folder.name, "state": "failed", "command": "jpmhc train " + "--x=y " * 40}
  (folder.parent / "sweep.json").write_text(json.dumps({"runs": [entry | {"message": "m" * 300, "exit_code": 1}]}))
  seen = probe(write_report([folder.parent], tmp_path / "report.html"), tmp_path, width=360)
  assert seen["errors"] == [] and seen["overflow"] == 0
