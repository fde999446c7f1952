"""From a name in the config to a manifold."""

import dataclasses
from typing import Any

from jpmhc_jax.core.errors import check_choice, ConfigError, nearest
from jpmhc_jax.core.scalars import plain
from jpmhc_jax.mixers.base import Mixer
from jpmhc_jax.mixers.birkhoff import BirkhoffNewton, EpsilonSinkhorn, Sinkhorn
from jpmhc_jax.mixers.cayley import Cayley, CayleyIterative
from jpmhc_jax.mixers.choice import Choice
from jpmhc_jax.mixers.grassmann import Grassmann
from jpmhc_jax.mixers.householder import Householder
from jpmhc_jax.mixers.hybrid import Hybrid
from jpmhc_jax.mixers.iso import Iso
from jpmhc_jax.mixers.kronecker import Kronecker
from jpmhc_jax.mixers.orthostochastic import Orthostochastic, OrthostochasticNewtonSchulz
from jpmhc_jax.mixers.permutation import Circulant, PermutationMixture
from jpmhc_jax.mixers.polar import Polar
from jpmhc_jax.mixers.quaternion import Quaternion
from jpmhc_jax.mixers.sphere import SpectralSphere
from jpmhc_jax.mixers.transport import Transport
from jpmhc_jax.mixers.trivial import Identity, Unconstrained

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


def make(name: str, **options: Any) -> Mixer:
  """The manifold of that name. Raises ConfigError for an unknown name, an unknown option or an option of the wrong
  type."""
  check_choice("connection.mixer", name, FAMILIES)
  cls = FAMILIES[name]
  known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
  options = {key: plain(value) for key, value in options.items()}
  for key, value in options.items():
    if key not in known:
      valid = ", ".join(known) or "none"
      hint = nearest(key, known)
      raise ConfigError(f"connection.options: {key!r} is no option of {name!r}; its options: {valid}.{hint}")
    _check_type(name, key, value, known[key].type)
  return cls(**{key: float(value) if known[key].type is float else value for key, value in options.items()})


def parse(name: str, options: str = "") -> Mixer:
  """The manifold that `connection.mixer` and `connection.options` name, e.g. parse("sinkhorn",
  "sweeps=5,adjoint=unrolled").

  An option that is a family carries its own options in parentheses, "first=iso(method=newton),second=sinkhorn"; so may
  the name itself, as `name_of` writes it. Raises ConfigError as `make` does, and for text that cannot be read.
  """
  return _parse("connection.mixer", name, options)


def name_of(manifold: Mixer) -> str:
  """The name of a manifold, with the options that are not the default, e.g. 'cayley(alpha=1)': parse(name_of(m)) == m.

  Of several names for one class the last, which is the usual one; a class without a name goes by its own.
  """
  name = [type(manifold).__name__, *(name for name, cls in FAMILIES.items() if cls is type(manifold))][-1]
  fields: tuple[dataclasses.Field[Any], ...] = (
    dataclasses.fields(manifold) if dataclasses.is_dataclass(manifold) else ()
  )
  changed = [field for field in fields if getattr(manifold, field.name) != field.default]
  own = ",".join(f"{field.name}={_written(getattr(manifold, field.name))}" for field in changed)
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
  types = {field.name: field.type for field in dataclasses.fields(FAMILIES[name])}  # type: ignore[arg-type]
  values: dict[str, Any] = {}
  for item in filter(None, (part.strip() for part in _split(options, ","))):
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals:
      raise ConfigError(f"connection.options={options!r}: {item!r} is not of the form name=value.")
    if key in values:
      raise ConfigError(f"connection.options={options!r}: {key!r} is given twice.")
    values[key] = _read(name, key, text, types.get(key, str))
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
  names = {int: "an integer", float: "a number", bool: "true or false", str: "a word", tuple: "manifolds"}
  return names.get(kind, "the name of a manifold")
