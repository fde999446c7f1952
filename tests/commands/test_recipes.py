"""The configs of the package load and say what they are; published models have the published number of parameters."""

import dataclasses
import functools
import math
import pathlib
import re
import sys

import jax
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema, sources
from jpmhc_jax.config.variants import VARIANTS
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.main import main
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "configs.md"
RECIPES = {
  "arc1": (*VARIANTS, "urm"),
  "arc2": VARIANTS,
  "arc_tiny": (*VARIANTS, "demo", "symbols"),
  "digits": ("cayley", "trm", "sinkhorn", "hybrid"),
  "images": ("tiny", "resnet20", "resnet56", "resnet18", "resnet50", "vit_s16", "vit_b16"),
  "maze": ("tiny", "hard"),
  "stdlib_lm": ("tiny", "depth", "looped", "tiny_trm", "looped_trm", "depth_hybrid"),
  "sudoku": ("tiny", "urm", "6x6", "9x9"),
  "transport": ("paired", "few", "flow", "staged"),
}


def _load(name, variant=""):
  return configs.load(f"{name}:{variant}" if variant else name)


def test_no_recipe_is_left_out_here():
  assert set(sources.bundled()) == set(RECIPES) and sources.bundled(sources.SWEEPS) == ("mixers",)


def test_what_each_config_says_of_itself_is_complete():
  for name, promise, recipes in sources.catalogue():
    offered = [variant for recipe in recipes for variant in recipe.variants]
    assert set(RECIPES[name]) <= set(offered) and len(offered) == len(set(offered))
    assert f"--config={name}" in promise
    assert all(text for recipe in recipes for text in (recipe.about, recipe.cost, recipe.measured))


def test_the_page_of_configs_is_what_the_command_prints(capsys):
  assert main(["configs", "--markdown"]) == 0
  assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8"), "jpmhc configs --markdown > docs/configs.md"


def test_the_command_lists_every_config_and_the_promise_of_one(capsys):
  assert main(["configs"]) == 0
  listed = capsys.readouterr().out
  assert all(f"{name}:" in listed for name in RECIPES) and "100 % exact" in listed
  assert main(["configs", "sudoku"]) == 0
  assert "Variants: tiny, urm, 6x6, 9x9" in capsys.readouterr().out
  assert main(["configs", "sudko"]) == 2 and "Did you mean 'sudoku'?" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("sudko:tiny", "no 'sudko' in the package, which has arc1, .* Did you mean 'sudoku'"),
    ("./mine.py:tiny", "no file .*mine.py. Did you mean 'mime.py'"),
  ],
)
def test_a_name_that_nobody_has_is_refused_with_the_nearest(spec, message, tmp_path, monkeypatch):
  (tmp_path / "mime.py").touch()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match=message):
    configs.load(spec)


def test_a_config_file_imports_what_lies_beside_it_and_ours_find_plugins_in_the_current_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.chdir(tmp_path)
  pathlib.Path("widths_of_mine.py").write_text("WIDTH = 48\n")
  pathlib.Path("mine.py").write_text(
    "import widths_of_mine\nfrom jpmhc_jax.config.load import default\n\ndef get_config():\n"
    "  config = default()\n  config.model.width = widths_of_mine.WIDTH\n  return config\n"
  )
  assert configs.load("mine.py").model.width == 48
  config = configs.load("sudoku:tiny", ["--config.plugins=widths_of_mine"])
  assert (config.plugins, config.plugin_folder) == (("widths_of_mine",), str(tmp_path))


@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_loads_and_an_unknown_one_is_refused_with_the_nearest(name):
  loaded = {variant: _load(name, variant) for variant in RECIPES[name]}
  assert len({repr(config) for config in loaded.values()}) == len(loaded)
  assert _load(name) in loaded.values()
  known = RECIPES[name][0]
  with pytest.raises(ConfigError, match=re.escape(known)):
    _load(name, known + "x")


@pytest.mark.parametrize("name", ["arc1", "arc2"])
def test_the_published_recipes_have_the_published_numbers(name):
  official, published = _load(name, "trm"), _load(name, "cayley")
  assert (official.connection.streams, published.connection.streams) == (1, 4)
  assert (official.model.recursion.inner, published.model.recursion.inner) == (4, 6)
  assert (official.optimizer.schedule, published.optimizer.schedule) == ("constant", "step")
  assert (official.optimizer.clip_norm, published.optimizer.clip_norm) == (0.0, 1.0)
  for config in (official, published):
    recursion, optimizer = config.model.recursion, config.optimizer
    assert (config.batch_size, recursion.outer, recursion.max_steps, recursion.exploration) == (768, 3, 16, 0.1)
    assert (optimizer.learning_rate, optimizer.beta2, optimizer.weight_decay, optimizer.ema) == (1e-4, 0.95, 0.1, 0.999)
    assert config.data.arc.augmentations == 1000 and config.data.arc.dataset == name


def test_the_tiny_arc_recipes_differ_in_nothing_but_the_mixer():
  """A comparison of manifolds is one only if the rest is equal."""
  loaded = [_load("arc_tiny", v) for v in VARIANTS if v not in ("trm", "grassmann")]
  changed = {field for other in loaded[1:] for field, *_ in configs.differences(loaded[0], other)}
  assert changed == {"connection.mixer"}


@functools.cache
def _examples():
  return tiny.dataset(tiny.config())


def _setup(config, vocabulary, length):
  """Shapes only: no row of this data set is ever encoded."""
  sizes = {"vocab_size": vocabulary, "side": math.isqrt(length), "identifiers": [str(k) for k in range(10)]}
  dataset = dataclasses.replace(_examples(), **sizes)
  return prepare(config, dataset, make_mesh(schema.Mesh(data=1), jax.devices()[:1]))


def _count(config, vocabulary=12, length=900):
  return _setup(config, vocabulary, length).parameter_count


def _config(connection=None, **model):
  return schema.Config(model=schema.Model(**model), connection=connection or schema.Connection(streams=1))


def test_the_cayley_recipe_has_the_published_parameters_and_its_table_is_no_parameter():
  setup = _setup(_load("arc1", "cayley"), 12, 900)
  state = jax.eval_shape(setup.create)
  assert setup.parameter_count == 6_829_058 + 4 * 102_400 == 7_238_658
  assert state.table.shape == (256, 512)
  assert state.carry.z_h.shape == (768, 916, 4, 512)
  assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


@pytest.mark.parametrize(
  ("expected", "config", "vocabulary", "length"),
  [
    (6_829_058, lambda: _load("arc1", "trm"), 12, 900),
    (13_663_234, lambda: _load("arc1", "urm"), 12, 900),
    (6_828_034, lambda: _config(), 11, 81),
    (6_822_914, lambda: _config(), 6, 900),
    (5_028_866, lambda: _config(token_mixer="mlp", positions="none"), 11, 81),
    (18_801_666, lambda: _config(token_mixer="mlp", positions="none"), 12, 900),
    (18_795_522, lambda: _config(token_mixer="mlp", positions="none"), 6, 900),
    (132_738, lambda: _config(width=64), 12, 900),
    (527_618, lambda: _config(width=128), 12, 900),
    (1_710_594, lambda: _config(width=256), 12, 900),
    (3_548_930, lambda: _config(width=384), 12, 900),
  ],
)
def test_parameter_counts_equal_the_official_ones(expected, config, vocabulary, length):
  assert _count(config(), vocabulary, length) == expected


@pytest.mark.parametrize("manifold", ["cayley", "sinkhorn", "identity"])
def test_streams_add_the_generators_of_four_connections_and_nothing_else(manifold):
  n, d = 4, 64
  connection = schema.Connection(mixer=manifold, streams=n)
  logits = 2 * n + (0 if manifold == "identity" else math.prod((n, n)))
  assert _count(_config(connection, width=d)) - _count(_config(width=d)) == 4 * (n * d * logits + logits)
