"""Several runs on one page: grouping over seeds, spread, significance, curves on common steps."""

import json

import numpy as np
from page_parser import Page, read
import pytest
from scipy import stats

from jpmhc_jax.reporting import charged, group_curves, ranking
from jpmhc_jax.reporting.ranking import significance_note
from jpmhc_jax.reporting.report import write_report
from jpmhc_jax.reporting.statistics import group_runs, smallest_difference, Spread, spread, welch_p_values
from jpmhc_jax.reporting.workdir import read_runs


@pytest.fixture(scope="module")
def runs(runs_in, tmp_path_factory):
  """Two manifolds with three seeds each, a run that was cut short, and a folder without anything; only read."""
  parent = tmp_path_factory.mktemp("runs")
  make_run = runs_in(parent)
  folders = [
    make_run(f"{manifold}-s{seed}", seed=seed, level=level + 0.02 * seed, connection__mixer=manifold)
    for manifold, level in (("cayley", 0.4), ("sinkhorn", 0.2))
    for seed in range(3)
  ]
  folders.append(make_run("cayley-cut", seed=3, steps=130, planned=400, connection__mixer="cayley"))
  (parent / "empty").mkdir()
  return [*folders, parent / "empty"]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
  """Of all of them."""
  return read(*runs, out=tmp_path_factory.mktemp("page") / "report.html")


def test_mean_spread_and_significance_over_complete_runs(runs, page):
  last = [[e.evaluations[-1].metrics["pass@2"] for e in read_runs(part)] for part in (runs[:3], runs[3:6])]
  rows = {row[0][0]: row[1:] for row in page.table("pass@2: mean")[1:]}
  assert list(rows) == ["cayley", "sinkhorn", "empty"]
  for name, sample, seeds in (("cayley", last[0], "3 complete, 1 partial"), ("sinkhorn", last[1], "3")):
    assert rows[name][0][0] == seeds
    assert float(rows[name][1][1]) == pytest.approx(np.mean(sample), rel=1e-15)
    spread_words = f"{100 * np.mean(sample):.2f} ± {100 * np.std(sample, ddof=1):.2g}"
    assert rows[name][1][0] == f"{spread_words}\N{NARROW NO-BREAK SPACE}%"  # one unit for both
  expected = stats.ttest_ind(last[0], last[1], equal_var=False).pvalue
  assert float(rows["sinkhorn"][3][1]) == pytest.approx(expected)
  assert rows["empty"][0][0] == "1 partial" and rows["empty"][1][0] == "–"


def _with_step_time(folder, milliseconds):
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  timed = [
    json.dumps({k: v for k, v in line.items() if "/elapsed" not in k} | {"time/step_ms": milliseconds})
    for line in lines
  ]
  (folder / "metrics.jsonl").write_text("\n".join(timed) + "\n")
  return folder


@pytest.mark.slow
def test_settings_are_compared_at_equal_time_too(make_run, tmp_path):
  """400 steps of 10 ms and of 20 ms: after 4 s the dearer setting has done 200."""
  quick = [_with_step_time(make_run(f"q{seed}", seed=seed, level=0.3), 10.0) for seed in range(2)]
  dear = [
    _with_step_time(make_run(f"d{seed}", seed=seed, level=0.4, connection__mixer="sinkhorn"), 20.0) for seed in range(2)
  ]
  header, *rows = read(*quick, *dear, out=tmp_path / "report.html").table("pass@2: mean")
  assert [cell[0] for cell in header[-2:]] == ["step ms", "pass@2 after 4 s of steps"]
  values = {float(row[-2][1]): float(row[-1][1]) for row in rows}
  scores = {
    each: [e.metrics["pass@2"] for run in read_runs(part) for e in run.evaluations if e.step == each]
    for each, part in ((400, quick), (200, dear))
  }
  assert values == pytest.approx({10.0: np.mean(scores[400]), 20.0: np.mean(scores[200])})
  words = charged.remark(group_runs(read_runs([*quick, *dear])), ("pass@2", True))
  assert "At equal time (4 s of steps)" in words
  assert "takes 1.00 times" in words if values[10.0] > values[20.0] else "takes 2.00 times" in words
  assert charged.remark(group_runs(read_runs(quick)), ("pass@2", True)) == ""


def test_every_run_has_a_row_and_its_own_part(runs, page):
  header, *rows = page.table("Runs, by the last pass@2, the largest first")
  last = [cell[0] for cell in header].index("last pass@2")
  known = [float(row[last][1]) for row in rows if row[last][1] is not None]
  assert len(known) == 7 and known == sorted(known, reverse=True)
  states = {row[0][0]: row[1][0] for row in rows}
  assert set(states) == {run.name for run in runs} and rows[-1][0][0] == "empty"
  assert states["cayley-cut"] == "partial: 130 of 400 steps" and states["empty"] == "no steps recorded"
  assert {f"run-{run.name}" for run in runs} <= set(page.ids)
  assert {link[1:] for link in page.links} <= set(page.ids)
  assert len(page.ids) == len(set(page.ids))
  assert all(b - a <= 1 for a, b in zip(page.headings[:-1], page.headings[1:], strict=True))
  assert page.values("Only what differs") == {"connection.mixer": ["cayley", "sinkhorn", None]}
  assert {"title": "connection.mixer"} in [attributes for tag, attributes in page.elements if tag == "span"]


def test_curves_are_means_over_seeds_at_steps_and_at_times(runs, page):
  series = [run.evaluation_series("pass@2").values for run in read_runs(runs[:3])]
  # The comparison stands in front of the runs.
  by_step, by_time, by_flop = [t["rows"] for t in page.tables if t["caption"] == "pass@2: sampled values"][:3]
  assert [float(row[1][1]) for row in by_step[1:]] == pytest.approx(np.mean(series, axis=0))
  assert [float(row[0][1]) for row in by_flop[1:]] == [2.5e9 * step for step in (100, 200, 300, 400)]
  assert by_step[0][1][0] == "cayley (n=3)"
  assert by_time[0][0][0] == "seconds, compilation and evaluations included"
  clock = [run.series["time/step_ms"].values.sum() * 2e-3 for run in read_runs(runs[:3])]
  last_cayley = max(float(row[0][1]) for row in by_time[1:] if row[1][1] is not None)
  assert last_cayley == pytest.approx(np.mean(clock))


def _decoder(folder, level):
  folder.mkdir()
  names = ("loss", "bits_per_byte", "byte_accuracy")
  trained = [{"step": k, "time/step_ms": 5.0} | {f"train/{name}": level / k for name in names} for k in range(1, 9)]
  evaluated = {"step": 8} | {f"evaluation/{name}": level / 9 for name in (*names, "perplexity")}
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*trained, evaluated])))
  (folder / "evaluation").mkdir()
  content = {"step": 8, "metrics": {name: level / 9 for name in (*names, "perplexity")}, "examples": []}
  (folder / "evaluation" / "step_8.json").write_text(json.dumps(content))
  (folder / "config.json").write_text(json.dumps({"steps": 8, "seed": int(10 * level)}))
  return folder


def test_runs_of_a_decoder_are_compared_by_their_own_metrics(tmp_path):
  folders = [_decoder(tmp_path / name, level) for name, level in (("worse", 0.9), ("better", 0.5))]
  page = read(*folders, out=tmp_path / "report.html")
  titles = [t["caption"].removesuffix(": sampled values") for t in page.tables if "sampled values" in t["caption"]]
  trained = ["train/loss", "train/bits_per_byte", "train/byte_accuracy"]
  assert titles[1:7] == ["bits_per_byte", "loss", "byte_accuracy", *trained]
  runs = page.table("Runs, by the last bits_per_byte, the smallest first")[1:]
  assert [row[0][0] for row in runs] == ["better", "worse"]
  assert "bits_per_byte against step. worse (n=2): 0.07778, one point." in page.text
  # The run's own page: training and evaluation of a metric on one chart.
  alone = read(folders[0], out=tmp_path / "alone.html")
  charts = [t["caption"] for t in alone.tables if t["caption"].endswith(": sampled values")]
  assert charts[:3] == [f"{title}: sampled values" for title in ("Loss", "Bits per byte", "Byte accuracy")]
  for title, metric in (("Bits per byte", "bits_per_byte"), ("Byte accuracy", "byte_accuracy")):
    by_step, *_ = [t["rows"] for t in alone.tables if t["caption"] == f"{title}: sampled values"]
    assert [cell[0] for cell in by_step[0]] == ["step", f"{metric}, train", f"{metric}, evaluation"]
    assert float(by_step[-1][2][1]) == 0.1


def test_runs_without_any_difference_and_equal_folder_names(make_run, tmp_path):
  a, b = make_run("one/same", seed=0, steps=100, planned=100), make_run("two/same", seed=1, steps=100, planned=100)
  page = Page(write_report([a, b, a], tmp_path / "report.html").read_text(encoding="utf-8"))
  assert sorted(row[0][0] for row in page.table("Runs")[1:]) == ["one/same", "two/same"]
  assert "differ in nothing but the seed" in page.text and "nothing to compare" in page.text
  (group,) = group_runs(read_runs([a, b]))
  assert len(group.runs) == 2 and not group.setting


def test_spread_is_the_sample_standard_deviation_of_finite_values():
  result = spread([1.0, 2.0, 4.0, float("nan")])
  assert (result.count, result.mean, result.deviation) == (
    3,
    pytest.approx(7 / 3),
    pytest.approx(np.std([1, 2, 4], ddof=1)),
  )
  assert spread([]).count == 0 and np.isnan(spread([3.0]).deviation)


def test_p_values_are_welch_corrected_by_holm():
  samples = [[1.0, 1.1, 0.9], [1.0, 1.2, 1.1], [3.0, 3.1, 2.9], [1.0]]
  raw = [stats.ttest_ind(samples[i], samples[0], equal_var=False).pvalue for i in (1, 2)]
  found = welch_p_values(samples, 0)
  assert found[2] == pytest.approx(2 * raw[1]) and found[1] == pytest.approx(max(raw[0], 2 * raw[1]))
  assert np.isnan(found[0]) and np.isnan(found[3])
  assert welch_p_values([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]], 0)[1:] == [1.0, 0.0]


def test_too_few_seeds_are_said_to_prove_nothing():
  one = spread([0.5])
  assert "cannot be told from chance" in significance_note([one, one], [float("nan")] * 2)


def test_a_drawn_number_is_named_and_rounded_as_far_as_it_tells_the_settings_apart(make_run):
  def labels(*rates):
    folders = [make_run(f"rate{rate!r}", optimizer__learning_rate=rate) for rate in rates]
    return [group.label for group in group_runs(read_runs(folders))]

  assert labels(0.00028648679, 0.0123456789) == ["learning_rate=0.0002865", "learning_rate=0.01235"]
  assert labels(0.100001, 0.100002) == ["learning_rate=0.100001", "learning_rate=0.100002"]


def test_an_unfair_race_is_named_before_the_ranking(make_run, tmp_path):
  folders = [make_run("a", connection__mixer="iso"), make_run("b", steps=200, planned=200, optimizer__ema=0.5)]
  page = read(*folders, out=tmp_path / "report.html")
  assert "steps: 400, 200" in page.text and "optimizer.ema: 0.999, 0.5" in page.text
  # The mixer names the settings: what makes the race unfair is in the warning.
  assert page.text.index("No fair race") < page.text.index("iso has the best last pass@2")
  assert ranking.warnings(read_runs([folders[0], make_run("d", connection__mixer="cayley")])) is None
  assert "steps done: 300 to 400" in ranking.warnings(read_runs([folders[0], make_run("f", steps=300)]))


def test_the_verdict_names_who_is_behind_and_what_the_seeds_can_show(runs):
  groups, metric = group_runs(read_runs(runs[:6])), ("pass@2", True)
  last = [[run.evaluations[-1].metrics["pass@2"] for run in group.runs] for group in groups]
  words = ranking.verdict(groups, metric)
  assert words.startswith(f"cayley has the best last pass@2: {100 * np.mean(last[0]):.2f}")
  assert "Clearly behind it (p < 0.05): sinkhorn." in words
  least = 100 * smallest_difference(*(spread(sample) for sample in last))
  assert f"The seeds show differences from {least:.2g} points on" in words
  dots = group_curves.seeds(groups, metric)
  assert [line.ys.tolist() for line in dots.lines] == last
  assert [np.round(np.mean(line.xs)) for line in dots.lines] == [1, 2]


def test_the_smallest_difference_is_found_four_times_in_five():
  rng = np.random.default_rng(0)
  a, b = Spread(4, 0.0, 1.0), Spread(6, 0.0, 2.0)
  least = smallest_difference(a, b)
  drawn = [rng.normal(size=(20_000, s.count)) * s.deviation for s in (a, b)]
  p = stats.ttest_ind(drawn[0] + least, drawn[1], axis=1, equal_var=False).pvalue
  assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)
  assert np.isnan(smallest_difference(Spread(1, 0.0, np.nan), b)) and smallest_difference(Spread(2, 0.0, 0.0), a) > 0
