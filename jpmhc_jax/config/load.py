"""Loads, locks, overrides, checks and compares configurations.

The only module that knows ml_collections: a config file returns a ConfigDict made by `default()`, the rest of the
package receives the frozen dataclasses of `config.schema`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any, TypeAlias

from absl import flags
import ml_collections
from ml_collections import config_flags

from jpmhc_jax.config import plugins, schema, sources
from jpmhc_jax.core.errors import ConfigError, DataError, nearest, require
from jpmhc_jax.core.fields import check, check_bounds, convert, takes
from jpmhc_jax.core.files import to_json, write_atomically
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.core.scalars import plain

_FLAG = "config"
Resolvable: TypeAlias = schema.Config | ml_collections.ConfigDict | str  # what Python code names a config by


class _Values(ml_collections.ConfigDict):
  """A ConfigDict that takes scalars of NumPy and JAX as Python's."""

  def __setitem__(self, key: str, value: Any) -> None:
    super().__setitem__(key, plain(value))


class _Root(_Values):
  """A whole config: setting `plugins` imports them and adds their groups of fields."""

  def __setitem__(self, key: str, value: Any) -> None:
    super().__setitem__(key, value)
    if key == "plugins" and value:
      plugins.load(plugins.names_of(value))
      for part, name, fields in plugins.groups(self.plugins):
        if name not in self[part]:
          with self[part].unlocked():
            self[part][name] = _grouped(to_dict(fields()))


def default() -> ml_collections.ConfigDict:
  """The schema's defaults as a locked ConfigDict, ready for a config file to fill in.

  `config.plugins = ("my_project.waves",)` imports plugins; their fields can be set from there on.

  >>> import jpmhc_jax as jp
  >>> config = jp.default_config()
  >>> config.steps, config.connection.mixer = 100, "iso"
  """
  return _grouped(to_dict(schema.Config()), _Root).lock()


default_config = default  # its public name


def _grouped(values: Mapping[str, Any], kind: type[_Values] = _Values) -> _Values:
  return kind({name: _grouped(value) if isinstance(value, Mapping) else value for name, value in values.items()})


def load(spec: str, overrides: Sequence[str] = ()) -> schema.Config:
  """The checked config of `sudoku:tiny`, one of the package, or `path/to/file.py:variant`, under its overrides.

  overrides: such as '--config.optimizer.learning_rate=3e-4'.

  Raises ConfigError that names an unknown field with the nearest known one, a value of the wrong type, or a variant
  that the file does not offer.
  """
  return _apply(*_read(spec), overrides, plugins.offered())


def class_of(spec: str, overrides: Sequence[str] = ()) -> type[schema.Config]:
  """The class of `load(spec, overrides)`: the fields that it has by its plugins, whether or not the values fit."""
  values, _ = plugins.completed(*_read(spec), overrides, plugins.offered())
  return plugins.schema_of((*values["plugins"], *plugins.offered()))


def _read(spec: str) -> tuple[Mapping[str, Any], str]:
  """What a config file returns, and the folder that its plugins may lie in: its own, the current one for ours."""
  path, variant = sources.file_and_variant("--config", spec)
  folder = sources.current_folder() if sources.is_bundled(spec) else str(path.parent)
  try:
    with plugins.beside(folder):
      loaded = sources.run_file(path, "get_config", variant)
  except (AttributeError, KeyError, TypeError) as error:
    raise _config_file_error(path, error) from error
  if not isinstance(loaded, ml_collections.ConfigDict):
    raise ConfigError(
      f"{path}: get_config() returned a {type(loaded).__name__}; expected what jpmhc_jax.config.load.default() is"
    )
  return loaded.to_dict(), folder


def resolve(config: Resolvable, overrides: Mapping[str, Any] | None = None) -> schema.Config:
  """The checked config of Python code: a Config, a ConfigDict that a config file returns, or its name.

  overrides: values by dotted name, such as {"optimizer.learning_rate": 3e-4}. Raises ConfigError as `load` does.
  """
  start = load(config) if isinstance(config, str) else config
  values = start.to_dict() if isinstance(start, ml_collections.ConfigDict) else to_dict(start)
  changes = dict(overrides or {})
  cls = class_of_stored({**values, "plugins": changes.get("plugins", values.get("plugins", ()))})
  values = plugins.merged(to_dict(cls()), values)
  for name, value in changes.items():
    check_field(name, value, cls)
    *groups, last = name.split(".")
    group = values
    for each in groups:
      group = group[each]
    group[last] = value
  return validate(from_dict(values))


def load_default(overrides: Sequence[str] = ()) -> schema.Config:
  """The defaults with `--config.a.b=value` overrides, checked; raises ConfigError as `load` does."""
  return _apply({}, "", overrides, plugins.offered())


def override(config: schema.Config, overrides: Sequence[str], groups: Sequence[str]) -> schema.Config:
  """Applies `--config.<group>.…=value` overrides to a resolved config; all other fields belong to the run: refused."""
  for argument in overrides:
    if not argument.startswith(tuple(f"--{_FLAG}.{group}." for group in groups)):
      names = " and ".join(map(repr, groups))
      raise ConfigError(f"{argument}: only fields of {names} can be overridden for an existing run")
  return _apply(to_dict(config), "", overrides)


def _apply(
  values: Mapping[str, Any], folder: str, overrides: Sequence[str], offered: Sequence[str] = ()
) -> schema.Config:
  """offered: plugins that the config may use without naming them; it names those that it uses from here on."""
  values, overrides = plugins.completed(values, folder, overrides, offered)
  _check_overrides(overrides)
  argv = ["jpmhc", *overrides]
  parsed = flags.FlagValues()
  holder = config_flags.DEFINE_config_dict(_FLAG, _grouped(values).lock(), flag_values=parsed, sys_argv=argv)
  try:
    parsed(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise ConfigError(f"{error}{_expected_type(overrides, str(error))}") from error
  return validate(from_dict(plugins.reduced(holder.value.to_dict(), offered)))


def _config_file_error(path: pathlib.Path, error: Exception) -> ConfigError:
  """What a locked ConfigDict says of an unknown key or a wrong type inside a config file, in our words."""
  place = sources.where(path, error)
  unknown = re.search(r'Key "([^"]+)" does not exist', str(error))
  if unknown:
    return ConfigError(f"{place}: unknown field {unknown[1]!r}.{_renamed(unknown[1]) or nearest(unknown[1], _known())}")
  wrong = re.search(r"override field '([^']+)'.*?\. (.*) is of original type <class '(\w+)'>", str(error), re.DOTALL)
  if wrong:
    value = repr(wrong[2]) if wrong[3] == "str" else wrong[2]
    return ConfigError(f"{place}: {wrong[1]}={value}: expected {_expected_of(wrong[1])}, got {wrong[3]}")
  if str(error) == "'get_config'":
    return ConfigError(f"{path}: no function get_config(variant) in it; see {sources.CONFIGS / 'sudoku.py'}")
  return ConfigError(f"{place}: {type(error).__name__}: {error}")


def _expected_of(last: str) -> str:
  """What the fields take whose dotted names end so; all of one name take the same."""
  for name, value in leaves(widest()()):
    if name.rsplit(".", 1)[-1] == last:
      return type(value).__name__ + (f" such as {value!r}" if value else "")
  return "no value of its own: a group, whose fields are set one by one"


# Fields of an earlier version that have another name now, or that an option of a command has replaced. A stored config
# is read with them; any other use is an error that names what took their place.
RENAMED = {"connection.manifold": "connection.mixer"}
REPLACED = {
  "evaluation.wrong_puzzle": "jpmhc evaluate --wrong-puzzle",
  "evaluation.ablation": "jpmhc evaluate --ablation=identity",
  "evaluation.ablation_layers": "jpmhc evaluate --ablation=identity --layers=block0.tokens",
  "evaluation.spectrum": "jpmhc spectrum --workdir=runs/first",
}


# Fields that an earlier version did not have, with what it did.
FORMER = {"optimizer.ema_warmup": False}


def _renamed(name: str) -> str:
  """What took the place of the field of this dotted or last name; '' where no field was called so."""
  words = {old: f" It is called {new!r} now." for old, new in RENAMED.items()}
  words |= {old: f" It is an option of a command now, such as `{command}`." for old, command in REPLACED.items()}
  return next((text for old, text in words.items() if name in (old, old.rpartition(".")[2])), "")


def upgraded(values: Any) -> Any:
  """The fields of a stored config under the names that they have now, without those that are options now.

  A field that is newer than the config has the value that does what the code did then.
  """
  for old in (*RENAMED, *REPLACED):
    group, _, name = old.rpartition(".")
    fields = values.get(group) if isinstance(values, Mapping) else None
    if isinstance(fields, Mapping) and name in fields:
      rest = {key: value for key, value in fields.items() if key != name}
      renamed = {RENAMED[old].rpartition(".")[2]: fields[name]} if old in RENAMED else {}
      values = {**values, group: {**rest, **renamed}}
  for added, former in FORMER.items():
    group, _, name = added.rpartition(".")
    fields = values.get(group) if isinstance(values, Mapping) else None
    if isinstance(fields, Mapping) and name not in fields:
      values = {**values, group: {**fields, name: former}}
  return values


def widest() -> type[schema.Config]:
  """The class with the fields of every plugin that this process has imported."""
  return plugins.schema_of(plugins.imported())


def _known() -> list[str]:
  return [name for name, _ in leaves(widest()())]


def _check_overrides(overrides: Sequence[str]) -> None:
  known = _known()
  for argument in overrides:
    name = argument.removeprefix(f"--{_FLAG}.").split("=", 1)[0]
    bare = name.lstrip("-")
    if not argument.startswith(f"--{_FLAG}.") and bare in known:
      _, _, value = argument.partition("=")
      raise ConfigError(f"unknown argument {argument!r}: a field is set as --{_FLAG}.{bare}={value or 'VALUE'}")
    if not argument.startswith(f"--{_FLAG}.") or name not in known:
      raise ConfigError(f"unknown argument {argument!r}: no field {name!r}.{_renamed(name) or nearest(name, known)}")
    if "=" not in argument:
      raise ConfigError(f"{argument}: expected {argument}=VALUE")


def _expected_type(overrides: Sequence[str], said: str) -> str:
  """What the field that the parser complains of takes; all overridden fields where it names none."""
  values = dict(leaves(widest()()))
  names = dict.fromkeys(argument.removeprefix(f"--{_FLAG}.").split("=", 1)[0] for argument in overrides)
  named = [name for name in names if f"--{_FLAG}.{name}=" in said] or names
  expected = ", ".join(f"{name}: {type(values[name]).__name__} such as {values[name]!r}" for name in named)
  return f" (expected {expected})" if named else ""


def to_dict(config: Any) -> dict[str, Any]:
  """A nested plain dict of a (nested) config dataclass."""
  return dataclasses.asdict(config)


def from_dict(values: Any, needed_by: str = "") -> schema.Config:
  """Builds the config from a nested mapping; unknown keys and wrong types are errors that name the field.

  needed_by: what needs the plugins, where one cannot be imported.
  """
  stored = values if isinstance(values, Mapping) else {}
  return _build(values, class_of_stored(stored, needed_by))


def class_of_stored(values: Mapping[str, Any], needed_by: str = "") -> type[schema.Config]:
  """The class of a stored config by its plugins, which are imported; raises ConfigError where one cannot be."""
  named = plugins.names_of(values.get("plugins", ()))
  plugins.load(named, values.get("plugin_folder", ""), needed_by)
  return plugins.schema_of(named)


def _build(values: Any, cls: type, prefix: str = "") -> Any:
  if not isinstance(values, Mapping):
    raise ConfigError(f"{prefix[:-1] or 'config'}={values!r}: expected an object of fields")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      raise ConfigError(f"unknown field {prefix + key!r}.{_renamed(prefix + key) or nearest(key, fields)}")
  return cls(**{key: _convert(fields[key], value, prefix + key) for key, value in values.items()})


def _convert(field: dataclasses.Field, value: Any, name: str) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return _build(value, field.default_factory, name + ".")  # type: ignore[arg-type]
  return convert(field, value, name)


def check_field(name: str, value: Any, cls: type[schema.Config] = schema.Config) -> None:
  """Raises ConfigError for a value that the field cannot have in any config, and for a field that does not exist."""
  known = dict(schema_fields(cls))
  if name not in known:
    raise ConfigError(f"unknown field {name!r}.{_renamed(name) or nearest(name, known)}")
  check_bounds(known[name], convert(known[name], value, name), name)


def schema_fields(cls: type = schema.Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
  """Yields ('optimizer.learning_rate', its field) for every field of a config's class."""
  for field in dataclasses.fields(cls):
    if field.default_factory is not dataclasses.MISSING:
      yield from schema_fields(field.default_factory, f"{prefix}{field.name}.")  # type: ignore[arg-type]
    else:
      yield prefix + field.name, field


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields ('optimizer.learning_rate', value) for every field."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, f"{prefix}{field.name}.")
    else:
      yield prefix + field.name, value


def documentation(cls: type = schema.Config, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
  """Yields (name, default, meaning, what it takes) for every field, in the schema's order.

  What it takes: 'its | choices', or its bounds in words; empty for any value.
  """
  for name, field in schema_fields(cls, prefix):
    yield name, field.default, field.metadata["doc"], takes(field)


def differences(a: schema.Config, b: schema.Config) -> list[tuple[str, Any, Any]]:
  """(field, value in a, value in b) for every field that differs; one that only one of them has counts as its default.

  Where plugins lie is no difference.
  """
  defaults = dict(leaves(type(a)())) | dict(leaves(type(b)()))
  ours, theirs = (defaults | dict(leaves(config)) for config in (a, b))
  return [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name] and name != "plugin_folder"]


def save(config: schema.Config, path: pathlib.Path) -> None:
  """Writes the resolved config as JSON."""
  write_atomically(path, to_json(to_dict(config), indent=2) + "\n")


def restore(path: pathlib.Path) -> schema.Config:
  """Reads what `save` wrote. Raises ConfigError when the file is missing, cannot be read or is no config."""
  try:
    stored = read_json(path, remedy="restore it from a backup or train in a new workdir")
    return from_dict(upgraded(stored), needed_by=f"the run in {path.parent}")
  except (FileNotFoundError, NotADirectoryError) as error:
    raise ConfigError(f"{path}: no such file; is {path.parent} a workdir of `jpmhc train`?") from error
  except OSError as error:
    raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
  except DataError as error:
    raise ConfigError(str(error)) from error


def validate(config: schema.Config) -> schema.Config:
  """Returns the config unchanged, or raises ConfigError for the first field whose value cannot work.

  What a task asks of its fields is checked where the task is looked up, by `training.tasks.task_of`.
  """
  plugins.check(config)
  c, optimizer = config, config.optimizer
  check(config)
  require(
    c.batch_size % c.accumulation == 0, "batch_size", c.batch_size, f"a multiple of accumulation={c.accumulation}"
  )
  require(
    len(optimizer.step_boundaries) == len(optimizer.step_factors),
    "optimizer.step_factors",
    optimizer.step_factors,
    f"as many entries as optimizer.step_boundaries={optimizer.step_boundaries}",
  )
  require(c.mesh.data != 0, "mesh.data", 0, "at least 1, or -1 for what the other axes leave")
  return config
