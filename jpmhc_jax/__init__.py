"""Manifold-constrained hyper-connections in JAX: mixers, manifolds, connections, optimisers and spectra to take home.

    import jpmhc_jax as jp

    connection = jp.HyperConnection(jp.Cayley(alpha=0.5), streams=4, width=64, rngs=nnx.Rngs(0))
    streams = connection(jp.expand(x, 4), my_module)  # (…, d) -> (…, 4, d)
    x = jp.reduce(streams)

    run = jp.train("sudoku:tiny", "runs/sudoku")  # as the command `jpmhc train` does
    run.metrics["train/loss"].values

Names are imported at their first use, so that `import jpmhc_jax` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_ROOMS = ("connections", "linalg", "manifolds", "mixers", "optim", "spectral", "transport")
_RUNS = ("Interrupted", "NonFiniteLossError", "Run", "evaluate", "load", "report", "train")
_ERRORS = ("CheckpointError", "ConfigError", "DataError", "StorageError", "UserError", "WorkdirError")
_CONNECTIONS = (
  "Chain", "Coefficients", "HyperConnection", "HyperConnectionFn", "Link", "Routing", "StreamExpansion",
  "StreamExpansionFn", "StreamSources", "StreamSourcesFn", "StreamTransition", "StreamTransitionFn", "expand", "reduce",
)  # fmt: skip
_MIXERS = (
  "BirkhoffNewton", "Cayley", "CayleyIterative", "Choice", "Circulant", "EpsilonSinkhorn", "Grassmann", "Householder",
  "Hybrid", "Identity", "Iso", "Kronecker", "Mixer", "Orthostochastic", "OrthostochasticNewtonSchulz",
  "PermutationMixture", "Polar", "Quaternion", "Sinkhorn", "SpectralSphere", "Traits", "Transport", "Unconstrained",
  "register_mixer",
)  # fmt: skip
_DATA = ("ArrayDataset", "Dataset", "register_dataset")
_TASKS = ("SinglePass", "Task", "register_task")
_HOME = {
  name: room
  for room, names in (
    ("connections", _CONNECTIONS), ("mixers", _MIXERS), ("runs", _RUNS), ("core.errors", _ERRORS), ("data", _DATA),
    ("training.tasks", _TASKS), ("training.optimizer", ("register_optimizer",)),
    ("core.fields", ("field",)), ("config.load", ("default_config",)),
  )
  for name in names
}  # fmt: skip

__all__ = ["__version__", *_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
  """A public name, imported from its room when it is first asked for."""
  if name in _ROOMS:
    return importlib.import_module(f"jpmhc_jax.{name}")
  if name in _HOME:
    from jpmhc_jax.core.errors import naming_the_extra

    with naming_the_extra(f"jp.{name}"):
      value = getattr(importlib.import_module(f"jpmhc_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value
  raise AttributeError(f"module 'jpmhc_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted(__all__)
