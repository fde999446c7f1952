"""Configs: loading, overrides, errors that name the nearest field, round trips, validation."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core import fields
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training.tasks import task_of

GOOD = """
from jpmhc_jax.config.load import default
def get_config(variant="a"):
  config = default()
  config.steps = {"a": 3, "b": 4}[variant]
  return config
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(GOOD)
  return path


def test_variant_and_overrides_reach_the_config(config_file):
  config = configs.load(
    f"{config_file}:b",
    ["--config.optimizer.learning_rate=3e-4", "--config.optimizer.step_boundaries=(0.5,0.9)", "--config.mesh.data=2"],
  )
  assert (config.steps, config.optimizer.learning_rate, config.mesh.data) == (4, 3e-4, 2)
  assert config.optimizer.step_boundaries == (0.5, 0.9)
  assert configs.load(str(config_file)).steps == 3


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.optimizer.learning_rat=1", r"no field 'optimizer.learning_rat'. Did you mean 'optimizer.learning_rate'"),
    ("--config.learning_rate=1", "Did you mean 'optimizer.learning_rate'"),
    ("--config.steps=many", "expected steps: int"),
    ("--config.steps=1.5", "expected steps: int"),
    (
      "--config.connection.read_write=softmx",
      "expected one of softmax, sigmoid, softmax_read, linear. Did you mean 'softmax'",
    ),
    ("--config.steps=0", "steps=0: expected at least 1"),
    ("--config.model.heads=7", "model.width=512: expected a multiple of model.heads=7"),
    ("--config.model.heads=0", "model.heads=0: expected at least 1"),
    ("--config.model.heads=-1", "model.heads=-1: expected at least 1"),
    ("--config.model.expansion=0", "model.expansion=0.0: expected a positive number"),
    ("--config.evaluation.batch_size=-1", "evaluation.batch_size=-1: expected at least 0"),
    ("--config.optimizer.beta2=1.0", "optimizer.beta2=1.0: expected 0 to below 1"),
    ("--config.seed=-1", r"seed=-1: expected 0 to 4294967295"),
    ("--config.seed=4294967296", r"seed=4294967296: expected 0 to 4294967295"),
    ("--config.seed=99999999999999999999", r"seed=99999999999999999999: expected 0 to 4294967295"),
    ("--config.data.arc.builder_seed=-1", r"data.arc.builder_seed=-1: expected 0 to 4294967295"),
    ("--config.connection.init_scale=nan", "connection.init_scale=nan: expected a finite number"),
    ("--config.batch_size=5", None),
    ("--config.optimizer.step_factors=(0.1,)", "expected as many entries as optimizer.step_boundaries"),
    ("--config.model.puzzle.width=9000", "expected 0 to slots"),
    ("--config.steps", "expected --config.steps=VALUE"),
    ("--steps=3", "unknown argument '--steps=3': a field is set as --config.steps=3"),
    ("seed", "unknown argument 'seed': a field is set as --config.seed=VALUE"),
  ],
)
def test_bad_overrides_are_refused_with_field_and_remedy(config_file, override, message):
  if message is None:
    assert configs.load(str(config_file), [override]).batch_size == 5
    return
  with pytest.raises(ConfigError, match=re.escape(message)):
    task_of(configs.load(str(config_file), [override]))


def test_a_wrong_type_is_explained_for_its_field_alone(config_file):
  with pytest.raises(ConfigError, match=r"steps=x.*\(expected steps: int such as 1000\)$"):
    configs.load(str(config_file), ["--config.seed=1", "--config.steps=x", "--config.batch_size=4"])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("def get_config(:\n", r"config.py, line 1: SyntaxError: invalid syntax"),
    ("\nimport no_such_module\n", r"config.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"),
    ("def get_config():\n  return undefined\n", r"config.py, line 2: NameError: name 'undefined' is not defined"),
    ("def get_config():\n  return {}\n", r"config.py: get_config\(\) returned a dict; expected"),
    ("x = 3\n", r"no function get_config"),
  ],
)
def test_a_file_that_is_no_config_is_refused_with_the_line(tmp_path, content, message):
  (tmp_path / "config.py").write_text(content)
  with pytest.raises(ConfigError, match=message):
    configs.load(str(tmp_path / "config.py"))


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("config.stepss = 3", "config.py, line 4: unknown field 'stepss'. Did you mean 'steps'"),
    ("config.steps = 'three'", r"config.py, line 4: steps='three': expected int such as 1000, got str$"),
    ("config.steps = 3.5", "line 4: steps=3.5: expected int such as 1000, got float$"),
    ("config.data.arc.folder = 3", "line 4: folder=3: expected str, got int$"),
    ("config.model = 3", "line 4: model=3: expected no value of its own: a group, whose fields are set one by one"),
    (
      "config.optimizer.step_factors = (1, 'a')",
      r"optimizer.step_factors=\(1, 'a'\): expected numbers such as \(0.316",
    ),
    ("len(config.steps)", "line 4: TypeError: object of type 'int' has no len"),
    ("config.model.recursion.iner = 3", "unknown field 'iner'. Did you mean 'model.recursion.inner'"),
  ],
)
def test_a_config_file_with_a_mistake_is_refused(tmp_path, body, message):
  path = tmp_path / "config.py"
  path.write_text(
    f"from jpmhc_jax.config.load import default\ndef get_config():\n  config = default()\n  {body}\n  return config\n"
  )
  with pytest.raises(ConfigError, match=message):
    configs.load(str(path))


def test_missing_file_and_missing_function_are_refused(tmp_path):
  with pytest.raises(ConfigError, match="no file"):
    configs.load(str(tmp_path / "none.py"))
  (tmp_path / "empty.py").write_text("x = 1\n")
  with pytest.raises(ConfigError, match="no function get_config"):
    configs.load(str(tmp_path / "empty.py"))


def test_save_and_restore_give_the_same_config(tmp_path):
  config = dataclasses.replace(
    schema.Config(), steps=7, optimizer=schema.Optimizer(step_boundaries=(0.5,), step_factors=(0.1,))
  )
  configs.save(config, tmp_path / "config.json")
  assert configs.restore(tmp_path / "config.json") == config
  assert configs.differences(config, schema.Config())[0] == ("steps", 7, 1000)
  assert configs.differences(config, config) == []


def test_a_config_written_by_hand_is_checked(tmp_path):
  values = configs.to_dict(schema.Config())
  values["model"]["widht"] = 3
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(ConfigError, match=r"unknown field 'model.widht'. Did you mean 'width'"):
    configs.restore(tmp_path / "config.json")
  for content in (b"{", b"\xff"):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match="config.json: not readable as JSON .*; restore it from a backup"):
      configs.restore(tmp_path / "config.json")
  with pytest.raises(ConfigError, match="is .* a workdir"):
    configs.restore(tmp_path / "nothing.json")
  for text, message in (("[1]", r"config=\[1\]: expected an object of fields"), ('{"data": 3}', "data=3: expected an")):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
      configs.restore(tmp_path / "config.json")
  (tmp_path / "link.json").symlink_to("/dev/zero")
  with pytest.raises(ConfigError, match="link.json: is a character device"):
    configs.restore(tmp_path / "link.json")


def test_only_the_named_group_of_an_existing_run_can_be_overridden():
  config = configs.override(schema.Config(), ["--config.evaluation.max_examples=3"], ("evaluation",))
  assert config.evaluation.max_examples == 3
  with pytest.raises(ConfigError, match="only fields of 'evaluation'"):
    configs.override(schema.Config(), ["--config.steps=3"], ("evaluation",))


def test_every_field_is_documented_and_every_choice_contains_its_default():
  names = [name for name, _, _, _ in configs.documentation()]
  assert names == [name for name, _ in configs.leaves(schema.Config())]
  for name, default, meaning, takes in configs.documentation():
    assert len(meaning) > 10, name
    assert "|" not in takes or default in takes.split(" | "), name
  fields.check(schema.Config())


@pytest.mark.parametrize(
  ("bounds", "words", "good", "bad"),
  [
    ({"ge": 1}, "at least 1", (1, 2.5), (0, 0.999)),
    ({"gt": 0}, "a positive number", (1e-30,), (0, -1)),
    ({"gt": 2}, "above 2", (3,), (2,)),
    ({"le": 3}, "at most 3", (3, -7), (4,)),
    ({"lt": 3}, "below 3", (2,), (3,)),
    ({"ge": 0, "lt": 1}, "0 to below 1", (0, 0.99), (1.0, -0.1)),
    ({"gt": 0, "le": 1}, "above 0 to 1", (1, 0.1), (0, 1.1)),
    ({"ge": 0, "rising": True}, "at least 0, in rising order", ((), (0, 0, 1)), ((1, 0), (-1, 0))),
    ({}, "", (-1e300, (2, 1)), ()),
  ],
)
def test_bounds_hold_what_their_words_say(bounds, words, good, bad):
  bounds = fields.Bounds(**bounds)
  assert str(bounds) == words
  assert all(map(bounds.hold, good)) and not any(map(bounds.hold, bad))


def test_the_fields_of_any_dataclass_are_checked_by_their_bounds():
  @dataclasses.dataclass(frozen=True)
  class Inner:
    ways: tuple[float, ...] = schema.field((1.0,), "numbers", ge=0)

  @dataclasses.dataclass(frozen=True)
  class Waves:
    length: int = schema.field(4, "a length", ge=2, le=8)
    inner: Inner = schema.group(Inner, "a group")

  fields.check(Waves(), "data.waves.")
  for wrong, message in (
    (Waves(length=9), "data.waves.length=9: expected 2 to 8"),
    (Waves(inner=Inner((1.0, -1.0))), r"data.waves.inner.ways=\(1.0, -1.0\): expected numbers of at least 0"),
    (Waves(inner=Inner((float("nan"),))), "data.waves.inner.ways=.* expected a finite number"),
  ):
    with pytest.raises(ConfigError, match=f"^{message}$"):
      fields.check(wrong, "data.waves.")


def test_numbers_of_numpy_and_jax_are_numbers_in_config_files_and_dicts():
  values = configs.default()
  values.model.width, values.steps, values.optimizer.learning_rate = np.int64(32), jnp.int32(3), np.float32(0.5)
  values.logging.tensorboard, values.optimizer.step_factors = np.bool_(False), (np.float32(0.5), np.float64(0.25))
  values.model.recursion.inner, values.connection.mixer = np.uint8(2), np.str_("iso")
  config = configs.validate(configs.from_dict(values.to_dict()))
  model = config.model
  assert (model.width, config.steps, config.optimizer.learning_rate, model.recursion.inner) == (32, 3, 0.5, 2)
  kinds = {name: type(value) for name, value in configs.leaves(schema.Config())}
  assert {name: type(value) for name, value in configs.leaves(config)} == kinds
  with pytest.raises(ConfigError, match="steps=5.0: expected int, got float"):
    configs.from_dict({"steps": np.float32(5)})
  with pytest.raises(ConfigError, match="seed=True: expected int, got bool"):
    configs.from_dict({"seed": np.bool_(True)})


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("step_factors", (0.5, -0.1), "numbers of at least 0"),
    ("step_factors", (0.5, float("nan")), "a finite number"),
    ("step_boundaries", (0.9, 0.8), "numbers of 0 to 1, in rising order"),
    ("step_boundaries", (0.5, 1.5), "numbers of 0 to 1, in rising order"),
    ("step_boundaries", (0.5, float("inf")), "a finite number"),
  ],
)
def test_steps_of_the_learning_rate_are_fractions_in_order_and_factors_not_negative(field, value, expected):
  wrong = dataclasses.replace(schema.Optimizer(), **{field: value})
  with pytest.raises(ConfigError, match=f"optimizer.{field}=.*expected {expected}"):
    configs.validate(schema.Config(optimizer=wrong))


def test_a_renamed_field_is_told_by_its_new_name_and_a_stored_config_is_read_with_the_old_one(tmp_path):
  message = r"'connection.manifold'\. It is called 'connection.mixer' now\."
  with pytest.raises(ConfigError, match=message):
    configs.load_default(["--config.connection.manifold=iso"])
  with pytest.raises(ConfigError, match=message):
    configs.from_dict({"connection": {"manifold": "iso"}})
  with pytest.raises(ConfigError, match=message):
    configs.check_field("connection.manifold", "iso")
  config = dataclasses.replace(schema.Config(), connection=schema.Connection(mixer="iso", streams=2))
  configs.save(config, tmp_path / "config.json")
  text = (tmp_path / "config.json").read_text()
  (tmp_path / "config.json").write_text(text.replace('"mixer": "iso"', '"manifold": "iso"'))
  assert configs.restore(tmp_path / "config.json") == config


def test_a_field_that_is_an_option_now_is_told_by_the_command_and_a_stored_config_is_read_without_it(tmp_path):
  for name, command in configs.REPLACED.items():
    message = re.escape(f"It is an option of a command now, such as `{command}`.")
    with pytest.raises(ConfigError, match=message):
      configs.load_default([f"--config.{name}=1"])
    with pytest.raises(ConfigError, match=message):
      configs.check_field(name, "identity")
  (tmp_path / "config.py").write_text(
    GOOD.replace("config.steps", "config.evaluation.wrong_puzzle = True\n  config.steps")
  )
  with pytest.raises(ConfigError, match="line 5: unknown field 'wrong_puzzle'. It is an option .*--wrong-puzzle"):
    configs.load(str(tmp_path / "config.py"))
  values = configs.to_dict(schema.Config())
  values["evaluation"] |= {"wrong_puzzle": True, "spectrum": False, "ablation": "none", "ablation_layers": "all"}
  (tmp_path / "config.json").write_text(json.dumps(values))
  assert configs.restore(tmp_path / "config.json") == schema.Config()
