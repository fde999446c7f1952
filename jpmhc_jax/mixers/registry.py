"""The mixer families by name: ours and those that a user registers, and how a config writes one down."""

from collections.abc import Callable
import dataclasses
import re
import typing
from typing import Any, TypeVar

from jpmhc_jax.core.errors import check_choice, ConfigError, nearest
from jpmhc_jax.core.names import Origin, ORIGINS
from jpmhc_jax.core.scalars import plain
from jpmhc_jax.mixers.base import Mixer
from jpmhc_jax.mixers.birkhoff import BirkhoffNewton, EpsilonSinkhorn, Sinkhorn
from jpmhc_jax.mixers.blend import Choice, Hybrid
from jpmhc_jax.mixers.cayley import Cayley, CayleyIterative
from jpmhc_jax.mixers.grassmann import Grassmann
from jpmhc_jax.mixers.householder import Householder
from jpmhc_jax.mixers.iso import Iso
from jpmhc_jax.mixers.kronecker import Kronecker
from jpmhc_jax.mixers.orthostochastic import Orthostochastic, OrthostochasticNewtonSchulz
from jpmhc_jax.mixers.permutation import Circulant, PermutationMixture
from jpmhc_jax.mixers.polar import Polar
from jpmhc_jax.mixers.quaternion import Quaternion
from jpmhc_jax.mixers.sphere import SpectralSphere
from jpmhc_jax.mixers.transport import Transport
from jpmhc_jax.mixers.trivial import Identity, Unconstrained

__all__ = ["FAMILIES", "make", "name_of", "parse", "register_mixer"]

FAMILIES: dict[str, type[Mixer]] = {
  "identity": Identity,
  "unconstrained": Unconstrained,
  "birkhoff": Sinkhorn,
  "sinkhorn": Sinkhorn,
  "birkhoff_newton": BirkhoffNewton,
  "sinkhorn_epsilon": EpsilonSinkhorn,
  "permutation": PermutationMixture,
  "circulant": Circulant,
  "kronecker": Kronecker,
  "orthostochastic": Orthostochastic,
  "orthostochastic_newton_schulz": OrthostochasticNewtonSchulz,
  "transport": Transport,
  "cayley": Cayley,
  "cayley_iterative": CayleyIterative,
  "polar": Polar,
  "quaternion": Quaternion,
  "householder": Householder,
  "iso": Iso,
  "sphere": SpectralSphere,
  "grassmann": Grassmann,
  "hybrid": Hybrid,
  "choice": Choice,
}


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KINDS = (bool, int, float, str, Mixer, tuple[Mixer, ...])
_Class = TypeVar("_Class", bound=type)


def register_mixer(name: str) -> Callable[[_Class], _Class]:
  """A class decorator that adds a family of mixers, which a config then names as `connection.mixer`.

  The class is a frozen dataclass that implements `Mixer`; its fields, each with a default, are the family's options:
  bool, int, float, str, Mixer or tuple[Mixer, ...]. The family is known to `parse`, `jpmhc describe --mixers`, sweeps,
  `choice` and `hybrid`, diagnostics and spectra as ours are. A class that is defined anew, as in a notebook's cell that
  runs twice, takes the place of its older self.

  Raises ConfigError for a name that is taken or no lower-case word, and for a class that is no such mixer.

  >>> import dataclasses
  >>> @jp.register_mixer("half_turn")
  ... @dataclasses.dataclass(frozen=True)
  ... class HalfTurn(jp.Cayley):
  ...   alpha: float = 2.0
  >>> jp.mixers.parse("half_turn", "alpha=1") == HalfTurn(alpha=1.0)
  True
  """

  def add(cls: _Class) -> _Class:
    _check_family(name, cls)
    FAMILIES[name], ORIGINS["connection.mixer"][name] = cls, Origin.of(cls)
    return cls

  return add


def _check_family(name: str, cls: type) -> None:
  where = f"register_mixer({name!r})"
  if not _NAME.fullmatch(name):
    raise ConfigError(f"{where}: expected a word of lower-case letters, digits and underscores, e.g. 'reflection'.")
  if not issubclass(cls, Mixer):
    raise ConfigError(f"{where}: {_place(cls)} is no Mixer; derive the class from jpmhc_jax.Mixer.")
  taken = FAMILIES.get(name)
  if taken is not None and _place(taken) != _place(cls):
    raise ConfigError(f"{where}: the name is taken by {_place(taken)}; choose another for {_place(cls)}.")
  if cls.__abstractmethods__:
    missing = ", ".join(sorted(cls.__abstractmethods__))
    raise ConfigError(f"{where}: {_place(cls)} lacks {missing}; implement what jpmhc_jax.Mixer asks for.")
  if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):
    raise ConfigError(f"{where}: {_place(cls)} is no frozen dataclass; put @dataclasses.dataclass(frozen=True) on it.")
  kinds = _option_kinds(cls)
  for field in dataclasses.fields(cls):
    if kinds[field.name] not in _KINDS:
      raise ConfigError(
        f"{where}: option {field.name!r} of {_place(cls)} is a {field.type}; expected bool, int, float, str, Mixer or "
        "tuple[Mixer, ...]."
      )
    if field.default is dataclasses.MISSING:
      raise ConfigError(f"{where}: option {field.name!r} of {_place(cls)} has no default; give it one.")


def _place(cls: type) -> str:
  return f"{cls.__module__}.{cls.__qualname__}"


def _option_kinds(cls: type[Mixer]) -> dict[str, Any]:
  """The options of a family with their types; those of a module with postponed annotations are strings otherwise."""
  hints = typing.get_type_hints(cls)
  return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]


def make(name: str, **options: Any) -> Mixer:
  """The mixer of that family. Raises ConfigError for an unknown name, an unknown option, an option of the wrong type or
  with a value that the family refuses."""
  check_choice("connection.mixer", name, FAMILIES)
  kinds = _option_kinds(FAMILIES[name])
  options = {key: plain(value) for key, value in options.items()}
  for key, value in options.items():
    if key not in kinds:
      valid = ", ".join(kinds) or "none"
      hint = nearest(key, kinds)
      raise ConfigError(f"connection.options: {key!r} is no option of {name!r}; its options: {valid}.{hint}")
    _check_type(name, key, value, kinds[key])
  values = {key: float(value) if kinds[key] is float else value for key, value in options.items()}
  try:
    return FAMILIES[name](**values)
  except ConfigError as error:
    raise ConfigError(f"connection.options: {error}") from error


def parse(name: str, options: str = "") -> Mixer:
  """The mixer that `connection.mixer` and `connection.options` name, e.g. parse("sinkhorn",
  "sweeps=5,adjoint=unrolled").

  An option that is a mixer carries its own options in parentheses, "first=iso(method=newton),second=sinkhorn"; so may
  the name itself, as `name_of` writes it. Raises ConfigError as `make` does, and for text that cannot be read.
  """
  return _parse("connection.mixer", name, options)


def name_of(mixer: Mixer) -> str:
  """The name of a mixer, with the options that are not the default, e.g. 'cayley(alpha=1)': parse(name_of(m)) == m.

  Of several names for one class the last, which is the usual one; a class without a name goes by its own.
  """
  name = [type(mixer).__name__, *(name for name, cls in FAMILIES.items() if cls is type(mixer))][-1]
  fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(mixer) if dataclasses.is_dataclass(mixer) else ()
  changed = [field for field in fields if getattr(mixer, field.name) != field.default]
  own = ",".join(f"{field.name}={_written(getattr(mixer, field.name))}" for field in changed)
  return f"{name}({own})" if own else name


def _written(value: Any) -> str:
  if isinstance(value, Mixer):
    return name_of(value)
  if isinstance(value, tuple):
    return "/".join(map(_written, value))
  if isinstance(value, bool):
    return str(value).lower()
  return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _parse(field: str, name: str, options: str = "") -> Mixer:
  name, opened, own = name.strip().partition("(")
  check_choice(field, name, FAMILIES)
  if opened:
    if not own.endswith(")"):
      raise ConfigError(f"{field}={name + opened + own!r}: expected nothing behind the options of {name!r}.")
    options = ",".join(filter(None, (own[:-1], options)))
  kinds = _option_kinds(FAMILIES[name])
  values: dict[str, Any] = {}
  for item in filter(None, (part.strip() for part in _split(options, ","))):
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals:
      raise ConfigError(f"connection.options={options!r}: {item!r} is not of the form name=value.")
    if key in values:
      raise ConfigError(f"connection.options={options!r}: {key!r} is given twice.")
    values[key] = _read(name, key, text, kinds.get(key, str))
  return make(name, **values)


def _split(text: str, separator: str) -> list[str]:
  """The parts of a text between the separators that stand outside of parentheses."""
  parts, depth = [""], 0
  for letter in text:
    depth += (letter == "(") - (letter == ")")
    if depth < 0:
      break
    if letter == separator and not depth:
      parts.append("")
    else:
      parts[-1] += letter
  if depth:
    lone = "(" if depth > 0 else ")"
    raise ConfigError(
      f"connection.options={text!r}: {lone!r} without its partner; a family's own options stand in parentheses, e.g. "
      "first=iso(method=newton),second=sinkhorn."
    )
  return parts


def _read(name: str, key: str, text: str, kind: Any) -> Any:
  try:
    if kind is bool:
      return {"true": True, "false": False}[text.lower()]
    if kind in (int, float):
      return kind(text)
  except (KeyError, ValueError):
    raise ConfigError(f"connection.options: {key}={text!r}: {name!r} expects {_called(kind)}.") from None
  field = f"connection.options: {key}"
  if kind is Mixer:
    return _parse(field, text)
  if kind == tuple[Mixer, ...]:
    return tuple(_parse(field, part) for part in _split(text, "/"))
  return text


def _check_type(name: str, key: str, value: Any, kind: Any) -> None:
  whole = isinstance(value, int) and not isinstance(value, bool)
  if kind == tuple[Mixer, ...]:
    kind = tuple
  if not (whole if kind is int else (whole or isinstance(value, float)) if kind is float else isinstance(value, kind)):
    raise ConfigError(f"connection.options: {key}={value!r}: {name!r} expects {_called(kind)}.")


def _called(kind: Any) -> str:
  names = {int: "an integer", float: "a number", bool: "true or false", str: "a word", tuple: "mixers"}
  return names.get(kind, "the name of a mixer")
