"""Seeds: 0 to 2³²−1 start apart in every generator that takes one, every other number is refused in words."""

import zlib

import jax
import numpy as np
import pytest

from jpmhc_jax import data, mixers
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.rng import key_for
from jpmhc_jax.main import main
from jpmhc_jax.spectral.jacobian import mixer_stack

ENDS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
TINY = schema.SudokuData(train_puzzles=20, test_puzzles=2, shuffles=2)
ARC = schema.ArcData(max_side=3, canvas=3, max_tasks=5, augmentations=5, evaluation_augmentations=0, translate=False)


def _key(seed):
  return bytes(np.asarray(jax.random.key_data(key_for(seed, "parameters"))))


def _order(seed):
  built = data.build(schema.Data(kind="sudoku", sudoku=TINY, epochs_per_interval=2), batch_size=8, seed=seed)
  return built.plan.examples(0).tobytes()


def _copies(seed):
  arc = schema.ArcData(**{**vars(ARC), "builder_seed": seed})
  return "\n".join(data.build(schema.Data(arc=arc), batch_size=8, seed=0).identifiers).encode()


def _mixers(seed):
  return mixer_stack(mixers.parse("cayley"), 4, 1, "random", seed).tobytes()


@pytest.mark.parametrize("start", [_key, _order, _copies, _mixers])
def test_two_different_seeds_never_start_alike_and_others_are_refused(start):
  assert len({start(seed) for seed in ENDS}) == len(ENDS)
  for seed in (-1, 2**32, 2**64, 99999999999999999999):
    with pytest.raises(ConfigError, match=f"seed={seed}: expected 0 to 4294967295"):
      start(seed)


def test_a_seed_gives_the_key_that_it_always_gave():
  expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(2**32 - 1), zlib.crc32(b"parameters")), 7)
  assert (jax.random.key_data(key_for(2**32 - 1, "parameters", 7)) == jax.random.key_data(expected)).all()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_the_seed_of_a_command_is_refused_in_words(seed, capsys):
  with pytest.raises(SystemExit, match="2"):
    main(["spectrum", f"--seed={seed}"])
  assert f"--seed: '{seed}': expected a whole number from 0 to 4294967295" in capsys.readouterr().err
