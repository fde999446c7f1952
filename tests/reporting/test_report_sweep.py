"""The page of a sweep: every run in it, whatever became of it; what a choice chose; what happens over depth."""

import json
import shutil

from page_parser import Page, read
import pytest

from jpmhc_jax.core.errors import StorageError, UserError
from jpmhc_jax.reporting.report import write_report
from jpmhc_jax.reporting.workdir import read_runs


def entry(name, state="done", **more):
  base = {"name": name, "workdir": name, "state": state, "attempts": 1, "exit_code": 0, "message": ""}
  return base | {"command": f"jpmhc train --workdir=s/{name}"} | more


@pytest.fixture(scope="module")
def sweep(runs_in, tmp_path_factory):
  """Two settings of two seeds, a run that diverged, and one that was never started; only read."""
  parent = tmp_path_factory.mktemp("sweeps")
  make_run = runs_in(parent)
  names = [(manifold, seed) for manifold in ("cayley", "iso") for seed in (0, 1)]
  folders = [make_run(f"s/{manifold}-{seed}", seed=seed, connection__mixer=manifold) for manifold, seed in names]
  make_run("s/free", steps=100, connection__mixer="unconstrained")
  entries = [entry(folder.name) for folder in folders]
  entries.append(entry("free", "diverged", exit_code=3, message="step 101: loss nan"))
  entries.append(entry("later", "pending", attempts=0, exit_code=None))
  about = {"command": ["jpmhc", "sweep", "--sweep=x y.py"], "runs": entries}
  (parent / "s" / "sweep.json").write_text(json.dumps(about))
  return parent / "s"


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory):
  """Of the sweep."""
  return read(sweep, out=tmp_path_factory.mktemp("page") / "report.html")


def test_every_run_of_a_sweep_is_on_its_page(page):
  states = {row[0][0]: row[1][0] for row in page.table("Runs")[1:]}
  complete = dict.fromkeys(("cayley-0", "cayley-1", "iso-0", "iso-1"), "complete")
  assert states == complete | {"free": "diverged: 100 of 400 steps", "later": "pending"}
  rows = {row[0][0]: [cell[0] for cell in row[1:]] for row in page.table("State of every run")[1:]}
  assert rows["free"][:4] == ["diverged", "1", "3", "step 101: loss nan"]
  assert "jpmhc train --workdir=s/later" in rows["later"][4]
  assert "6 runs: 4 done, 1 diverged, 1 pending." in page.text and "jpmhc sweep '--sweep=x y.py'" in page.text
  assert "the sweep says diverged with exit code 3: step 101: loss nan" in page.text
  assert "the folder later does not exist" in page.text
  assert {link[1:] for link in page.links} <= set(page.ids) and len(page.ids) == len(set(page.ids))


def test_the_diverged_run_stands_by_itself_and_seeds_are_counted(page):
  seeds = {row[0][0]: row[1][0] for row in page.table("pass@2: mean")[1:]}
  assert seeds == {"cayley": "2", "iso": "2", "unconstrained": "1 partial", "later": "1 partial"}
  assert "n = 1 to 2 seeds a setting." in page.text


@pytest.mark.slow
def test_runs_and_sweeps_mix_without_repeats(sweep, make_run, tmp_path):
  other = make_run("other", connection__mixer="cayley")
  page = Page(write_report([sweep, other, sweep / "iso-0"], tmp_path / "r.html").read_text(encoding="utf-8"))
  assert len(page.table("Runs")) == 1 + 7


def test_runs_are_judged_by_the_metric_that_the_sweep_asks_for(sweep, tmp_path):
  sweep = shutil.copytree(sweep, tmp_path / "s")
  about = json.loads((sweep / "sweep.json").read_text())
  (sweep / "sweep.json").write_text(json.dumps(about | {"metric": "loss"}))
  page = read(sweep, out=tmp_path / "report.html")
  found = {row[0][0]: row for row in page.table("Runs")[1:]}
  assert [cell[0] for cell in page.table("Runs")[0]][3:6] == ["best loss", "at step", "last loss"]
  losses = [e.metrics["loss"] for e in read_runs([sweep / "iso-0"])[0].evaluations]
  assert float(found["iso-0"][3][1]) == min(losses)
  means = [float(row[2][1]) for row in page.table("loss: mean")[1:] if row[2][1]]
  assert means == sorted(means)  # the smallest loss first


def test_the_best_of_a_run_that_keeps_checkpoints_by_another_metric_is_that_of_the_table(make_run, tmp_path):
  folders = [make_run(f"r{i}", seed=i) for i in range(2)]
  other = make_run("other", seed=2, checkpoint__best_metric="loss")
  evaluations = read_runs([other])[0].evaluations
  scores = {e.step: e.metrics["pass@2"] for e in evaluations}
  worst = min(scores, key=lambda step: scores[step])
  path = other / "evaluation" / f"step_{worst}.json"  # the best by loss is made the worst by pass@2
  content = json.loads(path.read_text())
  content["metrics"]["loss"] = -1.0
  path.write_text(json.dumps(content))
  page = read(*folders, other, out=tmp_path / "report.html")
  row = next(row for row in page.table("Runs")[1:] if row[0][0] == "other")
  assert float(row[3][1]) == max(scores.values())


def test_a_page_that_cannot_be_written_is_a_storage_error(sweep, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StorageError, match="r.html could not be written"):
    write_report([sweep], tmp_path / "file" / "r.html")


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": [{"name": "a"}]}'])
def test_a_sweep_that_cannot_be_read_is_an_error(sweep, tmp_path, text):
  (sweep / "sweep.json").write_text(text)
  with pytest.raises(UserError, match="no record of a sweep .*give the folders of its runs"):
    write_report([sweep], tmp_path / "r.html")


def _run(folder, lines, **config):
  folder.mkdir(parents=True)
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  (folder / "config.json").write_text(json.dumps({"steps": 20, **config}))
  return folder


def test_a_choice_is_drawn_and_named(tmp_path):
  def line(step, cayley, other):
    weights = {"block0.tokens": cayley, "block0.features": other}
    return {"step": step} | {
      f"mixer/{place}/choice/{family}": weight if family == "cayley" else 1 - weight
      for place, weight in weights.items()
      for family in ("cayley", "sinkhorn")
    }

  folder = _run(tmp_path / "a", [line(0, 0.5, 0.5), line(10, 0.8, 0.4), line(20, 1.0, 0.3)])
  page = read(folder, out=tmp_path / "report.html")
  assert page.values("Chosen family") == {
    "block0.tokens": [None, "1.0", "20.0"],
    "block0.features": [None, "0.7", None],
  }
  assert page.values("Weights in block0.tokens: sampled values")["10"] == ["0.8", "0.19999999999999996"]
  both = read(folder, _run(tmp_path / "b", [line(20, 1.0, 1.0)], seed=1), out=tmp_path / "both.html")
  assert both.values("Connections that chose each family") == {"a": ["1", "1"], "b": ["2", "0"]}


def test_gradients_and_streams_over_depth(tmp_path):
  layers = ("embedding", "block0.tokens", "block0.features", "block0.connect_tokens", "block1.tokens", "block10.tokens")
  lines = [
    {"step": step}
    | {f"gradient_norm/{layer}": float(i * step) for i, layer in enumerate(layers)}
    | {f"mixer/block{k}.tokens/cosine": k / step for k in (0, 1, 10)}
    for step in (1, 2, 4)
  ]
  page = read(_run(tmp_path / "a", lines), out=tmp_path / "report.html")
  norms = page.table("Gradient norm over depth: sampled values")
  assert [cell[0] for cell in norms[0]] == ["position, from the input on", "step 1", "step 2", "step 4"]
  # tokens before features, block 10 after block 1; neither the embedding nor a connection among them
  assert [[float(cell[1]) for cell in row[1:]] for row in norms[1:]] == [[1, 2, 4], [2, 4, 8], [4, 8, 16], [5, 10, 20]]
  cosines = page.table("Cosine over depth: sampled values")
  assert [float(row[3][1]) for row in cosines[1:]] == [0.0, 0.25, 2.5]
  stacked = [{"step": 1} | {f"gradient_norm/blocks.features[{k}]": float(k) for k in range(12)}]
  page = read(_run(tmp_path / "b", stacked), out=tmp_path / "stacked.html")
  assert float(page.table("Gradient norm over depth: sampled values")[-1][1][1]) == 11
  # The parameters of one sub-layer add up: 3, 4 -> 5.
  parts = {"block0.tokens.mlp": 3.0, "block0.tokens.out": 4.0, "block0.features": 2.0}
  lines = [{"step": 1} | {f"gradient_norm/{name}": value for name, value in parts.items()}]
  page = read(_run(tmp_path / "c", lines), out=tmp_path / "parts.html")
  assert [float(row[1][1]) for row in page.table("Gradient norm over depth: sampled values")[1:]] == [5.0, 2.0]


def test_a_run_that_spent_its_seconds_is_complete(tmp_path):
  lines = [{"step": 5, "time/elapsed_s": 31.0, "train/loss": 1.0}]
  spent, cut = _run(tmp_path / "a", lines, budget_seconds=30.0), _run(tmp_path / "b", lines, budget_seconds=60.0)
  assert [run.status for run in read_runs([spent, cut])] == ["complete", "partial: 5 of 20 steps"]


def test_a_field_that_an_old_run_did_not_know_is_no_difference(make_run, tmp_path):
  new, old = make_run("new", seed=0), make_run("old", seed=1)
  config = json.loads((old / "config.json").read_text())
  del config["budget_seconds"], config["model"]["rematerialise"]
  (old / "config.json").write_text(json.dumps(config))
  page = read(new, old, out=tmp_path / "report.html")
  assert "differ in nothing but the seed" in page.text


def test_settings_are_named_by_what_is_unusual(make_run, tmp_path):
  arms = [{"connection__mixer": m} for m in ("cayley", "iso", "sinkhorn")]
  arms += [{"connection__mixer": "cayley", "optimizer__learning_rate": 0.5}]
  folders = [make_run(f"r{i}", **arm) for i, arm in enumerate(arms)]
  page = read(*folders, out=tmp_path / "report.html")
  labels = {row[0][0] for row in page.table("pass@2: mean")[1:]}
  assert labels == {"cayley", "iso", "sinkhorn", "mixer=cayley, learning_rate=0.5"}
