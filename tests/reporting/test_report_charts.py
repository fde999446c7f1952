"""Charts: ticks, thinning, gaps and bands put the ink where the numbers are."""

import importlib.resources
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given, strategies
import numpy as np
import pytest

from jpmhc_jax.reporting.charts import Chart, chart, draw, gallery
from jpmhc_jax.reporting.examples import draw_grid
from jpmhc_jax.reporting.glossary import meaning
from jpmhc_jax.reporting.lines import Line, running_mean, smoothed
from jpmhc_jax.reporting.scales import nice_ticks, tick_label

FINITE = strategies.floats(-1e6, 1e6, allow_subnormal=False)


def paths(figure: str, kind: str) -> list[str]:
  return re.findall(rf'<path d="([^"]*)" class="{kind}"', figure)


def points(path: str) -> np.ndarray:
  return np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path)[1:]])


@given(FINITE, strategies.floats(1e-9, 1e9))
def test_ticks_are_few_round_and_inside(low, width):
  high = low + width
  if high - low < 1e-6 * max(abs(low), 1e-3):
    return  # narrower than a reader could tell apart
  ticks = nice_ticks(low, high)
  assert 2 <= len(ticks) <= 12
  assert all(low - 1e-6 * width <= t <= high + 1e-6 * width for t in ticks)
  gaps = np.diff(ticks)
  np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)
  assert float(f"{gaps[0]:.3g}") == pytest.approx(gaps[0]) and f"{gaps[0]:.0e}"[0] in "125"


def test_a_line_goes_through_its_points():
  figure = chart("t", [Line("a", np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.5]))], "step")
  ElementTree.fromstring(re.search(r"<svg.*?</svg>", figure, re.S)[0])
  xy = points(paths(figure, "line")[0])
  assert xy[1, 0] == pytest.approx((xy[0, 0] + xy[2, 0]) / 2, abs=0.1)
  heights = xy[0, 1] - xy[:, 1]  # SVG's y axis points down
  assert heights[2] == pytest.approx(heights[1] / 2, abs=0.1) and heights[1] > 0


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.2, 1.0], [0.0, 0.0]])
def test_no_axis_of_shares_goes_beyond_100_percent(values):
  figure = chart("t", [Line("a", np.arange(2.0), np.array(values))], "step", percent=True)
  drawn = re.search(r"<svg.*?</svg>", figure, re.S)[0]
  labels = [float(text) for text in re.findall(r'text-anchor="end"[^>]*>([\d.]+)</text>', drawn)]
  assert max(labels) == 100 if max(values) else max(labels) <= 100
  assert points(paths(figure, "line")[0])[:, 1].min() >= 8  # inside the picture


def test_scalars_have_readable_names():
  names = ("train/gradient_norm", "time/step_ms", "angle_deg", "angle_deg_0", "singular_value_3")
  assert [meaning(name).title for name in names] == [
    "Gradient norm", "Step time (ms)", "Rotation angles (degrees)", "Rotation angle 0 (degrees)", "Singular value 3",
  ]  # fmt: skip


def test_a_wide_positive_range_is_drawn_in_decades():
  values = np.array([1.0, 1e-2, 1e-4])
  figure = chart("t", [Line("a", np.arange(3.0), values)], "step")
  assert "log scale" in figure
  y = points(paths(figure, "line")[0])[:, 1]
  assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.15)
  assert "log scale" not in chart("t", [Line("a", np.arange(3.0), values - 1e-3)], "step")


def test_thinning_keeps_the_ends_and_every_spike():
  values = np.sin(np.arange(20000.0))
  values[7777] = 50.0
  figure = chart("t", [Line("a", np.arange(20000.0), values)], "step")
  xy = points(paths(figure, "line")[0])
  assert len(xy) <= 1202
  assert xy[:, 1].min() == pytest.approx(xy[np.argmin(xy[:, 1]), 1]) and xy[:, 1].min() < xy[:, 1].max() - 100
  assert (xy[0, 0], xy[-1, 0]) == (46.0, 382.0)


def test_gaps_break_the_line_and_a_flat_or_single_value_still_shows():
  gap = chart("t", [Line("a", np.arange(5.0), np.array([1.0, 2.0, np.nan, 2.0, 1.0]))], "step")
  assert paths(gap, "line")[0].count("M") == 2
  assert 'class="line"' in chart("t", [Line("a", np.arange(3.0), np.zeros(3))], "step")
  assert "<circle" in chart("t", [Line("a", np.array([7.0]), np.array([0.25]))], "step", log_x=True)
  assert "Nothing was recorded" in chart("t", [], "step")


def test_the_running_mean_has_no_lag_and_keeps_gaps():
  ramp = np.arange(50.0)
  np.testing.assert_allclose(running_mean(ramp, 6)[6:-6], ramp[6:-6], rtol=1e-12)
  holes = np.where(np.arange(50) % 7 == 3, np.nan, 4.0)
  smooth = running_mean(holes, 5)
  np.testing.assert_array_equal(np.isnan(smooth), np.isnan(holes))
  np.testing.assert_allclose(smooth[np.isfinite(smooth)], 4.0)


def test_a_band_spans_low_to_high():
  ones = np.ones(3)
  figure = chart("t", [Line("a", np.arange(3.0), 2 * ones, low=ones, high=3 * ones)], "step")
  band, line = points(paths(figure, "band")[0].rstrip("Z"))[:, 1], points(paths(figure, "line")[0])[0, 1]
  assert line - band.min() == pytest.approx(band.max() - line, abs=0.15) and len(set(band)) == 2


@pytest.mark.parametrize(
  ("value", "label"), [(12000, "12k"), (0.25, "0.25"), (1e-6, "1e-6"), (-0.5, "−0.5"), (3e6, "3M")]
)
def test_tick_labels_are_short(value, label):
  assert tick_label(value) == label


def test_a_drawn_grid_covers_every_cell_once_in_its_colour():
  grid = np.random.default_rng(0).integers(0, 10, (7, 5)).tolist()
  figure = draw_grid("arc", grid, "Answer")
  seen = {}
  for path, colour in re.findall(r'<path d="([^"]*)" class="c(\d)"', figure):
    for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1", path):
      for column in range(int(x), int(x) + int(width)):
        assert (int(y), column) not in seen
        seen[int(y), column] = int(colour)
  assert seen == {(y, x): grid[y][x] for y in range(7) for x in range(5)}


def _contrast(first: str, second: str) -> float:
  """Of two colours #rgb or #rrggbb, from 1 to 21 (WCAG 2)."""

  def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = np.array([int(digits[k : k + 2], 16) for k in (0, 2, 4)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

  bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
  return (bright + 0.05) / (dark + 0.05)


def test_a_wrong_cell_is_framed_so_that_it_is_seen_on_every_colour():
  sheet = importlib.resources.files("jpmhc_jax.reporting").joinpath("page.css").read_text()
  wrong, rim = (re.search(rf"\.{name} \{{[^}}]*stroke: (#\w+)", sheet)[1] for name in ("wrong", "rim"))
  for colour in range(10):
    cell = re.search(rf"\.c{colour} \{{ fill: (#\w+)", sheet)[1]
    assert max(_contrast(cell, wrong), _contrast(cell, rim)) > 4.5, colour
  figure = draw_grid("arc", [[0, 1], [2, 3]], "Answer", truth=[[0, 1], [2, 4]])
  assert paths(figure, "wrong") == paths(figure, "rim") == ["M1.16 1.16h.68v.68h-.68z"]


@pytest.mark.parametrize(
  ("values", "tolerance", "words"),
  [
    ([1.0, 1.0 + 6e-7, 1.0], 1e-5, "1 to 6e-7"),
    ([3e-7, 6e-7, 0.0], 1e-5, "0 to 6e-7"),
    ([0.002, 0.002, 0.002], None, "0.002"),
    ([0.002, 0.0021, 0.002], None, None),
    ([1.0, 1.0 + 6e-5, 1.0], 1e-5, None),
    ([1.0, np.nan, 1.0, 1.0], 1e-5, None),
    ([1.0, 1.0], 1e-5, None),
  ],
)
def test_what_is_constant_up_to_rounding_is_said_not_drawn(values, tolerance, words):
  shown = Chart("Gain", [Line("a", np.arange(float(len(values))), np.array(values))], tolerance=tolerance)
  assert shown.constant == words
  page = gallery([shown])
  assert (f"<strong>Gain</strong>: {words}</li>" in page) == (words is not None) == ("<svg" not in page)


def test_all_lines_of_a_chart_are_smoothed_over_one_stretch_of_the_axis():
  rng = np.random.default_rng(0)
  long, short = (Line("a", np.arange(0.0, 1000, d), rng.normal(size=1000 // d), smooth=True) for d in (1, 4))
  calm = Line("calm", np.arange(1000.0), np.arange(1000.0), smooth=True)
  (a, b, c), span = smoothed([long, short, calm])
  assert span == pytest.approx(50, rel=0.01)
  # A triangle over ±span has the same weights in units of the axis, whatever the spacing of the points.
  np.testing.assert_allclose(c.mean[100:-100], calm.ys[100:-100], rtol=1e-9)
  for line, step in ((a, 1), (b, 4)):
    at, reach = 500 // step, round(50 / step)
    weights = reach - np.abs(np.arange(1 - reach, reach))
    near = line.ys[at - reach + 1 : at + reach]
    assert line.mean[at] == pytest.approx(weights @ near / weights.sum())
  assert smoothed([calm])[1] == 0 and smoothed([calm])[0][0].mean is None


def test_a_chart_says_what_it_shows_and_each_axis_what_is_on_it():
  figure = draw(
    Chart("Step time (ms)", [Line("a", np.arange(3.0), np.array([1.0, 10.0, 900.0]))], better="lower is better")
  )
  labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*class="axis">([^<]*)<', figure)
  assert [(float(y) < 20, words) for _, y, words in labels] == [(True, "ms · log scale"), (False, "step")]
  assert "↓ lower is better" in figure


@pytest.mark.parametrize("grid", [[], [[]], None, [[1, 2], [3]], "12", [[1], 2]])
def test_what_is_not_a_grid_is_drawn_as_a_box_that_says_so(grid):
  assert 'class="nothing"' in draw_grid("arc", grid, "Answer", truth=[[1]])
