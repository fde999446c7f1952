"""The locks of the development environment: exact versions of everything that `.[dev]` asks for, and nothing else."""

import pathlib
import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==(\d[\w.+!]*)")  # a name and a version: no host, path, link or option fits


def _pins(lock):
  """The lines of a lock, by the name as pip compares names."""
  lines = lock.read_text(encoding="ascii").splitlines()
  assert all(PIN.fullmatch(line) for line in lines), [line for line in lines if not PIN.fullmatch(line)]
  return {canonicalize_name(PIN.fullmatch(line)[1]): PIN.fullmatch(line)[2] for line in lines}


def test_both_pairs_of_jax_and_flax_have_a_lock():
  versions = {lock.stem: ".".join(_pins(lock)["jax"].split(".")[:2]) for lock in LOCKS}
  assert versions == {"dev-3.11": "0.10", "dev-3.13": "0.12"}


def _extra(project, name):
  """The requirements of an extra, those of the extras that it names included."""
  for text in project["optional-dependencies"][name]:
    requirement = Requirement(text)
    if requirement.name == project["name"]:
      for other in sorted(requirement.extras):
        yield from _extra(project, other)
    else:
      yield text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_pins_what_the_project_asks_for(lock):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  pins, python = _pins(lock), {"python_version": lock.stem.removeprefix("dev-")}
  for text in (*project["dependencies"], *_extra(project, "dev")):
    requirement = Requirement(text)
    if requirement.marker is None or requirement.marker.evaluate(python):
      version = pins.get(canonicalize_name(requirement.name))
      assert version and requirement.specifier.contains(version), f"{lock.name}: {text}, pinned {version}: `make lock`"
  assert "jpmhc-jax" not in pins
