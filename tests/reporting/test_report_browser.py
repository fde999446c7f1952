"""The page in a real browser: its script runs without errors, and nothing sticks out of a phone's screen."""

import html
import json
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from jpmhc_jax.reporting.report import write_report

BROWSER = next(
  (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]
FLAGS = (
  "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
  "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=8000"
)
PROBE = """
<script>
const frame = document.querySelector('iframe');
frame.addEventListener('load', () => {
  const doc = frame.contentDocument, out = {};
  const all = s => [...doc.querySelectorAll(s)];
  const input = node => node.dispatchEvent(new Event('input', {bubbles: true}));
  out.overflow = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
  out.cut = all('.tiles > div').filter(tile => tile.scrollWidth > tile.clientWidth).map(tile => tile.textContent);
  const plot = doc.querySelector('.plot');
  plot.dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}));
  out.tip = plot.querySelector('.tip').textContent;
  plot.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}));
  out.cleared = plot.querySelector('.tip').textContent;
  const gallery = doc.querySelector('.gallery');
  if (gallery) {
    const shown = () => [...gallery.querySelectorAll('.card')].filter(c => !c.hidden).length;
    gallery.querySelector('input[value=solved]').checked = true; input(gallery.querySelector('form'));
    out.solved = shown();
    gallery.querySelector('input[value=all]').checked = true;
    gallery.querySelector('.find').value = gallery.querySelector('.card').dataset.task;
    input(gallery.querySelector('form'));
    out.found = shown();
  }
  const box = doc.querySelector('.filterable');
  if (box) {
    const column = [...box.querySelectorAll('thead th')].findIndex(th => th.textContent.startsWith('best'));
    const head = box.querySelectorAll('thead th')[column];
    const order = () => [...box.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent);
    head.querySelector('button').click(); out.ascending = order(); out.sort = head.getAttribute('aria-sort');
    head.querySelector('button').click(); out.descending = order();
    box.querySelector('.find').value = 'sinkhorn complete'; input(box.querySelector('form'));
    out.filtered = [...box.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent);
  }
  const probe = document.createElement('pre');
  probe.id = 'probe'; probe.textContent = JSON.stringify({...out, errors: frame.contentWindow.errors});
  document.body.append(probe);
});
</script>
"""
LISTEN = "<script>window.errors = []; addEventListener('error', e => errors.push(e.message));</script>"


def probe(report, tmp_path, width):
  """Opens the report in a frame of the given width, works its controls, and returns what they did."""
  source = report.read_text(encoding="utf-8").replace("<title>", f"{LISTEN}<title>", 1)
  page = tmp_path / "probe.html"
  frame = f'<iframe width="{width}" height="800" srcdoc="{html.escape(source)}"></iframe>'
  page.write_text(f"<!doctype html><meta charset=utf-8>{frame}{PROBE}", encoding="utf-8")
  command = [BROWSER, *FLAGS.split(), "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
  dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
  found = dom.rsplit('<pre id="probe">', 1)
  assert len(found) == 2, "the page did not finish loading"
  return json.loads(html.unescape(found[1].split("</pre>")[0]))


def test_one_run_on_a_phone(make_run, tmp_path, arc_examples):
  report = write_report([make_run("cayley")], tmp_path / "report.html")
  seen = probe(report, tmp_path, width=360)
  assert seen["errors"] == [] and seen["overflow"] == 0
  assert seen["tip"].startswith("400") and "loss, train" in seen["tip"] and seen["cleared"] == ""
  assert seen["solved"] == sum(bool(e["solved_at"]) for e in arc_examples) and seen["found"] == 1


def test_no_tile_of_the_summary_is_cut(make_run, tmp_path):
  report = write_report([make_run("killed", steps=130, planned=1000)], tmp_path / "report.html")
  for width in (360, 1200):
    assert probe(report, tmp_path, width)["cut"] == []


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
