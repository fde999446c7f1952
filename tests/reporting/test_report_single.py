"""The page of one run: its numbers are the run's numbers, it stands alone, and broken input does not break it."""

import json
import re
import resource
import subprocess
import sys

import numpy as np
from page_parser import Page, read
import pytest

from jpmhc_jax.core.errors import StorageError, UserError
from jpmhc_jax.main import main
from jpmhc_jax.reporting import lead
from jpmhc_jax.reporting.markup import plain
from jpmhc_jax.reporting.report import write_report
from jpmhc_jax.reporting.sections import cost_words, task_table
from jpmhc_jax.reporting.workdir import Evaluation, read_runs


def test_tables_hold_the_numbers_of_the_run(make_run, tmp_path):
  folder = make_run("cayley", optimizer__learning_rate=3e-4)
  page = read(folder, out=tmp_path / "report.html")
  recorded = {step: json.loads((folder / f"evaluation/step_{step}.json").read_text())["metrics"] for step in (100, 400)}
  head = [cell[0] for cell in page.table("Last evaluation, step 400")[0]]
  assert head == ["", "fractional", "strict", "pooled", "pooled, strict", "un-augmented input only"]
  shown = page.values("Last evaluation, step 400")
  for k in (1, 2, 5, 10, 100, 1000):
    kinds = ("pass@", "strict/pass@", "pooled/pass@", "pooled/strict/pass@", "unaugmented/pass@")
    expected = [recorded[400].get(f"{kind}{k}") for kind in kinds]
    assert [None if v is None else float(v) for v in shown[f"pass@{k}"]] == expected
  every = page.table("Every evaluation")
  names = [cell[0] for cell in every[0]][1:]
  assert {name: float(cell[1]) for name, cell in zip(names, every[1][1:], strict=True)} == recorded[100]
  assert page.values("Changed from the defaults")["optimizer.learning_rate"][:2] == ["0.0003", "0.0001"]
  assert "jpmhc train --config=arc_tiny:cayley --workdir=runs/cayley --config.seed=0" in page.text
  assert page.values("Environment")["versions.jax"] == ["0.10.2"]
  last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
  mixers = page.values("Latest value of every diagnostic")
  assert float(mixers["block1.mlp"][0]) == last["mixer/block1.mlp/composite_gain"]


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(make_run, tmp_path):
  folder, out = make_run("cayley"), tmp_path / "report.html"
  out.write_text("earlier")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(StorageError, match="report.html could not be written: .*free space"):
      write_report([folder], out)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert out.read_text() == "earlier" and [path.name for path in tmp_path.glob("*report*")] == ["report.html"]


def test_every_answer_is_drawn_with_votes_and_verdict(make_run, tmp_path, arc_examples):
  page = read(make_run("cayley"), out=tmp_path / "report.html")
  cards = [attributes for tag, attributes in page.elements if tag == "article"]
  assert [c["data-task"] for c in cards] == [e["task"] for e in arc_examples]
  assert [c["data-solved"] for c in cards] == ["solved" if e["solved_at"] else "unsolved" for e in arc_examples]
  drawn = sum(tag == "svg" and "grid" in a.get("class", "").split() for tag, a in page.elements)
  assert drawn == sum(2 + len(e["predictions"]) + 2 * len(e["demonstrations"]) for e in arc_examples)
  assert page.text.count("Demonstration 1, output") == len(arc_examples)
  assert page.text.count("300 votes · q\N{NO-BREAK SPACE}0.93") == sum(bool(e["predictions"]) for e in arc_examples)
  words = " ".join(str(cell) for cell in arc_examples[0]["truth"][0])
  assert words in page.text  # every drawing says its cells


def test_the_page_stands_alone_and_is_sound(make_run, tmp_path):
  out = write_report([make_run("cayley")], tmp_path / "deep" / "report.html")
  source = out.read_text(encoding="utf-8")
  page = Page(source)
  assert not re.search(r"(?:src|href|action)=\"(?!#)|@import|url\((?!#)", source)
  assert set(re.findall(r"https?://[^\s'\"]+", source)) <= {"http://www.w3.org/2000/svg"}
  assert len(page.ids) == len(set(page.ids))
  assert {link[1:] for link in page.links} <= set(page.ids)
  assert page.headings[0] == 1 and page.headings.count(1) == 1
  assert all(b - a <= 1 for a, b in zip(page.headings[:-1], page.headings[1:], strict=True))
  for table in page.tables:
    assert table["caption"]
    assert all(cell[2] == "col" for cell in table["rows"][0])
    assert all(row[0][2] == "row" for row in table["rows"][1:])
  labelled = [a for tag, a in page.elements if tag == "svg" and a.get("aria-hidden") != "true"]
  assert labelled and all(a.get("role") == "img" for a in labelled)
  assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source


def test_folders_without_a_record_are_refused_and_the_runs_inside_them_named(make_run, tmp_path):
  empty, out = tmp_path / "empty", tmp_path / "a.html"
  empty.mkdir()
  with pytest.raises(UserError, match=r"nothing was recorded in .*/empty; expected the --workdir of a run"):
    write_report([empty], out)
  folders = [make_run(name, steps=2) for name in ("runs/a b", "runs/deep/b", "runs/sweep/x")]
  (tmp_path / "runs" / "sweep" / "sweep.json").write_text('{"runs": []}')
  expected = f"'{folders[0]}' {folders[1]} {folders[2].parent}"
  with pytest.raises(
    UserError, match=re.escape(f"{tmp_path / 'runs'} itself, but it holds runs; name these: jpmhc report {expected}")
  ):
    write_report([tmp_path / "runs"], out)
  for k in range(9):
    make_run(f"many/{k}", steps=2)
  with pytest.raises(UserError, match=r"many/7 … \(9 in all\)"):
    write_report([tmp_path / "many"], out)
  assert main(["report", str(tmp_path / "many")]) == 2 and not list(tmp_path.glob("many/*.html"))
  assert not out.exists()


def test_a_run_without_files_and_a_half_written_one_are_shown_as_such(make_run, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  killed = make_run("killed", steps=130, planned=1000)
  page = read(empty, killed, out=tmp_path / "a.html")
  for words in ("config.json is missing", "metrics.jsonl is missing", "no evaluation yet", "no steps recorded"):
    assert words in page.text
  with (killed / "metrics.jsonl").open("a") as file:
    file.write('{"step": 132, "train/lo')
  (killed / "environment.json").write_text("{")
  (killed / "evaluation" / "step_200.json").write_text('{"step": "200", "metrics": {}}')
  page = read(killed, out=tmp_path / "b.html")
  for words in (
    "partial: 130 of 1000 steps",
    "1 unreadable line(s) skipped, the first is line 66",
    "environment.json cannot be read",
    "step_200.json lacks an integer 'step'",
  ):
    assert words in page.text


def test_values_that_are_not_finite_are_marked_and_leave_gaps(tmp_path):
  folder = tmp_path / "diverged"
  (folder / "evaluation").mkdir(parents=True)
  losses = [2.0, 1.0, float("nan"), 3.0, float("inf"), None, 4.0]
  lines = [
    json.dumps({"step": i + 1, "train/loss": loss, "train/gradient_norm": float("nan")})
    for i, loss in enumerate(losses)
  ]
  (folder / "metrics.jsonl").write_text("\n".join(lines))
  strange = [{"predictions": [{"grid": 5, "q": "high", "votes": None}, 7]}, {"predictions": 3, "input": [[1], []]}, {}]
  metrics = {"loss": float("nan"), "exact_accuracy": 0.25}
  record = {"step": 7, "metrics": metrics, "examples": ["not an example", *strange]}
  (folder / "evaluation" / "step_7.json").write_text(json.dumps(record))
  source = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
  page = Page(source)
  row = page.table("Every evaluation")[1]
  assert [cell[1] for cell in row] == ["7", "nan", "0.25"] and row[1][0] == "NaN"
  assert "Nothing finite was recorded." in page.text and "1 unreadable example(s) skipped" in page.text
  assert sum(tag == "article" for tag, _ in page.elements) == len(strange)
  loss_path = next(a["d"] for tag, a in page.elements if tag == "path" and a.get("class") == "line")
  assert loss_path.count("M") == 3 and not re.search("nan|inf", loss_path)


def _part(folder, step, examples, held_out, value):
  record = json.loads((folder / "evaluation" / f"step_{step}.json").read_text())
  record["metrics"] = dict.fromkeys(record["metrics"], value) | {"examples": examples}
  if examples < held_out:
    record["partial"] = {"examples": examples, "held_out": held_out}
  name = f"step_{step}_partial_{examples}_of_{held_out}.json" if examples < held_out else f"step_{step}.json"
  (folder / "evaluation" / name).write_text(json.dumps(record))


def test_a_partial_evaluation_is_marked_and_judges_no_run(make_run, tmp_path):
  folder = make_run("cayley")
  before = read(folder, out=tmp_path / "a.html")
  _part(folder, 400, 2, 8, 0.125)
  page = read(folder, out=tmp_path / "b.html")
  for caption in ("Last evaluation, step 400", "Every evaluation"):
    assert page.values(caption) == before.values(caption)
  head, row = page.table("Evaluations of more or fewer examples than the config asks for")
  assert [row[i][0] for i in (0, 1)] == ["400", "partial: the first 2 of 8 held-out examples"]
  assert "0.125" in [cell[1] for cell in row] and len(head) == len(row)
  assert page.text.count("partial") == 1


def test_a_run_whose_config_asks_for_a_part_says_so_everywhere(make_run, tmp_path):
  folder = make_run("cayley", evaluation__max_examples=5)
  for step in (100, 200, 300, 400):
    _part(folder, step, 5, 8000, step / 1000)
  for step in (100, 200, 300):
    (folder / "evaluation" / f"step_{step}.json").unlink()
  _part(folder, 400, 8000, 8000, 0.0625)
  page = read(folder, out=tmp_path / "a.html")
  mark = "partial: the first 5 of 8,000 held-out examples"
  assert page.values(f"Last evaluation, step 400, {mark}")["pass@2"][0] == "0.4"
  assert {row[1][0] for row in page.table("Every evaluation")[1:]} == {mark}
  assert page.values("Evaluations of more or fewer examples")["400"][0] is None
  for words in ("Partial: the run was evaluated on the first 5 of 8,000", f"of the evaluation at step 400, {mark}."):
    assert words in page.text
  several = read(folder, make_run("other"), out=tmp_path / "b.html")
  assert f"400, {mark}" in several.text


def test_what_no_run_writes_is_a_remark_on_the_page(make_run, tmp_path):
  folder = make_run("cayley")
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": Infinity}\n{"step": 401, "x": ' + "[" * 100_000 + "\n")
  (folder / "config.json").write_text("[" * 10_000)
  (folder / "environment.json").unlink()
  (folder / "environment.json").symlink_to("/dev/zero")
  (folder / "spectrum.json").write_text('{"a":' * 10_000)
  page = read(folder, out=tmp_path / "a.html")
  for words in (
    "2 unreadable line(s)",
    "JSON nested 10,000 levels",
    "is a character device",
    "spectrum.json cannot be",
  ):
    assert words in page.text
  with (folder / "metrics.jsonl").open("r+b") as file:
    file.truncate(5 * 2**30)
  assert "metrics.jsonl: 5.0 GiB; expected at most 1.0 GiB" in read(folder, out=tmp_path / "b.html").text


def test_special_characters_are_escaped(make_run, tmp_path):
  nasty = "<script>alert('x')</script>&\"</style>"
  folder = make_run("run", data__arc__folder=nasty)
  record = json.loads((folder / "evaluation/step_400.json").read_text())
  record["examples"][0] |= {"task": nasty, "kind": nasty, "input": [[nasty]]}
  record["metrics"][nasty] = 0.5
  (folder / "evaluation/step_400.json").write_text(json.dumps(record))
  with (folder / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 402, f"train/{nasty}": 1.0, f"mixer/{nasty}/gain": 2.0}))
  source = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
  page = Page(source)
  assert source.count("alert(") >= 5 and "<script>alert" not in source
  scripts = [a for tag, a in page.elements if tag == "script"]
  assert sum("type" not in a for a in scripts) == 1


def test_steps_repeated_after_a_resume_count_once(tmp_path):
  folder = tmp_path / "resumed"
  folder.mkdir()
  steps = [(1, 5.0), (2, 4.0), (3, 9.0), (2, 3.5), (3, 3.0)]
  (folder / "metrics.jsonl").write_text("\n".join(json.dumps({"step": s, "train/loss": v}) for s, v in steps))
  page = read(folder, out=tmp_path / "report.html")
  assert page.values("Loss: sampled values") == {"1": ["5.0"], "2": ["3.5"], "3": ["3.0"]}


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_other_puzzles_are_drawn(tmp_path, kind):
  folder = tmp_path / kind
  (folder / "evaluation").mkdir(parents=True)
  sudoku = (
    [[1, 0, 3, 0], [0, 4, 0, 2], [2, 0, 4, 0], [0, 3, 0, 1]],
    [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]],
  )
  grids = {
    "sudoku": [(np.array(digits) + 1).tolist() for digits in sudoku],  # tokens: 1 = blank, digit + 1
    "maze": (["#####", "#S G#", "#####"], ["#####", "#SoG#", "#####"]),
  }
  question, truth = grids[kind]
  example = {"kind": kind, "task": "7", "test": 0, "input": question, "truth": truth, "solved_at": None}
  record = {
    "step": 5,
    "metrics": {"exact_accuracy": 0.0},
    "examples": [example | {"predictions": [{"grid": question}]}],
  }
  (folder / "evaluation" / "step_5.json").write_text(json.dumps(record))
  page = read(folder, out=tmp_path / "report.html")
  assert "not solved" in page.text
  if kind == "sudoku":
    assert "1 . 3 .; . 4 . 2" in page.text and "1 2 3 4; 3 4 1 2" in page.text
  wrong = [a["d"] for tag, a in page.elements if tag == "path" and a.get("class") == "wrong"]
  assert wrong and wrong[0].count("M") == {"sudoku": 8, "maze": 1}[kind]


def test_no_run_at_all_is_an_error(tmp_path):
  with pytest.raises(UserError, match="no run folder found .*nowhere.*--workdir"):
    write_report([tmp_path / "nowhere"], tmp_path / "report.html")


@pytest.mark.slow
def test_the_report_starts_without_matplotlib():
  check = "import sys, jpmhc_jax.reporting.report; sys.exit('matplotlib' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_accuracies_without_any_halted_sequence_are_left_out(tmp_path):
  folder = tmp_path / "halting"
  folder.mkdir()
  lines = [(1, 0, 0.0), (2, 8, 0.5), (3, 0, 0.0), (4, 4, 0.75)]
  records = [{"step": s, "train/count": c, "train/accuracy": a, "train/loss": 1.0 / s} for s, c, a in lines]
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
  page = read(folder, out=tmp_path / "report.html")
  assert page.values("Accuracy: sampled values") == {"2": ["0.5"], "4": ["0.75"]}
  assert list(page.values("Loss: sampled values")) == ["1", "2", "3", "4"]


def test_a_resumed_run_lists_its_earlier_starts(make_run, tmp_path):
  folder = make_run("cayley")
  now = json.loads((folder / "environment.json").read_text())
  earlier = now | {"started": "2026-01-02T03:04:05", "git_revision": "abc+changes"}
  (folder / "environment.json").write_text(json.dumps(now | {"earlier_starts": [earlier]}))
  page = read(folder, out=tmp_path / "report.html")
  assert page.values("Earlier starts of this run")["1"][:2] == ["2026-01-02T03:04:05", "abc+changes"]


def test_connections_stand_in_order_of_depth(tmp_path):
  folder = tmp_path / "deep"
  folder.mkdir()
  names = ("block10.tokens", "block2.features", "block2.tokens", "composite", "block10.features", "block2.tokens.call1")
  (folder / "metrics.jsonl").write_text(json.dumps({"step": 1} | {f"mixer/{n}/gain": len(n) / 8 for n in names}))
  page = read(folder, out=tmp_path / "report.html")
  first = ["block2.tokens", "block2.features", "block10.tokens", "block10.features"]
  expected = [*first, "block2.tokens.call1", "composite"]
  assert list(page.values("Latest value of every diagnostic")) == expected
  assert [cell[0] for cell in page.table("Gain: sampled values")[0]] == ["step", *expected]


def test_the_verdict_names_score_average_gap_and_alarms(make_run, tmp_path):
  folder = make_run("cayley")
  path = folder / "evaluation" / "step_400.json"
  record = json.loads(path.read_text())
  record["metrics"] |= {"pass@2": 0.25, "unaveraged/pass@2": 0.3125, "examples": 24.0}
  path.write_text(json.dumps(record))
  with (folder / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 400, "train/pass@2": 0.5, "mixer/block0.mlp/frozen_gradient": 1.0}) + "\n")
  (run,) = read_runs([folder])
  words = lead.verdict(run)
  assert (
    "pass@2 is 25.00\N{NARROW NO-BREAK SPACE}% on 24 held-out examples at step 400, its last evaluation; best" in words
  )
  assert "On training data it is 25 points higher." in words
  assert "(EMA 0.999); the parameters themselves reach 31.25\N{NARROW NO-BREAK SPACE}%." in words
  assert "Alarm in block0.mlp: the coefficients no longer answer their logits" in words
  (folder / "environment.json").write_text(
    json.dumps({"parameters": 24576, "data": {"train_puzzles": 1000, "train_examples": 4000}})
  )
  facts = lead.facts(read_runs([folder])[0])
  assert (
    "24\N{NARROW NO-BREAK SPACE}576 parameters" in facts
    and "ARC, 4\N{NARROW NO-BREAK SPACE}000 examples of 1\N{NARROW NO-BREAK SPACE}000 puzzles to train on" in facts
  )


def test_every_task_and_what_it_cost_stand_below_the_scores():
  scores = {"tests": 2.0, "outputs/pass@1": 0.5, "outputs/pass@2": 1.0, "augmentations_voted": 16.0}
  cost = {"seconds": 75.0, "seconds_per_task": 37.5, "devices": "1 × cpu"}
  evaluation = Evaluation(7, {}, tasks={"aa<b>": scores, "odd": 3}, cost=cost)
  table = task_table(evaluation)
  assert "1 tasks, one by one" in table and "aa&lt;b&gt;" in table and "two attempts" in table and "100.00" in table
  assert plain(cost_words(evaluation)) == "It took 1 min 15 s on 1 × cpu, 37.5 s a task."
  assert task_table(Evaluation(7, {})) is None and cost_words(Evaluation(7, {}, cost={"seconds": "?"})) is None
