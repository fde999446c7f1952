"""The code of docs/network.md runs as it stands, on a user's own module, and wraps it in three lines."""

import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "network.md"


class MyModule(nnx.Module):
  """What a user brings: any F: (…, d) -> (…, d)."""

  def __init__(self, rngs):
    self.linear = nnx.Linear(64, 64, rngs=rngs)

  def __call__(self, x):
    return jnp.tanh(self.linear(x))


def test_the_blocks_of_your_own_network_wrap_any_module():
  with_flax, pure, chained = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
  scope = {"jax": jax, "jnp": jnp, "nnx": nnx}
  x = jax.random.normal(jax.random.key(0), (2, 3, 64))
  my_module = MyModule(nnx.Rngs(1))
  scope |= {"x": x, "my_module": my_module}
  exec(with_flax, scope)
  assert len(with_flax.strip().splitlines()) == 5
  assert scope["streams"].shape == (2, 3, 4, 64)
  # The start is near the plain residual network around the user's module.
  np.testing.assert_allclose(scope["x"], x + my_module(x), atol=0.2)
  scope["streams"] = scope["jp"].expand(x, 4)
  exec(pure, scope)
  np.testing.assert_allclose(scope["jp"].reduce(scope["streams"]), x + jnp.tanh(x), atol=0.2)
  exec(chained, scope)
  assert scope["streams"].shape == (2, 3, 4, 64) and bool(jnp.all(jnp.isfinite(scope["streams"])))
