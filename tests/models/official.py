"""Official TRM weights, as the fixtures hold them, in our layout."""

import json
import pathlib
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.models.trm import TRM

CONFIGS = {
  "attn_T2n2": dict(outer=2, inner=2, max_steps=3, layers=2),
  "attn_T3n4": dict(outer=3, inner=4, max_steps=4, layers=2),
  "mlp_T2n2": dict(outer=2, inner=2, max_steps=2, layers=1, token_mixer="mlp", positions="none"),
}
SEQUENCE, SLOTS, WIDTH, HEADS, VOCAB = 36, 4, 32, 4, 12


def config(name: str) -> schema.Config:
  """Our config of one of the fixture's models, without streams."""
  values = dict(CONFIGS[name])
  recursion = schema.Recursion(
    outer=values.pop("outer"), inner=values.pop("inner"), max_steps=values.pop("max_steps"), exploration=0.0
  )
  model = schema.Model(
    width=WIDTH, heads=HEADS, recursion=recursion, puzzle=schema.Puzzle(width=WIDTH, slots=SLOTS), **values
  )
  return schema.Config(model=model, connection=schema.Connection(streams=1), batch_size=6)


def template(name: str) -> tuple[nnx.GraphDef, Any, Any]:
  """Graph, parameters and buffers (as plain dicts) of a freshly initialised model."""
  c = config(name)
  model = TRM(c.model, c.connection, vocab_size=VOCAB, sequence_length=SEQUENCE, rngs=nnx.Rngs(0))
  graph, params, buffers = nnx.split(model, nnx.Param, ...)
  return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of a fixture file; `__meta__` decoded."""
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files}
  arrays["__meta__"] = json.loads(bytes(arrays["__meta__"]))
  return arrays


def convert(weights: dict[str, np.ndarray], name: str) -> tuple[Any, Any]:
  """(params, buffers) in our layout from upstream names; works for gradients too (missing buffers are skipped)."""
  inner = {key.split("model.inner.")[-1]: value for key, value in weights.items()}

  def swiglu(prefix: str) -> dict[str, np.ndarray]:
    gate_up, down = inner[f"{prefix}.gate_up_proj.weight"], inner[f"{prefix}.down_proj.weight"]
    return {"gate_up": gate_up.T.reshape(gate_up.shape[1], 2, -1), "down": down.T}

  params: dict[str, Any] = {
    "embedding": inner["embed_tokens.embedding_weight"],
    "lm_head": inner["lm_head.weight"].T,
    "q_kernel": inner["q_head.weight"].T,
    "q_bias": inner["q_head.bias"],
  }
  for layer in range(CONFIGS[name]["layers"]):
    prefix = f"L_level.layers.{layer}"
    if f"{prefix}.self_attn.qkv_proj.weight" in inner:
      qkv, out = inner[f"{prefix}.self_attn.qkv_proj.weight"], inner[f"{prefix}.self_attn.o_proj.weight"]
      tokens = {
        "qkv": qkv.T.reshape(WIDTH, 3, HEADS, WIDTH // HEADS),
        "out": out.T.reshape(HEADS, WIDTH // HEADS, WIDTH),
      }
    else:
      tokens = {"mlp": swiglu(f"{prefix}.mlp_t")}
    params[f"block{layer}"] = {"tokens": tokens, "features": swiglu(f"{prefix}.mlp")}
  buffers = {}
  if "H_init" in inner:
    buffers = {"h_init": jnp.asarray(inner["H_init"]), "l_init": jnp.asarray(inner["L_init"])}
  return {k: v for k, v in params.items()}, buffers


def at(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """Entries below a prefix, without it."""
  return {k.removeprefix(prefix + "/"): v for k, v in arrays.items() if k.startswith(prefix + "/")}
