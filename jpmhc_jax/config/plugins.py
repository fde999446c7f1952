"""Tasks, data sets and optimisers by name, ours and those of plugins, and the config fields that plugins bring.

A plugin is a module that `config.plugins` names; importing it runs its `@register_task`, `@register_dataset`,
`@register_optimizer` and `@register_mixer`. Its fields form groups of their own: of
`register_dataset("waves", fields=WaveFields)` the group `data.waves`. `schema_of` makes the class of a config with
these groups; the schema itself never changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
import traceback
from typing import Any, TypeVar

from jpmhc_jax.config import schema
from jpmhc_jax.config.sources import search
from jpmhc_jax.core.errors import check_choice, ConfigError, UserError
from jpmhc_jax.core.fields import convert
from jpmhc_jax.core.names import Origin, ORIGINS

ENTRY_POINTS = "jpmhc_jax.plugins"
_OPTION = "--config.plugins="
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a name stands for. fields: the class of its group of the config."""

  value: Any
  fields: type | None
  traits: Mapping[str, Any]


class Door:
  """The names that a field such as `<part>.kind` may hold, and what each stands for.

  built_in: the module that registers each of our names, imported when the name is asked for.
  """

  def __init__(self, part: str, built_in: Mapping[str, str], leaf: str = "kind"):
    self.part, self.leaf, self.field, self.built_in = part, leaf, f"{part}.{leaf}", built_in
    self.entries: dict[str, Entry] = {}

  def register(self, name: str, fields: type | None = None, **traits: Any) -> Callable[[T], T]:
    """A decorator that gives what it decorates this name. Raises ConfigError for a taken name, and for bad fields."""

    def decorate(value: T) -> T:
      origin = Origin.of(value)
      self._check_name(name, origin)
      _check_fields(name, fields)
      self.entries[name], ORIGINS[self.field][name] = Entry(value, fields, traits), origin
      return value

    return decorate

  def __getitem__(self, name: str) -> Entry:
    """Raises ConfigError for a name that nobody has registered, with the nearest one."""
    if name in self.built_in:
      importlib.import_module(self.built_in[name])
    check_choice(self.field, name, dict.fromkeys((*self.built_in, *self.entries)))
    return self.entries[name]

  def names(self, plugins: Sequence[str]) -> tuple[str, ...]:
    """Our names and those of the plugins."""
    own = (name for plugin in plugins for name in _provided(plugin, self.field))
    return tuple(dict.fromkeys((*self.built_in, *own)))

  def _check_name(self, name: str, origin: Origin) -> None:
    known = ORIGINS[self.field].get(name)
    taken = self.built_in.get(name, "") or (str(known) if known else "")
    if taken and taken not in (str(origin), origin.module):
      raise ConfigError(f"{self.field}={name!r}: {taken} has taken the name; choose another for {origin}")
    fields = {field.name for field in dataclasses.fields(_part(schema.Config, self.part))}
    if not name.isidentifier() or (name in fields and name not in self.built_in):
      raise ConfigError(f"{self.field}={name!r}: expected a Python name that is no field of {self.part!r} already")


DATASETS = Door("data", {
  "arc": "jpmhc_jax.data.arc", "sudoku": "jpmhc_jax.data.sudoku", "maze": "jpmhc_jax.data.maze",
  "text": "jpmhc_jax.data.text", "images": "jpmhc_jax.data.images",
  "pairs": "jpmhc_jax.data.pairs",
})  # fmt: skip
TASKS = Door("model", {
  "trm": "jpmhc_jax.training.tasks.trm", "decoder": "jpmhc_jax.training.tasks.language",
  "vit": "jpmhc_jax.training.tasks.vision", "urm": "jpmhc_jax.training.tasks.urm",
  "trm_symbols": "jpmhc_jax.training.tasks.symbols",
  "transport": "jpmhc_jax.training.tasks.transport", "resnet": "jpmhc_jax.training.tasks.vision",
})  # fmt: skip
_OPTIMIZERS = ("adam_atan2", "adam_atan2_lucidrains", "adamw", "lion", "muon", "sgd")
OPTIMIZERS = Door("optimizer", dict.fromkeys(_OPTIMIZERS, "jpmhc_jax.training.optimizer"), leaf="name")
DOORS = (DATASETS, TASKS, OPTIMIZERS)

_beside = ""  # the folder of the config file that is running
_imported: dict[str, dict[str, set[str]]] = {}  # plugin -> config field -> names that its import registered


def _check_fields(name: str, fields: type | None) -> None:
  if fields is None:
    return
  if not dataclasses.is_dataclass(fields) or not fields.__dataclass_params__.frozen:  # type: ignore[attr-defined]
    raise ConfigError(f"fields of {name!r}: {fields!r}: expected a class under @dataclasses.dataclass(frozen=True)")
  for field in dataclasses.fields(fields):
    if "doc" not in field.metadata:
      raise ConfigError(f"{fields.__name__}.{field.name}: expected field(default, doc), with the field's meaning")


def _provided(plugin: str, field: str) -> list[str]:
  """Names of a config field that a plugin registers: as it was imported, or in a module that its namespace holds."""
  held = (
    getattr(value, "__module__", getattr(value, "__name__", None)) for value in vars(sys.modules[plugin]).values()
  )
  modules, new = {plugin, *held}, _imported[plugin][field]
  origins = {name: origin for name, origin in ORIGINS[field].items() if not origin.module.startswith("jpmhc_jax.")}
  return [name for name, origin in origins.items() if name in new or origin.module in modules]


@contextlib.contextmanager
def beside(folder: str) -> Iterator[None]:
  """Inside the block plugins are looked for in this folder, too: that of the config file that runs."""
  global _beside
  before, _beside = _beside, folder
  try:
    yield
  finally:
    _beside = before


def load(plugins: Sequence[str], folder: str = "", needed_by: str = "") -> None:
  """Imports the plugins; `folder` is searched for them behind everything else.

  needed_by: what needs them. Raises ConfigError that names the plugin that is missing, or file and line where its
  import fails.
  """
  folder = folder or _beside
  if plugins:
    search(folder)
  for plugin in plugins:
    if plugin not in _imported:
      before = {field: set(origins) for field, origins in ORIGINS.items()}
      _import(plugin, folder, needed_by)
      _imported[plugin] = {field: set(origins) - before[field] for field, origins in ORIGINS.items()}


def _import(plugin: str, folder: str, needed_by: str) -> None:
  if not all(part.isidentifier() for part in plugin.split(".")):
    raise ConfigError(f"plugins={plugin!r}: expected the name of a module, such as 'my_project.waves'")
  importlib.invalidate_caches()
  try:
    importlib.import_module(plugin)
  except UserError:
    raise
  except Exception as error:
    missing = getattr(error, "name", None) or ""
    if isinstance(error, ModuleNotFoundError) and f"{plugin}.".startswith(f"{missing}."):
      beside = f", a module in {folder}" if folder else ""
      who = f"{needed_by} needs it; " if needed_by else ""
      raise ConfigError(
        f"plugins={plugin!r}: no module {missing!r}; {who}expected an installed package{beside}, or one on PYTHONPATH"
      ) from error
    reason = getattr(error, "msg", None) or error
    raise ConfigError(f"{_place(plugin, error)}: {type(error).__name__}: {reason} (plugin {plugin!r})") from error


def _place(plugin: str, error: BaseException) -> str:
  """The file of the plugin's package and the line of it that raised the error."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}, line {error.lineno}"
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
  spec = importlib.util.find_spec(plugin.partition(".")[0])
  root = pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path()
  own = [f for f in frames if spec and (f.filename == spec.origin or pathlib.Path(f.filename).is_relative_to(root))]
  last = (own or frames)[-1]
  return f"{last.filename}, line {last.lineno}"


def offered() -> tuple[str, ...]:
  """Modules of installed packages under the entry point group `jpmhc_jax.plugins`."""
  return tuple(dict.fromkeys(point.module for point in importlib.metadata.entry_points(group=ENTRY_POINTS)))


def imported() -> tuple[str, ...]:
  """Every plugin that this process has imported."""
  return tuple(_imported)


def check(config: schema.Config) -> None:
  """Imports a config's plugins; raises ConfigError for a name that neither we nor they have registered."""
  load(config.plugins, config.plugin_folder)
  for door in DOORS:
    name, names = getattr(getattr(config, door.part), door.leaf), door.names(config.plugins)
    if name not in names and (origin := ORIGINS[door.field].get(name)):
      raise ConfigError(f"{door.field}={name!r}: {origin} has this name; add its module to plugins={config.plugins!r}")
    check_choice(door.field, name, names)


def choices_of(field: str, plugins: Sequence[str]) -> tuple[str, ...]:
  """The names that a field such as `data.kind` may hold; () for a field that holds none."""
  return next((door.names(plugins) for door in DOORS if door.field == field), ())


def names_of(value: Any) -> tuple[str, ...]:
  """The value of the field `plugins`, checked before all others: these depend on it."""
  (field,) = (field for field in dataclasses.fields(schema.Config) if field.name == "plugins")
  return convert(field, value, field.name)


def completed(
  values: Mapping[str, Any], folder: str, overrides: Sequence[str], offered: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
  """The values over the defaults of all fields that there are with the plugins, and the overrides of other fields."""
  asked = [argument.removeprefix(_OPTION) for argument in overrides if argument.startswith(_OPTION)]
  named = names_of(_names_in(asked[-1]) if asked else values.get("plugins", ()))
  load((*named, *offered), folder or values.get("plugin_folder", ""))
  defaults = dataclasses.asdict(schema_of((*named, *offered))())
  place = {"plugin_folder": folder} if folder and _lie_in(named, folder) else {}
  rest = [argument for argument in overrides if not argument.startswith(_OPTION)]
  return merged(defaults, {**values, "plugins": named, **place}), rest


def _names_in(text: str) -> list[str]:
  """The names in `a,b`, and in a tuple or list of them as Python writes it."""
  return [name for part in text.strip("()[]").split(",") if (name := part.strip(" '\""))]


def merged(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
  """The nested values, and the defaults of what is not among them."""
  return {**defaults, **values} | {
    name: merged(defaults[name], value)
    for name, value in values.items()
    if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
  }


def reduced(values: Mapping[str, Any], offered: Sequence[str]) -> dict[str, Any]:
  """The values with the names of those offered plugins that they use, without the groups of the others."""
  named = tuple(dict.fromkeys((*values["plugins"], *(plugin for plugin in offered if uses(plugin, values)))))
  unused = {(part, name) for part, name, _ in groups(offered)} - {(part, name) for part, name, _ in groups(named)}
  rest = {
    part: {name: value for name, value in values[part].items() if (part, name) not in unused}
    for part in dict.fromkeys(part for part, _ in unused)
  }
  return {**values, **rest, "plugins": named}


def uses(plugin: str, values: Mapping[str, Any]) -> bool:
  """Whether the values of a config name what the plugin registers."""
  connection = values["connection"]
  chosen = {door.field: {values[door.part][door.leaf]} for door in DOORS}
  chosen["connection.mixer"] = set(re.findall(r"\w+", f"{connection['mixer']} {connection['options']}"))
  return any(not chosen[field].isdisjoint(_provided(plugin, field)) for field in ORIGINS)


def _lie_in(plugins: Sequence[str], folder: str) -> bool:
  """Whether one of the plugins was imported from this folder."""
  files = (getattr(sys.modules[plugin], "__file__", None) for plugin in plugins)
  return any(file and pathlib.Path(file).is_relative_to(folder) for file in files)


def schema_of(plugins: Sequence[str]) -> type[schema.Config]:
  """The class of a config with the groups that these plugins bring; they have been imported."""
  return _schema(tuple(groups(plugins)))


def groups(plugins: Sequence[str]) -> Iterator[tuple[str, str, type]]:
  """(part of the config, name, class) of every group that these plugins bring: ("data", "waves", WaveFields)."""
  for door in DOORS:
    for name in door.names(plugins):
      fields = door.entries[name].fields if name in door.entries else None
      if fields is not None:
        yield door.part, name, fields


@functools.cache
def _schema(groups: tuple[tuple[str, str, type], ...]) -> type[schema.Config]:
  parts = []
  for part in dict.fromkeys(part for part, _, _ in groups):
    base = _part(schema.Config, part)
    own = [(name, cls, schema.group(cls, f"of {name}")) for group, name, cls in groups if group == part]
    parts.append((part, dataclasses.make_dataclass(base.__name__, own, bases=(base,), frozen=True)))
  if not parts:
    return schema.Config
  fields = [(name, cls, schema.group(cls, name)) for name, cls in parts]
  return dataclasses.make_dataclass("Config", fields, bases=(schema.Config,), frozen=True)


def _part(cls: type, name: str) -> Any:
  """The class of a group of fields."""
  return next(field.default_factory for field in dataclasses.fields(cls) if field.name == name)
