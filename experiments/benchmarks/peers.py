"""The PyPI package `hyper-connections` (PyTorch) on the CPU, to lay beside our blocks; pip install '.[benchmarks]'."""

from collections.abc import Callable
import importlib
import importlib.metadata
import importlib.util
from typing import Any

THREADS = 2
# Its families and ours: (module, what the layer is built with, our connection settings).
SHARED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
  "HC": (
    "hyper_connections.hyper_connections", {},
    dict(manifold="unconstrained", read_write="linear", generator="gated", norm="rmsnorm_per_stream"),
  ),
  "mHC, Sinkhorn-20": (
    "hyper_connections.manifold_constrained_hyper_connections", {"sinkhorn_iters": 20},
    dict(manifold="sinkhorn", options="clip=0,order=columns_first", read_write="sigmoid", generator="gated"),
  ),
  "mHC v2, Sinkhorn-20": (
    "hyper_connections.mHCv2", {"sinkhorn_iters": 20},
    dict(manifold="sinkhorn", options="clip=0,order=columns_first", read_write="sigmoid", generator="gated"),
  ),
  "mHC v2, log-domain Sinkhorn-20": (
    "hyper_connections.mHCv2", {"sinkhorn_iters": 20, "log_domain_sinkhorn": True},
    dict(manifold="sinkhorn", options="clip=0,order=columns_first", read_write="sigmoid", generator="gated"),
  ),
}  # fmt: skip


def missing() -> str:
  """Why the package cannot be measured here, or the empty string."""
  absent = [name for name in ("torch", "hyper_connections") if importlib.util.find_spec(name) is None]
  return f"skipped: {' and '.join(absent)} not installed; pip install '.[benchmarks]'" if absent else ""


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
  layer = init(dim=width, branch=torch.nn.Tanh(), layer_index=0)
  x = expand(torch.randn(1, tokens, width)).detach().requires_grad_()
  cotangent = torch.randn_like(x)
  run = torch.compile(layer) if compiled else layer
  wanted = [x, *layer.parameters()]
  return lambda: torch.autograd.grad(run(x), wanted, cotangent, allow_unused=True)


def projection(streams: int, tokens: int, sweeps: int = 20) -> Callable[[], Any]:
  """Forward and backward of its Sinkhorn projection alone."""
  import torch

  torch.set_num_threads(THREADS)
  sinkhorn = importlib.import_module("hyper_connections.mHCv2").sinkhorn_knopps
  logits = torch.randn(tokens, streams, streams, requires_grad=True)
  cotangent = torch.randn(tokens, streams, streams)
  return lambda: torch.autograd.grad(sinkhorn(logits, sweeps), logits, cotangent)
