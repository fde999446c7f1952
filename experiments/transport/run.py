"""Transport at work: two vision encoders, two text encoders, a head that is handed over, a domain shift, an ablation.

  python -m experiments.transport.run [--quick] [--check] [--record]

Every number is of held-out rows; baselines see the same pairs. The text latents are `text.npz` (see `text.py`); rows of
ott-jax are measured where it is installed (`pip install ott-jax`) and noted only.
"""

from collections.abc import Callable, Mapping
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.special

from experiments.claim import Cache, Claim, Number, table
from experiments.transport import encoders
from experiments.transport.maps import (
  CLOUD,
  flow_map,
  Loss,
  maps,
  relative,
  retrieval,
  standardised,
  train_map,
  unpaired,
  why_not,
)
from jpmhc_jax import transport

FOLDER = pathlib.Path(__file__).resolve().parent
SEEDS, STEPS = 5, 200
SHARES = (0.05, 0.5, 1.0)  # of the pairs that are known
PROBES = (1, 4, 8)  # of the isometry penalty, beside two
LIKELIHOOD = 0.1  # weight of the negative log-likelihood of a flow


def compared(x: np.ndarray, y: np.ndarray, trained: int, shares: tuple[float, ...], steps: int, score: Any) -> dict:
  """Numbers of every map for every share of known pairs, and of the map without pairs, on the held-out rows."""
  held_x, held_y, numbers = x[trained:], y[trained:], {}
  for share in shares:
    count = max(8, round(share * trained))
    for name, image in maps(x[:count], y[:count], steps).items():
      moved = image(held_x)
      numbers[f"{share:.0%}/{name}"] = retrieval(moved, held_y) | score(moved)
    numbers[f"{share:.0%}/relative"] = relative(x[:count], y[:count], held_x, held_y)
  image, entropy = unpaired(x[:CLOUD], y[CLOUD : 2 * CLOUD])  # other rows on either side: no pair exists
  numbers["unpaired/orthogonal"] = retrieval(image(held_x), held_y) | score(image(held_x)) | {"plan_entropy": entropy}
  return numbers


def pair_of_encoders(seed: int, steps: int) -> dict[str, Any]:
  """Both encoders of a seed: latents, labels, target head and accuracies."""
  data = encoders.digits(seed)
  _, encode, source = encoders.trained(encoders.transformer, seed, data, steps)
  model, target, accuracy = encoders.trained(encoders.residual, 100 + seed, data, steps)
  n = encoders.TRAINED
  x, y = standardised(encode(data["images"]), n), target(data["images"])
  middle = y[:n].mean(0)
  scale = np.sqrt(((y[:n] - middle) ** 2).sum(1).mean())
  head = np.asarray(model.head.kernel[...]) * scale, np.asarray(model.head.bias[...]) + middle @ model.head.kernel[...]
  return {
    "x": x, "y": ((y - middle) / scale).astype(np.float32), "labels": data["labels"], "images": data["images"],
    "encode": encode, "raw": encode(data["images"]), "head": head, "accuracy": (source, accuracy),
  }  # fmt: skip


def two_encoders(pair: dict[str, Any], steps: int) -> dict[str, Any]:
  """Experiment 1."""
  kernel, bias = pair["head"]
  labels = pair["labels"][encoders.TRAINED :]

  def score(image: np.ndarray) -> dict[str, float]:
    return {"accuracy": float((np.argmax(image @ kernel + bias, axis=1) == labels).mean())}

  numbers = compared(pair["x"], pair["y"], encoders.TRAINED, SHARES, steps, score)
  return numbers | {"itself": {"source_accuracy": pair["accuracy"][0], "target_accuracy": pair["accuracy"][1]}}


def fused_flow(pair: dict[str, Any], steps: int) -> dict[str, float]:
  """The flow of experiment 1 folded into one matrix."""
  n = encoders.TRAINED
  x, y = pair["x"], pair["y"]
  rule, parameters = flow_map(x[:n], y[:n], steps)
  fused = transport.fuse(rule, parameters, jnp.asarray(x[:n]))
  return transport.price((rule, parameters), fused, jnp.asarray(x[n:]), jnp.asarray(y[n:]), repeats=50)


def likelihoods(pair: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
  """The flow of experiment 1, trained without and with its likelihood: held-out density and recall."""
  n, numbers = encoders.TRAINED, {}
  x, y = jnp.asarray(pair["x"]), jnp.asarray(pair["y"])
  for name, weight in (("without", 0.0), ("with", LIKELIHOOD)):
    rule, parameters = flow_map(pair["x"][:n], pair["y"][:n], steps, weight)
    image, volumes = rule(parameters, x[n:]), rule.log_volumes(parameters, x[n:])
    nll = transport.negative_log_likelihood(image, y[n:], volumes, rule.rank)
    volume = float(jnp.mean(volumes)) / rule.rank
    numbers[name] = {"nll": float(nll), "log_volume": volume} | retrieval(np.asarray(image), pair["y"][n:])
  return numbers


def texts(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Both clouds of experiment 2 in an order that the seed draws, and how many rows are to train on."""
  with np.load(FOLDER / "text.npz") as file:
    x, y = (file[name].astype(np.float32) for name in ("lsa", "encoder"))
  order = np.random.default_rng(seed).permutation(len(x))
  trained = len(x) - 200
  x, y = standardised(x[order], trained), standardised(y[order], trained)
  return x, y, trained


def two_texts(seed: int, steps: int) -> dict[str, Any]:
  """Experiment 2; the seed draws which rows are held out."""
  return compared(*texts(seed), SHARES, steps, lambda image: {})


def handed_over(seed: int, pair: dict[str, Any]) -> dict[str, Any]:
  """Experiment 3: steps until a head, tuned on 72 labels behind a map, has 95 % of the source encoder's accuracy."""
  n, x, labels = encoders.TRAINED, pair["x"], pair["labels"]
  few = 72  # pairs
  rules = {
    "orthogonal": transport.OrthogonalMap(64, 96), "spectral": transport.SpectralMap(64, 96, low=0.7, high=1.4),
    "unconstrained": transport.LinearMap(64, 96),
  }  # fmt: skip
  parameters = {name: rule.fit(x[:few], pair["y"][:few]) for name, rule in rules.items()}
  rules["random"] = rules["orthogonal"]
  parameters["random"] = rules["random"].init(jax.random.key(seed))
  goal, steps = 0.95 * pair["accuracy"][0], {}
  for name, rule in rules.items():
    z = np.asarray(rule(parameters[name], jnp.asarray(x)))
    kernel, bias = (np.array(part) for part in pair["head"])
    onehot, count = np.eye(10)[labels[:few]], 0
    while count < 400 and (np.argmax(z[n:] @ kernel + bias, 1) == labels[n:]).mean() < goal:
      logits = z[:few] @ kernel + bias
      gap = scipy.special.softmax(logits, axis=1) - onehot
      kernel, bias, count = kernel - 2.0 * z[:few].T @ gap / few, bias - 2.0 * gap.mean(0), count + 1
    steps[name] = {"steps": count}
  return steps


@functools.cache
def shift_loss(rule: transport.MapRule, buffer: int, penalty: float) -> Loss:
  """Squared error on shifted rows, with a buffer of rows that stay, and with the isometry penalty."""

  def loss(p: Mapping[str, jax.Array], key: jax.Array, data: Any) -> jax.Array:
    source, target, kept = data
    rows_key, probe_key = jax.random.split(key)
    rows = jax.random.randint(rows_key, (32,), 0, len(source))
    total = jnp.mean(jnp.sum((rule(p, source[rows]) - target[rows]) ** 2, axis=1))
    if buffer:
      old = kept[rows % len(kept)]
      total += jnp.mean(jnp.sum((rule(p, old) - old) ** 2, axis=1))
    if penalty:
      keys = jax.random.split(probe_key, 8)
      each = jax.vmap(lambda x, k: transport.isometry_estimate(lambda r: rule(p, r), x, k))
      total += penalty * jnp.mean(each(source[rows[:8]], keys))
    return total

  return loss


def domain_shift(seed: int, pair: dict[str, Any], steps: int) -> dict[str, Any]:
  """Experiment 4: latents of digits turned by 40°, moved back to those of upright ones, with 64 rows of replay."""
  n, images, labels = encoders.TRAINED, pair["images"], pair["labels"]
  turned = scipy.ndimage.rotate(images, 40, axes=(1, 2), reshape=False, order=1)
  raw = pair["raw"]
  middle, scale = raw[:n].mean(0), np.sqrt(((raw[:n] - raw[:n].mean(0)) ** 2).sum(1).mean())
  clean, moved = pair["x"], ((pair["encode"](turned) - middle) / scale).astype(np.float32)
  ridge = transport.LinearMap(64, 10, 0.01)
  head = ridge.fit(clean[:n], np.eye(10, dtype=np.float32)[labels[:n]])

  def accuracy(rows: np.ndarray) -> float:
    return float((np.argmax(np.asarray(ridge(head, jnp.asarray(rows))), 1) == labels[n:]).mean())

  rng = np.random.default_rng(seed)
  few, replay = rng.permutation(n)[:128], rng.permutation(n)[:64]
  rule = transport.FlowMap(64, 64, couplings=2)
  start = rule.init(jax.random.key(seed))
  data = tuple(jnp.asarray(a) for a in (moved[few], clean[few], clean[replay]))
  numbers = {"before": {"shifted": accuracy(moved[n:]), "upright": accuracy(clean[n:])}}
  for name, buffer, penalty in (("plain", 0, 0.0), ("replay", 1, 0.0), ("penalty", 0, 3e-4), ("both", 1, 3e-4)):
    fitted = train_map(rule, start, shift_loss(rule, buffer, penalty), data, steps)
    image = lambda rows, fitted=fitted: np.asarray(rule(fitted, jnp.asarray(rows)))  # noqa: E731
    numbers[name] = {"shifted": accuracy(image(moved[n:])), "upright": accuracy(image(clean[n:]))}
  return numbers


@functools.cache
def mixed_loss(rule: transport.MapRule, probes: int) -> Loss:
  """The losses of experiment 5 under weights and ε that are data; 5 % of the rows are pairs, transport sees all."""
  solver = transport.EntropicTransport(iterations=20, tolerance=0.0, start=0.0)
  several = functools.partial(transport.isometry_estimate, probes=probes)
  estimate = transport.one_probe_isometry if probes == 1 else several

  def loss(p: Mapping[str, jax.Array], key: jax.Array, data: Any) -> jax.Array:
    x, y, weights, epsilon = data
    pair_key, x_key, y_key, probe_key = jax.random.split(key, 4)
    rows = jax.random.randint(pair_key, (32,), 0, round(0.05 * len(x)))
    source = x[jax.random.randint(x_key, (64,), 0, len(x))]
    target = y[jax.random.randint(y_key, (64,), 0, len(y))]
    image = rule(p, x[rows])
    each = jax.vmap(lambda r, k: estimate(lambda z: rule(p, z), r, k))
    parts = (
      jnp.mean(jnp.sum((image - y[rows]) ** 2, axis=1)),
      transport.contrastive(image, y[rows]),
      solver.divergence(rule(p, source), target, epsilon=epsilon),
      jnp.mean(each(source[:8], jax.random.split(probe_key, 8))),
    )
    return weights @ jnp.stack(parts)

  return loss


def ablation(seed: int, pair: dict[str, Any], steps: int) -> dict[str, Any]:
  """Experiment 5: 5 % of the pairs; one loss away at a time, primitives, numbers of probes, ε, learning rates."""
  n = encoders.TRAINED
  x, y = jnp.asarray(pair["x"]), jnp.asarray(pair["y"])
  full = {"pairs": 1.0, "contrastive": 0.1, "transport": 0.5, "isometry": 1e-3}

  def measured(
    rule: transport.MapRule, away: str = "", probes: int = 2, epsilon: float = 0.1, factor: float = 1.0
  ) -> dict[str, float]:
    weights = jnp.array([0.0 if name == away else weight for name, weight in full.items()])
    data = x[:n], y[:n], weights, jnp.float32(epsilon)
    fitted = train_map(rule, rule.init(jax.random.key(seed)), mixed_loss(rule, probes), data, steps, factor=factor)
    values = transport.singular_values(lambda r: rule(fitted, r), x[n])
    image = np.asarray(rule(fitted, x[n:]))
    return {"recall@1": retrieval(image, np.asarray(y[n:]))["recall@1"], "dispersion": float(values[0] / values[-1])}

  linear = transport.LinearMap(64, 96)
  numbers = {"all losses": measured(linear)} | {f"without {name}": measured(linear, name) for name in full}
  numbers |= {"orthogonal": measured(transport.OrthogonalMap(64, 96))}
  numbers |= {f"probes = {k}": measured(linear, probes=k) for k in PROBES}
  numbers |= {f"ε = {e}": measured(linear, epsilon=e) for e in (0.03, 0.3)}
  return numbers | {f"learning rate × {k}": measured(linear, factor=k) for k in (0.1, 10)}


def of_seed(seed: int, steps: int, cache: Cache) -> dict[str, Any]:
  """Every experiment with one seed; the encoders are trained where a part is not in the cache."""
  pair = functools.cache(lambda: pair_of_encoders(seed, steps))
  experiments: dict[str, Callable[[], Any]] = {
    "vision": lambda: two_encoders(pair(), steps),
    "text": lambda: two_texts(seed, steps),
    "head": lambda: handed_over(seed, pair()),
    "shift": lambda: domain_shift(seed, pair(), steps),
    "ablation": lambda: ablation(seed, pair(), steps),
    "likelihood": lambda: likelihoods(pair(), steps),
    "fuse": lambda: {"flow": fused_flow(pair(), steps)},
    "why": lambda: {"vision": why_not(pair()["x"], pair()["y"], encoders.TRAINED), "text": why_not(*texts(seed))},
  }
  own = {
    "vision": {"shares": SHARES}, "text": {"shares": SHARES}, "ablation": {"probes": PROBES},
    "likelihood": {"weight": LIKELIHOOD}, "why": {"by": ["distances", "cosines", "ranks"]},
  }  # fmt: skip
  settings = {name: {"steps": steps} | own.get(name, {}) for name in experiments}
  return {name: cache.get(f"{name}/{seed}", settings[name], make) for name, make in experiments.items()}


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """All numbers of all experiments, means over seeds; a seed's parts are kept in the cache as they come."""
  seeds, steps = (1, 60) if quick else (SEEDS, STEPS)
  runs = [of_seed(seed, steps, cache) for seed in range(seeds)]
  numbers: dict[str, Number] = {}
  for name in runs[0]:
    numbers |= _shown(name, [run[name] for run in runs])
  return numbers | _gates(numbers)


def _shown(name: str, runs: list[dict[str, dict[str, float]]]) -> dict[str, Number]:
  rows: list[list[Any]] = []
  numbers: dict[str, Number] = {}
  for arm, values in runs[0].items():
    for metric in values:
      over = Number.over([run[arm][metric] for run in runs], 0.05)
      if not arm.endswith("ott-jax"):  # whether it is installed or not, the same numbers are expected
        held = metric.startswith(("recall", "accuracy", "upright", "shifted", "nll")) and metric != "recall_lost"
        numbers[f"{name}/{arm}/{metric}"] = over if held else Number.noted(over.value)
      rows.append([arm, metric, f"{over.value:.3f} ± {over.spread:.3f}"])
  print(f"\n{name}\n{table(['arm', 'metric', 'mean ± deviation'], rows)}")
  return numbers


def _gates(numbers: Mapping[str, Number]) -> dict[str, Number]:
  """What must hold: Procrustes is Procrustes, a fused flow keeps its recall and is faster; what is only noted."""
  value = {name: number.value for name, number in numbers.items()}
  equal = value["vision/100%/orthogonal/recall@1"] - value["vision/100%/SciPy Procrustes/recall@1"]
  best = {part: value[f"{part}/100%/orthogonal/recall@1"] for part in ("vision", "text")}
  shares = {
    f"gate/{p}/unpaired share": Number.noted(value[f"{p}/unpaired/orthogonal/recall@1"] / max(b, 1e-9))
    for p, b in best.items()
  }
  speed = value["fuse/flow/ms_before"] / value["fuse/flow/ms_after"]
  return shares | {
    "gate/orthogonal is Procrustes": Number.bounded(abs(equal), most=0.005),
    "gate/fused recall lost": Number.noted(value["fuse/flow/recall_lost"]),
    "gate/fused speed": Number.noted(speed),
    "gate/fused FLOPs": Number.bounded(value["fuse/flow/flops_before"] / value["fuse/flow/flops_after"], least=5.0),
  }


CLAIM = Claim(
  FOLDER, measure, seeds=f"{SEEDS}: data split, initialisation and batches", budget=f"{STEPS} steps a model and a map"
)

if __name__ == "__main__":
  sys.exit(CLAIM.command())
