"""docs/mixers.md is what the command prints; parameter counts are functions of n and d."""

import pathlib
import re

import jax
import pytest

from jpmhc_jax import mixers
from jpmhc_jax.commands.describe import mixer_markdown, mixer_rows
from jpmhc_jax.config import schema
from jpmhc_jax.models.connections import hyper_connection_fn

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "mixers.md"


BACKWARD = re.compile(r" \+ ([\d,]+) \|$", re.MULTILINE)


@pytest.mark.slow
def test_page_is_up_to_date():
  config = schema.Config()
  page, expected = PAGE.read_text(), mixer_markdown(config.connection.streams, config.model.width) + "\n"
  if not jax.__version__.startswith("0.10."):
    # The page was written with JAX 0.10. The backward programs are JAX's own work, and other versions save an operation
    # here and there.
    counts = zip(BACKWARD.findall(page), BACKWARD.findall(expected), strict=True)
    for written, now in counts:
      assert int(now.replace(",", "")) == pytest.approx(int(written.replace(",", "")), rel=0.25)
    page, expected = BACKWARD.sub("", page), BACKWARD.sub("", expected)
  assert page == expected, "jpmhc describe --mixers --markdown > docs/mixers.md"


def test_families_that_do_not_exist_for_so_many_streams_say_so(monkeypatch):
  some = ("identity", "cayley", "kronecker", "permutation", "quaternion")
  monkeypatch.setattr(mixers, "FAMILIES", {name: mixers.FAMILIES[name] for name in some})
  rows = {row[0]: row for row in mixer_rows(3, 8)}
  absent = {name for name, row in rows.items() if row[2] == "not for n = 3"}
  assert tuple(rows) == some and absent == {"kronecker", "quaternion"}
  assert "needs exactly 4 streams" in rows["quaternion"][3] and rows["cayley"][2] == "3"


@pytest.mark.parametrize("n, d", ((2, 64), (4, 128)))
def test_parameters_are_the_stated_function_of_n_and_d(n, d):
  for manifold, logits in (("sinkhorn", n * n), ("cayley", n * n), ("circulant", n), ("kronecker", 2 * (n // 2)),
                           ("sphere", (n - 1) ** 2), ("householder", n * n + n + 1)):  # fmt: skip
    rule = hyper_connection_fn(schema.Connection(streams=n, mixer=manifold), d, 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(rule.init, jax.random.key(0))))
    assert count == (n * d + 1) * (2 * n + logits), manifold
