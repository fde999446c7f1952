"""Official checkpoints in and out: the golden model's numbers, files of every form, files that are something else."""

import io
import json
import pickle
import zipfile

from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import official as golden
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import CheckpointError, ConfigError, DataError, UserError
from jpmhc_jax.main import main
from jpmhc_jax.runs import official
from jpmhc_jax.runs.exchange import export_trm, import_trm
from jpmhc_jax.runs.tensor_files import read_tensors, write_tensors


def _config(streams=1):
  return tiny.config(connection=schema.Connection(mixer="cayley", streams=streams, init="round_robin"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A run's parameters as official tensors: drawn once, written as an archive of torch.save."""
  setup, dataset = tiny.setup(_config()), tiny.dataset(_config())
  state = jax.device_get(setup.create())
  rng = np.random.default_rng(0)
  table = rng.normal(size=(len(dataset.identifiers), state.table.shape[1])).astype(np.float32)
  tensors = official.to_official(state.params, state.buffers, table)
  path = tmp_path_factory.mktemp("official") / "step_123.pt"
  write_tensors(tensors, path)
  return path, tensors


@pytest.mark.parametrize("name", golden.CONFIGS)
def test_the_golden_models_weights_go_in_and_out_to_the_last_bit(shared, name):
  weights = golden.at(golden.load(shared / "fixtures" / "trm_model.npz"), f"{name}/weights")
  _, params, buffers = golden.template(name)
  read, constants = official.from_official(official.stripped(weights), params, buffers)
  expected, expected_constants = golden.convert(weights, name)
  jax.tree.map(np.testing.assert_array_equal, read, jax.tree.map(np.asarray, expected))
  jax.tree.map(np.testing.assert_array_equal, constants, jax.tree.map(np.asarray, expected_constants))
  table = next(tensor for key, tensor in weights.items() if key.endswith(official.TABLE))
  back = official.stripped(official.to_official(read, constants, table))
  assert back.keys() == official.stripped(weights).keys()
  for key, tensor in official.stripped(weights).items():
    np.testing.assert_array_equal(back[key], tensor, err_msg=key)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_what_is_written_is_read_back(tmp_path, suffix):
  tensors = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float32([1.5]),
    "empty": np.zeros((0, 4)),
  }
  write_tensors(tensors, tmp_path / f"x{suffix}")
  read = read_tensors(tmp_path / f"x{suffix}")
  assert read.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(read[name], tensor)


def test_bfloat16_in_safetensors_becomes_float32(tmp_path):
  values = np.array([1.0, 0.3], ml_dtypes.bfloat16)
  header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
  (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
  read = read_tensors(tmp_path / "x.safetensors")["w"]
  np.testing.assert_array_equal(read, values.astype(np.float32))
  assert read.dtype == np.float32


@pytest.mark.slow
def test_an_import_answers_as_the_file_says_with_one_stream_and_with_new_ones(exported, tmp_path):
  path, tensors = exported
  one = import_trm(path, _config(), tmp_path / "one")
  four = import_trm(path, _config(streams=2), tmp_path / "two")
  assert one.rows == one.identifiers and not one.new and any("connect" in name for name in four.new)
  dataset = one.run.dataset
  batch = dataset.evaluation_batches(8)[0]

  def logits(run):
    rows = run.state.table[batch["puzzle_identifiers"]]
    z_h, z_l = run.model.initial_latents(8, dataset.sequence_length + 1)
    return nnx.jit(type(run.model).__call__)(run.model, z_h, z_l, jnp.asarray(batch["inputs"]), rows).logits

  np.testing.assert_allclose(logits(four.run), logits(one.run), atol=1e-5)
  [again, names] = export_trm(tmp_path / "one", tmp_path / "again.safetensors")
  assert json.loads(names.read_text()) == list(dataset.identifiers)
  read = read_tensors(again)
  assert read.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(read[name], tensor, err_msg=name)
  with pytest.raises(ConfigError, match=r"connection.streams=2: .*one stream"):
    export_trm(tmp_path / "two", tmp_path / "no.pt")
  with pytest.raises(ConfigError, match=r"holds checkpoints of steps 0; take a new one"):
    import_trm(path, _config(), tmp_path / "one")


def test_puzzle_rows_follow_their_names():
  table = np.arange(6, dtype=np.float32).reshape(3, 2)
  own, rows = official.table_for({official.TABLE: table}, ["", "b", "new", "a"], (8, 2), ["", "a", "b"])
  np.testing.assert_array_equal(own[:4], [table[0], table[2], [0, 0], table[1]])
  assert rows == 3 and not own[4:].any()


_BAD_TENSORS = [
  (lambda t: t.pop("lm_head.weight"), r"'lm_head.weight': missing; expected shape \(6, 16\)"),
  (lambda t: t.update({"L_level.layers.1.mlp.down_proj.weight": np.zeros((1, 1))}), r"no such tensor.*model.layers"),
  (
    lambda t: t.update({"H_init": np.zeros(17)}),
    r"'H_init': shape \(17,\); expected \(16,\), which model.width decide",
  ),
  (lambda t: t.update({"L_init": np.full(16, np.nan)}), r"'L_init': 16 values are NaN"),
  (
    lambda t: t.update({"puzzle_emb.weights": np.zeros((7, 16))}),
    r"7 rows; expected 1, one an identifier.*--identifiers",
  ),
  (
    lambda t: t.update({"puzzle_emb.weights": np.zeros((1, 3))}),
    r"expected width 16, which model.puzzle.width decides",
  ),
  (lambda t: t.pop("puzzle_emb.weights"), r"'puzzle_emb.weights': missing.*--fresh-table"),
]


@pytest.mark.parametrize("change, message", _BAD_TENSORS)
def test_a_file_of_another_model_is_refused_by_its_first_odd_tensor(exported, tmp_path, change, message):
  tensors = official.stripped(exported[1])
  change(tensors)
  setup, dataset = tiny.setup(_config()), tiny.dataset(_config())
  shapes = jax.eval_shape(setup.create)
  with pytest.raises(CheckpointError, match=message):
    official.from_official(tensors, shapes.params, shapes.buffers)
    official.table_for(tensors, dataset.identifiers, shapes.table.shape, None)


class _Runs:
  """An object whose pickle runs a command."""

  def __reduce__(self):
    return print, ("executed",)


def _zip(content):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("archive/data.pkl", content)
  return file.getvalue()


_BAD_FILES = {
  "code.pt": (
    lambda whole: _zip(pickle.dumps({"w": _Runs()}, 2)),
    r"holds (__builtin__|builtins).print, which is no t",
  ),
  "old.pt": (lambda whole: pickle.dumps(0x1950A86A20F9469CFC6C, 2), "PyTorch before 1.6"),
  "cut.pt": (lambda whole: whole[: len(whole) // 2], "no zip archive of torch.save, or one that is cut off"),
  "page.bin": (lambda whole: b"<html>", "no zip archive"),
  "list.pt": (lambda whole: _zip(pickle.dumps([1], 2)), "holds a list; expected a state dict"),
  "empty.pt": (lambda whole: _zip(pickle.dumps({}, 2)), "holds no tensor"),
  "garbage.pt": (lambda whole: _zip(b"\x80\x02garbage"), "damaged archive"),
  "cut.safetensors": (lambda whole: b"\x10\0\0\0\0\0\0\0{}", "no safetensors file"),
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_a_file_that_is_no_state_dict_says_what_it_is(exported, tmp_path, capsys, name):
  make, message = _BAD_FILES[name]
  (tmp_path / name).write_bytes(make(exported[0].read_bytes()))
  with pytest.raises(DataError, match=message):
    read_tensors(tmp_path / name)
  assert "executed" not in capsys.readouterr().out


def test_a_file_with_several_state_dicts_asks_which(tmp_path, exported):
  with pytest.raises(UserError, match="suffix '.npz'; expected one of .safetensors"):
    write_tensors({}, tmp_path / "x.npz")
  with pytest.raises(DataError, match="no state dict 'ema' in it; expected one of none"):
    read_tensors(exported[0], "ema")


@pytest.mark.slow
def test_the_commands_say_what_they_took_and_wrote(exported, tmp_path, capsys):
  config = tiny.write_config(tmp_path / "own.py", _config())
  arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--from=trm"]
  assert main(["import", str(exported[0]), *arguments]) == 0
  out = capsys.readouterr().out
  assert "1 of 1 puzzle rows" in out and "next: jpmhc evaluate" in out
  assert main(["export", str(tmp_path / "out.pt"), "--to=trm", f"--workdir={tmp_path / 'run'}"]) == 0
  assert read_tensors(tmp_path / "out.pt").keys() == exported[1].keys()
