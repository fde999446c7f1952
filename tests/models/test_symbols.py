"""The symbol-equivariant model: its answer permutes with its input, to rounding; what does not fit is refused."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, UserError
from jpmhc_jax.data.arc import draw_copies, LegacyRandom
from jpmhc_jax.evaluation.spectra.networks import network_of
from jpmhc_jax.models.symbols import SPECIAL, SymbolTRM
from jpmhc_jax.training.tasks import task_of

VOCABULARY, CELLS = 7, 6
MODEL = schema.Model(
  kind="trm_symbols", width=8, heads=2, layers=1, mlp_multiple=8,
  recursion=schema.Recursion(outer=2, inner=1, max_steps=2), puzzle=schema.Puzzle(width=8, slots=1),
)  # fmt: skip
STREAMS = {
  "one stream": schema.Connection(streams=1),
  "carried": schema.Connection(streams=2, mixer="cayley"),
  "inside a call": schema.Connection(streams=2, mixer="sinkhorn", scope="call"),
  "embedded": schema.Connection(streams=2, mixer="cayley", stream_embedding=True, segments=2),
}


@pytest.mark.parametrize(
  ("streams", "positions"),
  [
    ("one stream", "rope"),
    ("carried", "rope"),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (("inside a call", "rope"), ("embedded", "rope"), ("carried", "learned"))
    ),
  ],
)
def test_permuting_the_symbols_permutes_the_answer(streams, positions):
  """To rounding: sums over the symbols come in another order. Special tokens stay in their places."""
  fields = dataclasses.replace(MODEL, positions=positions)
  rng = np.random.default_rng(0)
  order = np.concatenate([np.arange(SPECIAL), SPECIAL + rng.permutation(VOCABULARY - SPECIAL)])
  moved = np.roll(np.arange(VOCABULARY), 1)  # special tokens among those that move
  inputs = rng.integers(VOCABULARY, size=(3, CELLS))
  with jax.enable_x64(True):
    graph, parameters, rest = nnx.split(
      SymbolTRM(
        fields, STREAMS[streams], vocab_size=VOCABULARY, sequence_length=CELLS, dtype=jnp.dtype(float), rngs=nnx.Rngs(0)
      ),
      nnx.Param,
      ...,
    )
    parameters = jax.tree.map(lambda leaf: leaf.astype(float) + 0.1 * rng.normal(size=leaf.shape), parameters)
    rows = jnp.asarray(rng.normal(size=(3, 8)))

    @jax.jit
    def answer(inputs):
      model = nnx.merge(graph, parameters, rest)
      output = model(*model.initial_latents(3, CELLS + 1), inputs, rows)
      return output.logits, output.q

    logits, q = answer(inputs)
    permuted, same = answer(order[inputs])
    assert logits.shape == (3, CELLS, VOCABULARY)
    assert_allclose(permuted[..., order], logits, rtol=1e-9, atol=1e-9)
    assert_allclose(same, q, rtol=1e-9, atol=1e-9)
    assert float(jnp.std(logits[..., SPECIAL:], axis=-1).max()) > 1e-2  # it does tell the symbols apart
    assert float(jnp.max(jnp.abs(answer(moved[inputs])[0][..., moved] - logits))) > 1e-2


@pytest.mark.slow
def test_it_trains_on_digits_and_its_parameters_know_no_vocabulary():
  small = dataclasses.replace(tiny.config().model, kind="trm_symbols", recursion=MODEL.recursion)
  config = tiny.config(model=small, connection=schema.Connection(streams=1))
  setup = tiny.setup(config)
  _, (metrics,) = tiny.run(config, 1, setup)
  assert np.isfinite(metrics["lm_loss"]) and metrics["gradient_norm"] > 0
  shapes = jax.eval_shape(setup.create).params
  assert (shapes["embedding"].shape, shapes["lm_head"].shape) == ((3, 16), (16, 1))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data": schema.Data(kind="maze")}, "data.kind='maze': model.kind='trm_symbols' learns from arc, sudoku"),
    ({"data": schema.Data(kind="arc")}, "data.arc.recolour=True: expected False with model.kind=trm_symbols"),
    ({"model": dataclasses.replace(MODEL, token_mixer="mlp")}, "model.token_mixer='mlp': expected attention"),
    ({"model": dataclasses.replace(MODEL, convolution=2)}, "model.convolution=2: expected 0"),
    ({"connection": schema.Connection(sharing="per_call")}, "connection.sharing='per_call': expected all"),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(ConfigError) as error:
    task_of(tiny.config(**{"model": MODEL, **changes}))
  assert message in str(error.value)


@pytest.mark.parametrize(
  "changes", [{"model": MODEL}, {"connection": schema.Connection(segments=4, sublayer="stream")}]
)
def test_spectra_of_such_networks_are_refused_in_words(changes):
  config = tiny.config(**changes)
  with pytest.raises(UserError, match=r"spectra are measured of .* take "):
    network_of(task_of(config), tiny.setup(config))


def test_copies_without_colours_are_the_seven_other_symmetries():
  pair = (np.arange(6, dtype=np.uint8).reshape(2, 3), np.eye(2, dtype=np.uint8))
  task, *copies = draw_copies([pair], 1000, LegacyRandom(0), recolour=False)
  assert {colours for _, colours in (task, *copies)} == {bytes(range(10))}
  assert sorted(turn for turn, _ in copies) == list(range(1, 8))
  assert len(draw_copies([pair], 3, LegacyRandom(0), recolour=False)) == 4
  even = (np.zeros((2, 2), np.uint8),) * 2
  assert len(draw_copies([even], 1000, LegacyRandom(0), recolour=False)) == 1
