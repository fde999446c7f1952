"""Theory over Monte Carlo for 22 stacks of layers: the published 3 x 4 panel, deeper stacks, unequal layers, block
noise.

python experiments/fig1_spectra/run.py [--draws-scale 1.0] [--out experiments/fig1_spectra/out]
Expect: every W1 distance within tolerance of expected.json; about five minutes on 2 busy CPU cores. Writes fig1.png and
fig1.json.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from jpmhc_jax.core import arguments
from jpmhc_jax.core.files import to_json, write_atomically
from jpmhc_jax.spectral import dyson, monte_carlo
from jpmhc_jax.spectral.layers import block_noise, full_noise, Layers

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

STREAMS, WIDTH, TOTAL_NOISE, ETA, ANGLE = 4, 25, 0.05, 0.02, 0.05
FOLDER = pathlib.Path(__file__).resolve().parent
DRAWS = {1: 300, 2: 200, 10: 100, 50: 40, 100: 20}
MIXERS = ("identity", "bistochastic", "haar", "gaussian")


@dataclasses.dataclass(frozen=True)
class Panel:
  mixer: str
  depth: int
  unequal: bool = False  # every layer its own mixer and noise
  block: bool = False  # noise through read and write vectors

  @property
  def name(self) -> str:
    return f"{self.mixer}, L = {self.depth}" + (", unequal" if self.unequal else "") + (", block" if self.block else "")


def panels() -> list[Panel]:
  published = [Panel(mixer, depth) for depth in (1, 2, 10) for mixer in MIXERS]
  deep = [Panel(mixer, depth) for depth in (50, 100) for mixer in ("identity", "bistochastic")]
  unequal = [Panel(mixer, 10, unequal=True) for mixer in ("bistochastic", "haar", "gaussian")]
  block = [Panel(mixer, 8, unequal=True, block=True) for mixer in ("bistochastic", "haar", "gaussian")]
  return published + deep + unequal + block


def mixer(kind: str, rng: np.random.Generator) -> np.ndarray:
  """One mixer; the Gaussian one is normalised to tr AᵀA = n, the bistochastic one is Sinkhorn of Gaussian logits."""
  gauss = rng.normal(size=(STREAMS, STREAMS))
  if kind == "identity":
    return np.eye(STREAMS)
  if kind == "haar":
    q, r = np.linalg.qr(gauss)
    return q * np.sign(np.diag(r))
  if kind == "gaussian":
    return gauss * np.sqrt(STREAMS / np.sum(gauss**2))
  matrix = np.exp(gauss)
  for _ in range(500):
    matrix /= matrix.sum(1, keepdims=True)
    matrix /= matrix.sum(0, keepdims=True)
  return matrix


def layers(panel: Panel) -> Layers:
  rng = np.random.default_rng(0)
  sigma = np.sqrt(np.full(panel.depth, TOTAL_NOISE / panel.depth))
  if not panel.unequal:
    return full_noise(np.stack([mixer(panel.mixer, rng)] * panel.depth), sigma)
  mixers = np.stack([mixer(panel.mixer, rng) for _ in range(panel.depth)])
  sigma = sigma * rng.uniform(0.5, 1.5, panel.depth)
  if not panel.block:
    return full_noise(mixers, sigma)
  reads, writes = rng.dirichlet(np.ones(STREAMS), panel.depth), rng.uniform(0.5, 1.5, (panel.depth, STREAMS))
  return block_noise(mixers, sigma, reads, writes)


def compare(panel: Panel, draws: int) -> dict:
  """Law and samples of one panel, through the same inversion: a line for λ, a ray for log λ where sizes differ by
  decades."""
  start, stack = time.monotonic(), layers(panel)
  values = np.asarray(monte_carlo.eigenvalues(stack, WIDTH, draws, jax.random.key(panel.depth)))
  sampled = time.monotonic()
  logarithmic = panel.depth >= 8 and panel.mixer not in ("identity", "haar")
  if logarithmic:
    top = np.log(values.max()) + 0.7
    z = np.exp(np.linspace(max(np.log(max(values.min(), 1e-300)) - 1, top - 16), top, 160)) * np.exp(1j * ANGLE)
  else:
    z = np.linspace(-0.1, 1.1 * values.max(), 160) + 1j * ETA
  curve = monte_carlo.ray_curve if logarithmic else monte_carlo.line_curve
  law = dyson.checked(stack, jnp.asarray(z), limit=1e-6)
  theory, samples = curve(z, np.asarray(law.g)), curve(z, monte_carlo.empirical_resolvent(values, z))
  return {
    "panel": panel.name,
    "draws": draws,
    "axis": "log lambda" if logarithmic else "lambda",
    "distances": monte_carlo.distances(theory, samples)._asdict(),
    "sampling_error": monte_carlo.sampling_error(values, z, curve)._asdict(),
    "residual": float(np.max(law.residual)),
    "seconds": {"monte_carlo": round(sampled - start, 2), "theory": round(time.monotonic() - sampled, 2)},
    "x": theory.x.tolist(),
    "theory": theory.density.tolist(),
    "samples": samples.density.tolist(),
  }


def draw(results: list[dict], path: pathlib.Path) -> None:
  columns = 4
  rows = -(-len(results) // columns)
  figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), layout="constrained")
  for axis in axes.flat[len(results) :]:
    axis.set_axis_off()
  for axis, result in zip(axes.flat, results, strict=False):
    axis.fill_between(result["x"], result["samples"], color="0.8", label="Monte Carlo")
    axis.plot(result["x"], result["theory"], color="C3", linewidth=1.2, label="matrix Dyson equation")
    axis.set_title(result["panel"], fontsize=9)
    axis.set_xlabel(result["axis"], fontsize=8)
    axis.text(
      0.97, 0.93, f"W1 = {result['distances']['w1']:.4f}", transform=axis.transAxes, ha="right", va="top", fontsize=8
    )
  axes.flat[0].legend(fontsize=7, loc="upper left")
  figure.savefig(path, dpi=110)


def judge(results: list[dict], expected: dict) -> list[str]:
  """Complaints: a W1 further from its expected value than the tolerance, which is `factor` sampling errors plus
  `floor`."""
  complaints = []
  for result in results:
    wanted = expected["w1"].get(result["panel"])
    tolerance = expected["floor"] + expected["factor"] * result["sampling_error"]["w1"]
    if wanted is None or abs(result["distances"]["w1"] - wanted) > tolerance:
      complaints.append(f"{result['panel']}: W1 {result['distances']['w1']:.4f}, expected {wanted} ± {tolerance:.4f}")
    if result["residual"] > expected["residual"]:
      complaints.append(f"{result['panel']}: residual {result['residual']:.1e} above {expected['residual']:.0e}")
  return complaints


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--draws-scale",
    type=arguments.number(0, 1000, above=True),
    default=1.0,
    help="factor on the number of Monte Carlo draws",
  )
  parser.add_argument("--out", type=arguments.path, default=FOLDER / "out", help="folder for fig1.png and fig1.json")
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  results = []
  with jax.enable_x64(True):
    for panel in panels():
      draws = DRAWS.get(panel.depth, 100)
      results.append(compare(panel, max(2, round(draws * options.draws_scale))))
      result = results[-1]
      print(
        f"{result['panel']:<32} W1 {result['distances']['w1']:.5f} (chance {result['sampling_error']['w1']:.5f})  "
        f"KS {result['distances']['ks']:.4f}  residual {result['residual']:.0e}  {result['seconds']}",
        flush=True,
      )
  write_atomically(options.out / "fig1.json", to_json(results, indent=1) + "\n")
  draw(results, options.out / "fig1.png")
  complaints = judge(results, json.loads((FOLDER / "expected.json").read_text()))
  print("\n".join(complaints) or "every panel as expected")
  return 1 if complaints else 0


if __name__ == "__main__":
  sys.exit(main())
