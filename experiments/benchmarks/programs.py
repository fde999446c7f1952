"""Compiled programs of every projection and block, forward and backward, to compare two versions without timing them.

  python -m experiments.benchmarks.programs --out=before.json                     # in the tree of one commit
  python -m experiments.benchmarks.programs --against=before.json [--out=FILE]    # in that of another

The programs are those that `projections` and `block` time, gradients of everything included. Each is kept as a digest
of its optimised HLO without the names of operations and the places in the source, with its temporaries and the
compiler's counts of operations and bytes. Programs of one digest take the same time and memory; for the others
`--against` gives the ratios of the three numbers, now / before.
"""

import argparse
import collections
from collections.abc import Callable, Iterator
import hashlib
import json
import re
from typing import Any
from unittest import mock

import jax

from experiments.benchmarks import block, projections, timing
from jpmhc_jax.core import arguments

TOKENS, STREAMS, WIDTH = 4096, 4, 128
_PLACES = re.compile(r", metadata=\{[^}]*\}|, frontend_attributes=\{.*?\}\}?(?=,|$)", re.M)
_NAME = re.compile(r"%[\w.\-]+")


def digest(text: str) -> str:
  """Of HLO text: every operation and computation is named by its place in the order of their first mention."""
  body = text[text.index("\n") :].replace(r"\n", "\n")
  body = "\n".join(line for line in _PLACES.sub("", body).splitlines() if "%" in line)
  order: dict[str, str] = collections.defaultdict(lambda: f"%{len(order)}")
  return hashlib.sha256(_NAME.sub(lambda name: order[name[0]], body).encode()).hexdigest()[:16]


def described(function: Callable[..., Any], *values: Any) -> dict[str, Any]:
  """Digest and counts of the compiled value and gradient of a function."""

  def both(values: Any, cotangent: Any) -> Any:
    result, pullback = jax.vjp(function, *values)
    return result, pullback(cotangent)

  compiled = jax.jit(both).lower(values, jax.eval_shape(function, *values)).compile()
  costs = compiled.cost_analysis() or {}
  return {
    "digest": digest(compiled.as_text()), "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    "operations": costs.get("flops", 0), "bytes": costs.get("bytes accessed", 0),
  }  # fmt: skip


def programs() -> Iterator[tuple[str, dict[str, Any]]]:
  """Name and description of each."""
  families = projections.candidates(STREAMS, TOKENS)
  for name, (project, shape) in families.items():
    yield f"projection {name}", described(project, jax.ShapeDtypeStruct(shape, jax.numpy.float32))
  with mock.patch.object(block, "compiled_gradient", described):
    blocks: Any = block.our_block
    for name in (name for name in families if " " not in name):
      yield f"block {name}", blocks(name, TOKENS, STREAMS, WIDTH, "auto")
    for name, form in block.FORMS.items():
      yield f"block cayley, {name}", blocks("cayley", TOKENS, STREAMS, WIDTH, "auto", **form)


def compared(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
  """For each program of both: 'identical', or the ratios of its counts."""
  columns = ("temporaries", "operations", "bytes")
  return {
    name: "identical"
    if now[name]["digest"] == before[name]["digest"]
    else {column: round(now[name][column] / max(before[name][column], 1), 4) for column in columns}
    for name in now
    if name in before
  }


def main() -> None:
  """Command line; see the module."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--against", type=arguments.path)
  parser.add_argument("--out", type=arguments.path)
  options = parser.parse_args()
  now = dict(programs())
  results: dict[str, Any] = {"tokens, streams, width": (TOKENS, STREAMS, WIDTH), "programs": now}
  if options.against:
    results["against"] = compared(now, json.loads(options.against.read_text())["programs"])
    same = sum(difference == "identical" for difference in results["against"].values())
    print(f"{same} of {len(results['against'])} programs are identical")
    for name, difference in results["against"].items():
      if difference != "identical":
        print(f"  {name:40s} {difference}")
  if options.out:
    timing.write_json(options.out, results)


if __name__ == "__main__":
  main()
