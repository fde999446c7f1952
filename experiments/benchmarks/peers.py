"""The PyPI package `hyper-connections` (PyTorch), to lay beside our blocks; pip install '.[benchmarks]'.

It runs where JAX does: on the CPU with a thread for every core, or on the GPU.
"""

from collections.abc import Callable
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any

import jax

from jpmhc_jax.connections.conventions import Convention, CONVENTIONS
from jpmhc_jax.mixers import Sinkhorn

THREADS = os.cpu_count() or 1
# What our converter makes of its mHC layers, with our gradient of Sinkhorn (the fixed point's) in place of theirs.
_MHC = dataclasses.replace(CONVENTIONS["lucidrains_mhc"], mixer=Sinkhorn(clip=0.0, order="columns_first"))
# Its families and ours: (module, what the layer is built with, our connection of any number of streams).
SHARED: dict[str, tuple[str, dict[str, Any], Convention]] = {
  "HC": ("hyper_connections.hyper_connections", {}, CONVENTIONS["lucidrains_hc"]),
  "mHC, Sinkhorn-20": (
    "hyper_connections.manifold_constrained_hyper_connections", {"sinkhorn_iters": 20}, _MHC,
  ),
  "mHC v2, Sinkhorn-20": ("hyper_connections.mHCv2", {"sinkhorn_iters": 20}, _MHC),
  "mHC v2, log-domain Sinkhorn-20": (
    "hyper_connections.mHCv2", {"sinkhorn_iters": 20, "log_domain_sinkhorn": True}, _MHC,
  ),
}  # fmt: skip


def missing() -> str:
  """Why the package cannot be measured here, or the empty string."""
  absent = [name for name in ("torch", "hyper_connections") if importlib.util.find_spec(name) is None]
  if absent:
    return f"skipped: {' and '.join(absent)} not installed; pip install '.[benchmarks]'"
  backend = jax.default_backend()
  if backend == "tpu" or (backend == "gpu" and not _cuda()):
    return f"skipped: JAX runs on {backend!r} devices and this PyTorch does not"
  return ""


def _cuda() -> bool:
  import torch

  return torch.cuda.is_available()


def _place() -> str:
  return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _gradient(outputs: Callable[[], Any], wanted: list[Any], cotangent: Any) -> Callable[[], Any]:
  """Forward and backward, until the device is done."""
  import torch

  def run() -> Any:
    found = torch.autograd.grad(outputs(), wanted, cotangent, allow_unused=True)
    if cotangent.is_cuda:
      torch.cuda.synchronize()
    return found

  return run


def versions() -> dict[str, str]:
  """Installed versions of the package and of PyTorch, and the threads given to it."""
  return {name: importlib.metadata.version(name) for name in ("torch", "hyper-connections")} | {"threads": str(THREADS)}


def block(family: str, streams: int, width: int, tokens: int, compiled: bool) -> Callable[[], Any]:
  """Forward and backward of one of its layers around tanh, with gradients of the streams and of every parameter."""
  import torch

  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  module, options, _ = SHARED[family]
  init, expand, _ = importlib.import_module(module).get_init_and_expand_reduce_stream_functions(streams, **options)
  layer = init(dim=width, branch=torch.nn.Tanh(), layer_index=0).to(_place())
  x = expand(torch.randn(1, tokens, width, device=_place())).detach().requires_grad_()
  cotangent = torch.randn_like(x)
  run = torch.compile(layer) if compiled else layer
  return _gradient(lambda: run(x), [x, *layer.parameters()], cotangent)


def projection(streams: int, tokens: int, sweeps: int = 20) -> Callable[[], Any]:
  """Forward and backward of its Sinkhorn projection alone."""
  import torch

  torch.set_num_threads(THREADS)
  sinkhorn = importlib.import_module("hyper_connections.mHCv2").sinkhorn_knopps
  logits = torch.randn(tokens, streams, streams, requires_grad=True, device=_place())
  return _gradient(lambda: sinkhorn(logits, sweeps), [logits], torch.randn_like(logits))
