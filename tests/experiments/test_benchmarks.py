"""The benchmarks: what their JSON tells of a run, what they measure where, and that the README repeats the results."""

import importlib.util
import json
import pathlib
import re
import sys

import jax
import pytest

from experiments.benchmarks import block, figures, goodput, peers, timing
from jpmhc_jax.connections.ops import base

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks"
README = (FOLDER / "README.md").read_text()


def _results(name):
  return json.loads((FOLDER / "results" / f"{name}_cpu.json").read_text())


def test_results_tell_command_hardware_and_versions(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["block.py", "--rounds=2"])
  timing.write_json(tmp_path / "out.json", {"rows": []})
  environment = json.loads((tmp_path / "out.json").read_text())["environment"]
  assert environment["command"].startswith("python ") and environment["command"].endswith(" --rounds=2")
  assert environment.keys() >= {"processor", "cores", "load", "python", "jax", "jaxlib"}
  assert environment["devices"] == [f"{device} ({device.device_kind})" for device in jax.devices()]


def test_a_block_and_its_parts_are_computed_by_the_implementation_that_was_asked_for(monkeypatch):
  def refuse(name, streams):
    raise LookupError(name)

  monkeypatch.setattr(base, "stream_ops", refuse)
  with pytest.raises(LookupError, match="pallas_gpu"):
    block.parts(8, 2, 16, "pallas_gpu")
  with pytest.raises(LookupError, match="pallas_tpu"):
    block.our_block("cayley", 8, 2, 16, "pallas_tpu")


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_the_package_is_not_laid_beside_another_device(backend, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(peers, "_cuda", lambda: False)
  assert f"JAX runs on '{backend}' devices" in peers.missing()


def test_the_roofline_in_the_readme_is_that_of_the_results():
  shares = {(row["part"], row["d"]): f"{row['of_copy']:.0%}" for row in _results("block")["roofline"]}
  found = re.search(r"Share of the copy's bandwidth .*?\. The last", README, re.DOTALL).group().replace(" %", "%")
  written = re.findall(r"(\d+%) and\s+(\d+%)", found)
  parts = [part for part in dict.fromkeys(part for part, _ in shares) if part != "copy"]
  assert written == [(shares[part, 128], shares[part, 512]) for part in parts]


def test_the_blocks_and_their_growth_in_the_readme_are_those_of_the_results():
  results = _results("block")
  ours = {"identity": "jpmhc_jax identity", "Cayley": "jpmhc_jax cayley", "Sinkhorn-20": "jpmhc_jax sinkhorn"}
  section = README.partition("## The block alone")[2]
  for title, block_name in (*ours.items(), ("plain residual", "plain residual")):
    written = re.search(rf"^\| {title} \| ([\d.]+) ms \| ([\d.]+) ms \|$", section, re.MULTILINE).groups()
    measured = {row["d"]: row["ms"] for row in results["blocks"] if row["block"] == block_name}
    assert written == (f"{measured[128]:.1f}", f"{measured[512]:.1f}"), title
  written = re.search(r"In n \(1,024 tokens, d = 128\): (.*?) ms", section).group(1)
  grown = sorted((row["n"], row["ms"]) for row in results["scaling"] if (row["tokens"], row["d"]) == (1024, 128))
  assert [float(ms) for ms in re.findall(r"[\d.]+", written)] == [round(ms, 0 if ms > 10 else 1) for _, ms in grown]


def test_the_profile_in_the_readme_is_that_of_the_results():
  profiles = _results("profile")["ms_by_scope"].values()
  groups = {
    "attention and SwiGLU": ("attention", "swiglu"),
    "norm of": ("norm",),
    "coefficients:": ("coefficients",),
    "read, mix and write": ("read", "mix_and_write"),
    "optimiser,": ("optimizer", "other"),
  }
  for title, scopes in groups.items():
    sums = [sum(sum(profile[scope].values()) for scope in scopes) for profile in profiles]
    row = re.search(rf"^\| {title}[^|]*\|(.*)\|$", README, re.MULTILINE).group(1)
    assert [cell.strip() for cell in row.split("|")] == [f"{ms:.0f}" for ms in sums]


def test_the_growth_in_the_readme_is_that_of_the_results():
  rows = _results("growth")["rows"]
  for title, keep in (
    ("TRM, T = 3, n = 1", lambda row: row.get("T") == 3),
    ("decoder of", lambda row: row["network"] == "decoder"),
  ):
    kept = sorted(filter(keep, rows), key=lambda row: row.get("n", row.get("layers")))
    row = re.search(rf"^\| {title}[^|]*\|([^|]*)\|([^|]*)\|$", README, re.MULTILINE)
    for cell, column in zip(row.groups(), ("compile_s", "temporary_MiB"), strict=True):
      assert re.findall(r"[\d.]+", cell.replace("MiB", "")) == [f"{case[column]:.1f}" for case in kept]


def test_goodput_of_a_window_is_that_of_its_seconds(tmp_path):
  """Ten seconds of compilation; then, from step 10 to step 20, 9 of steps and 1 of waiting for data."""
  seconds = {10: {"compile": 10.0, "step": 5.0, "data": 5.0}, 20: {"compile": 10.0, "step": 14.0, "data": 6.0}}
  lines = [
    {"step": step} | {f"goodput/{name}": part / sum(parts.values()) for name, part in parts.items()}
    for step, parts in seconds.items()
  ]
  file = tmp_path / "metrics.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 20, "evaluation/loss": 1.0}]))
  first, last, shares = goodput.shares_between(goodput.account(file), 5)
  assert (first, last) == (10, 20)
  assert shares == pytest.approx({"compile": 0.0, "step": 0.9, "data": 0.1}, abs=1e-9)


def test_every_row_of_the_results_is_in_its_figure(tmp_path):
  for name in figures.FIGURES:
    figures.draw(name, _results(name), tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  axes = figures.pyplot.figure().subplots(1, 3)
  figures.block(axes, {name: rows for name, rows in _results("block").items() if name != "beside_peers"})
  assert [axis.get_title() for axis in axes][1] == "beside_peers: not measured in this run" and axes[2].lines
  steps, growths = _results("step"), _results("growth")
  axes = figures.pyplot.figure().subplots(1, 2)
  figures.step(axes, steps)
  assert [bar.get_width() for bar in axes[0].patches] == [row["step_ms"] for row in steps["rows"]]
  axes = figures.pyplot.figure().subplots(1, 2)
  figures.growth(axes, growths)
  assert {y for line in axes[0].lines for y in line.get_ydata()} == {row["compile_s"] for row in growths["rows"]}
  figures.pyplot.close("all")
