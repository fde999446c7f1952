"""Strict numerics for every test, 8 host devices, one compilation cache a session, and the folder of golden arrays."""

from collections.abc import Iterator
import gc
from importlib import metadata
import os
import pathlib
import re
import sys
import tarfile
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `core.process` sets it
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jpmhc-jax-cache-"))

# Its import shuts down all logging handlers; absl's, if there is one by then, closes the stderr that pytest captures.
import submitit  # noqa: F401, I001
import jax
from beartype import BeartypeConf, BeartypeDecorPlace
from beartype.claw import beartype_package
from jaxtyping import install_import_hook
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Annotations are checked at every call, shapes too in the modules that name some: a call there costs ten times as much.
# Tuples with names, which JAX builds with leaves of any kind, are only left alone by jaxtyping.
SHAPED = [path for path in ROOT.glob("jpmhc_jax/**/*.py") if re.search("jaxtyping|NamedTuple", path.read_text())]
install_import_hook([".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SHAPED], "beartype.beartype")
beartype_package("jpmhc_jax", conf=BeartypeConf(claw_is_pep526=False, claw_decor_place_func=BeartypeDecorPlace.FIRST))

jax.config.update("jax_numpy_rank_promotion", "raise")

# Behind the hook that checks their annotations.
from object_store import bucket, server  # noqa: E402, F401, I001
from jpmhc_jax.config import plugins  # noqa: E402
from jpmhc_jax.core.names import ORIGINS  # noqa: E402
from jpmhc_jax.mixers import FAMILIES  # noqa: E402

# What tests how programs are put together, or derivatives in float64, more than last bits: most of its time is
# compilation, and half of that is LLVM's. Not the slow tests, which compute for longer.
QUICKLY_COMPILED = (
  "commands", *(f"connections/test_{name}" for name in ("a", "ch", "con", "d", "e", "f", "k", "t")),  # not: segments
  "core/test_public_names.py", "evaluation", "examples", "experiments/test_seeded.py", "manifolds/test_manifolds.py",
  "models",
  *(f"manifolds/test_retractions.py::test_{name}" for name in ("no_matrix", "slope")),
  *(f"mixers/test_mixer_contract.py::test_{name}" for name in ("a_matrix_without", "other_sizes", "the_identity_is")),
  "mixers/test_mixer_golden.py", "mixers/test_mixer_gradients.py", "optim", "plugins", "runs",
  "spectral/test_jacobian.py", "sweeps", "training", "transport/test_maps.py",
)  # fmt: skip


# Slow tests that CI has no time for, by the beginnings of their cases: dear variants of what other slow cases ask too.
# `make test-nightly` runs them.
WHOLE = ("",)
MAIN = ("birkhoff", "cayley", "circulant", "iso", "permutation", "sinkhorn", "transport", "unconstrained")
OTHERS = tuple(f"{family}]" for family in FAMILIES if family not in MAIN)
NIGHTLY = {
  "commands/test_spectrum_command.py::test_every_family_has_a_row": WHOLE,
  "data/test_arc_builder.py::test_full_counts_and_steps": WHOLE,
  "mixers/test_mixer_contract.py::test_options_keep_the_contract": WHOLE,
  "multiprocess/test_faults.py::test_the_same_command_goes_on": WHOLE,
  "training/test_next_byte.py::test_the_shipped_recipe_trains": WHOLE,
  "training/test_transport.py::test_an_encoder_is_held_in_the_first_stage": WHOLE,
  "connections/test_families.py::test_parameters_gradients_and_start_of_every_generator_and_parameterisation": OTHERS,
  "connections/test_chain.py::test_a_chain_equals_its_connections_one_by_one": (
    "own-static in between", "own-gated", "own-dynamic-tpu", "previous-gated", "previous-dynamic-tpu",
    "previous-static",
  ),
  "manifolds/test_manifold_derivatives.py::test_both_modes_of_differentiation_go_through_every_retraction": (
    "Stiefel-7x2", "Stiefel-5x3-cayley_", "Iso-4x4-polar",
  ),
  "multiprocess/test_faults.py::test_kills_with_a_fresh_seed": WHOLE,
  "multiprocess/test_faults.py::test_one_two_and_four_processes": WHOLE,
  "models/test_single_pass.py::test_own_coefficients_in_one_pass_give_the_same_network": (
    "<class 'jpmhc_jax.models.trm.TRM'>-{'generator'", "<class 'jpmhc_jax.models.trm.TRM'>-{'token_mixer'",
  ),
  "models/test_single_pass.py::test_a_decoder_in_one_pass_is_its_connections_one_by_one": ("own-{'loops'",),
  "readme/test_docs_site.py::test_a_longer_tutorial_runs": ("arc", "sweep", "train"),
  "readme/test_readme_runs.py::test_the_commands_of_the_page": WHOLE,
  "spectral/test_correlated.py::test_theory_is_monte_carlo_for_every_family_and_similarity": ("2", "4", "8"),
  "spectral/test_proof.py::test_a_mixer_is_optimised_for_its_spectrum": WHOLE,
  "spectral/test_proof.py::test_theory_is_monte_carlo_for_every_family": ("2-", "3-", "4-", "7-", "8-"),
  "training/test_families_train.py::test_loss_falls_and_streams_separate": OTHERS,
  "training/test_learning.py::test_sudoku_tiny_solves_unseen_puzzles": WHOLE,
  "training/test_transport.py::test_a_run_through_its_stages_resumes_bit_for_bit": ("1",),
}  # fmt: skip

# `make test` and `make test-slow` compile with less optimisation, each program in one part, and, where jaxlib still has
# it, with the older and quicker emitter of loops: half to two thirds of the time. Without `-m`, as in `pytest
# tests/training`, everything compiles as a user does; so do the runs of `.ci/wheel`.
QUICK_FLAGS = " --xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):
  QUICK_FLAGS += " --xla_cpu_use_fusion_emitters=false"

# Rooms whose tests compile the same program again, mostly in processes that they start. Elsewhere nothing is written to
# a cache that is the session's: that takes a tenth of the time of a compilation.
KEPT = "jpmhc-jax-cache-" not in os.environ["JAX_COMPILATION_CACHE_DIR"]  # the caller's
COMPILED_AGAIN = (
  "commands", "evaluation", "examples", "experiments", "readme", "reporting", "runs", "sweeps", "training",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:  # no device has been asked for yet
  if config.option.markexpr:
    os.environ["XLA_FLAGS"] += QUICK_FLAGS


def _place(item: pytest.Item) -> str:
  return f"{item.path.relative_to(ROOT / 'tests').as_posix()}::{item.name}"


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  whole = len({item.path for item in items}) > 100  # not some files
  for start in (f"{test}[{case}" if case else test for test, cases in NIGHTLY.items() for case in cases):
    found = [item for item in items if _place(item).startswith(start) and "slow" in item.keywords]
    assert found or not whole, f"NIGHTLY in tests/conftest.py: {start!r} is no slow test any more"
    for item in found:
      item.add_marker("nightly")


def pytest_collection_finish() -> None:
  gc.freeze()  # what was imported and collected lives as long as the process: no garbage is looked for there again


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup(item: pytest.Item) -> None:
  place = _place(item)
  quickly = place.startswith(QUICKLY_COMPILED) and "slow" not in item.keywords
  seconds = 0.2 if KEPT or place.startswith(COMPILED_AGAIN) else float("inf")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
  jax.config.update("jax_disable_most_optimizations", quickly)
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))  # for processes that the test starts


@pytest.fixture(scope="module", autouse=True)
def registrations() -> Iterator[None]:
  """Behind each module, names that no module of the package has registered are forgotten, with their plugins."""
  yield
  registries = (FAMILIES, *(door.entries for door in plugins.DOORS), *ORIGINS.values())
  foreign = {n: o for origins in ORIGINS.values() for n, o in origins.items() if not o.module.startswith("jpmhc_jax.")}
  for name, origin in foreign.items():
    if origin.module not in sys.stdlib_module_names | {"__main__"}:  # what a doctest defines is said to be of builtins
      sys.modules.pop(origin.module, None)
    for registry in registries:
      registry.pop(name, None)
  plugins._imported.clear()


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
  """Behind each module, compiled programs are given up where they are many: each takes three or four of the 65,530 maps
  that Linux grants a process, and the one that gets none ends it."""
  yield
  if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder of golden arrays and data: the whole one where it is (JPMHC_SHARED, or beside the project), else the
  committed subset, unpacked. Comparisons go through `golden.py`, which knows that the subset leaves entries out."""
  whole = pathlib.Path(os.environ.get("JPMHC_SHARED", ROOT.parent / "shared"))
  if (whole / "fixtures").is_dir():
    return whole
  folder = tmp_path_factory.mktemp("shared")
  with tarfile.open(ROOT / "tests" / "fixtures" / "subset.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder
