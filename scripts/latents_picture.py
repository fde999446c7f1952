"""Draws docs/latents.svg: two clouds of latents before a run, after its first stage and at its end.

jpmhc train --config=transport:staged --workdir=runs/staged
python -m scripts.latents_picture --workdir=runs/staged --out=docs/latents.svg
"""

import argparse
from collections.abc import Sequence
import pathlib

import numpy as np

from jpmhc_jax.core import arguments
from jpmhc_jax.reporting.markup import join, Markup, tag
from jpmhc_jax.reporting.workdir import Evaluation, read_run

SIDE, GAP, HEAD, SHOWN = 220, 20, 44, 110
COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#d62728", "#7b5ea7", "#8c564b", "#d46ab0", "#7f7f7f", "#a8a12c", "#17a2b8")
INK = "#808080"


def panel(title: str, remark: str, moved: np.ndarray, target: np.ndarray, labels: Sequence[int], left: int) -> Markup:
  """One square: rings for the target, dots for the cloud that is mapped, both in the colours of their classes."""
  scale = SIDE / 2 / (1.05 * np.abs(target).max())
  middle = np.array([left + SIDE / 2, HEAD + SIDE / 2])
  drawn = []
  looks = ({"r": 3.2, "fill": "none", "stroke_width": 1}, {"r": 2.2})
  for cloud, look, paint in zip((target, moved), looks, ("stroke", "fill"), strict=True):
    inside = np.abs(cloud).max(axis=1) * scale <= SIDE / 2
    for row, label in zip(cloud[inside], np.asarray(labels)[inside], strict=True):
      x, y = middle + scale * row * (1, -1)
      colour = COLOURS[label % len(COLOURS)]
      drawn.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", **look, **{paint: colour}))
  frame = tag("rect", x=left, y=HEAD, width=SIDE, height=SIDE, fill="none", stroke=INK, stroke_width=0.5, rx=8)
  words = [
    tag("text", title, x=left, y=16, font_weight=600, font_size=14, fill=INK),
    tag("text", remark, x=left, y=34, font_size=12, fill=INK),
  ]
  return join([*words, frame, *drawn])


def picture(evaluations: Sequence[Evaluation], stage_ends: int) -> Markup:
  """Three panels of the evaluations of a run whose first stage ends at a step."""
  aligned = next(evaluation for evaluation in evaluations if evaluation.step >= stage_ends)
  panels = []
  shown = [("Before", evaluations[0], "source"), ("Pre-aligned", aligned, "image"), ("Tuned", evaluations[-1], "image")]
  for i, (title, evaluation, cloud) in enumerate(shown):
    points = evaluation.latents["points"]
    recall = f"recall@1 {100 * evaluation.metrics['recall@1']:.0f} %, step {evaluation.step}"
    remark = "each in its own two main axes" if cloud == "source" else recall
    clouds = (np.asarray(points[name])[:SHOWN] for name in (cloud, "target"))
    panels.append(panel(title, remark, *clouds, points["labels"][:SHOWN], i * (SIDE + GAP)))
  width, height = 3 * SIDE + 2 * GAP, HEAD + SIDE + 2
  look = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"-1 0 {width + 2} {height}", "role": "img"}
  words = "Two clouds of latents of the same digits before, after pre-alignment and after fine-tuning of the map"
  return tag("svg", tag("title", words), *panels, font_family="system-ui, sans-serif", **look)


def main() -> None:
  parser = argparse.ArgumentParser(description="Draws two clouds of latents over a run.")
  parser.add_argument("--workdir", type=arguments.path, default=pathlib.Path("runs/staged"))
  parser.add_argument("--out", type=arguments.path, default=pathlib.Path("docs/latents.svg"))
  options = parser.parse_args()
  run = read_run(options.workdir, "run", "run")
  drawn = picture([e for e in run.evaluations if e.latents], int(run.config["model.transport.align.steps"]))
  options.out.write_text(f"{drawn}\n", encoding="utf-8")


if __name__ == "__main__":
  main()
