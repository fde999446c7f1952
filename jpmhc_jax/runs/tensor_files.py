"""Named tensors in the files that people have: PyTorch's zip archives, read without running them, and safetensors.

| suffix | format |
|---|---|
| .safetensors | header and bytes, by the library of that name |
| any other | a zip archive of `torch.save` (PyTorch 1.6 and later): a pickle that names tensors, one file a storage |

The pickle of an archive may name the few constructors of tensors and of plain containers that `torch.save` writes; any
other name is refused before it is looked up. PyTorch itself is not needed.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import dataclasses
import io
import math
import pathlib
import pickle
import struct
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from jpmhc_jax.core.errors import DataError, UserError
from jpmhc_jax.core.files import make_folder, storing, write_atomically
from jpmhc_jax.core.reading import check_regular, shown

__all__ = ["SUFFIXES", "read_tensors", "write_tensors"]

Tensors = dict[str, np.ndarray]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_LARGEST = 64 * 2**30  # bytes of a file; the largest published one has 2.5 GB
_SAFE = {
  "F64": "f8",
  "F32": "f4",
  "F16": "f2",
  "I64": "i8",
  "I32": "i4",
  "I16": "i2",
  "I8": "i1",
  "U8": "u1",
  "BOOL": "?",
}
_DTYPES = {
  "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4",
  "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_REMEDY = "save the state dict alone: torch.save(model.state_dict(), path)"


def read_tensors(path: pathlib.Path, part: str = "") -> Tensors:
  """Every tensor of a file by name, in the file's precision (bfloat16 as float32).

  part: for a file that holds several state dicts, such as {"model": …, "ema": …}, which of them. Raises DataError for a
  file that is cut off, is of another format, or holds more than tensors, and for a part that it does not have.
  """
  try:
    check_regular(path, _LARGEST)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_archive(path)
  except OSError as error:
    raise DataError(f"{shown(path)}: could not be opened ({error.strerror or error})") from error
  return _state_dict(content, path, part)


def write_tensors(tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
  """Writes float32 tensors as `torch.load` or safetensors reads them, by the suffix of the path.

  Raises UserError for another suffix and StorageError where the file cannot be written.
  """
  if path.suffix not in SUFFIXES:
    raise UserError(f"{shown(path)}: suffix {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
  whole = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
  with storing(str(path)):
    make_folder(path.parent)
    if path.suffix == ".safetensors":
      import safetensors.numpy

      write_atomically(path, safetensors.numpy.save(whole))
    else:
      write_atomically(path, _archive(whole))


def _read_safetensors(path: pathlib.Path) -> Tensors:
  import safetensors

  try:
    entries = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise DataError(f"{shown(path)}: no safetensors file ({error}); is it whole?") from error
  tensors = {}
  for name, entry in entries:
    if entry["dtype"] == "BF16":
      array = np.frombuffer(entry["data"], ml_dtypes.bfloat16).astype(np.float32)
    elif entry["dtype"] in _SAFE:
      array = np.frombuffer(entry["data"], np.dtype(_SAFE[entry["dtype"]]).newbyteorder("<"))
    else:
      raise DataError(f"{shown(path)}, tensor {name!r}: dtype {entry['dtype']}; expected BF16 or {', '.join(_SAFE)}")
    tensors[name] = array.reshape(entry["shape"])
  return tensors


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A flat array of an archive."""

  values: np.ndarray


class _Refused(Exception):
  """The pickle names something that is no tensor."""


class _Named:
  """What a global of PyTorch without a meaning here stands for: the name of a storage's type."""

  def __init__(self, name: str):
    self.name = name


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
  """torch._utils._rebuild_tensor_v2: a strided view of a storage, copied."""
  last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
  if math.prod(size) and not (offset >= 0 and all(s >= 0 for s in stride) and last < len(storage.values)):
    raise _Refused(f"a tensor of shape {tuple(size)} that reaches beyond its storage of {len(storage.values):,} values")
  width = storage.values.itemsize
  view = np.lib.stride_tricks.as_strided(storage.values[offset:], size, [step * width for step in stride])
  return np.array(view)


# Every name that a pickle of `torch.save` on a state dict contains.
_CONSTRUCTORS: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
  **{("torch", name): _Named(name) for name in (*_DTYPES, "BFloat16Storage")},
}


class _Unpickler(pickle.Unpickler):
  """A pickle of `torch.save`, in which only `_CONSTRUCTORS` exist."""

  def __init__(self, file: Any, storage: Callable[[str, str, int], _Storage]):
    super().__init__(file, encoding="utf-8")
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _CONSTRUCTORS:
      raise _Refused(f"{module}.{name}, which is no tensor")
    return _CONSTRUCTORS[module, name]

  def persistent_load(self, identity: Any) -> _Storage:
    if not (isinstance(identity, tuple) and len(identity) == 5 and isinstance(identity[1], _Named)):
      raise _Refused(f"a reference {str(identity)[:80]!r} to something outside the file")
    _, kind, key, _, count = identity
    return self._storage(kind.name, str(key), int(count))


def _read_archive(path: pathlib.Path) -> Any:
  if not zipfile.is_zipfile(path):
    with path.open("rb") as start:
      old = start.read(2) == b"\x80\x02"
    form = "a pickle of PyTorch before 1.6" if old else "no zip archive of torch.save, or one that is cut off"
    raise DataError(f"{shown(path)}: is {form}; copy it again, or load and save it with a newer PyTorch")
  with zipfile.ZipFile(path) as archive:
    names = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
      raise DataError(f"{shown(path)}: {len(pickles)} entries data.pkl; expected a zip archive of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    storages: dict[str, _Storage] = {}

    def storage(kind: str, key: str, count: int) -> _Storage:
      if key not in storages:
        storages[key] = _Storage(_values(archive, names.get(f"{root}data/{key}"), kind, count))
      return storages[key]

    try:
      with archive.open(pickles[0]) as file:
        return _Unpickler(file, storage).load()
    except _Refused as refused:
      raise DataError(f"{shown(path)}: holds {refused}; {_REMEDY}") from refused
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError,
            IndexError, struct.error) as error:  # fmt: skip
      raise DataError(f"{shown(path)}: damaged archive of torch.save ({error}); copy it again") from error


def _values(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, kind: str, count: int) -> np.ndarray:
  dtype = np.dtype(ml_dtypes.bfloat16) if kind == "BFloat16Storage" else np.dtype(_DTYPES[kind])
  if entry is None:
    raise _Refused("a storage that the archive lacks")
  if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * dtype.itemsize:
    raise _Refused(f"a storage of {entry.file_size:,} bytes for {count:,} values of {kind.removesuffix('Storage')}")
  values = np.frombuffer(archive.read(entry), dtype, count)
  return values.astype(np.float32) if kind == "BFloat16Storage" else values


def _state_dict(content: Any, path: pathlib.Path, part: str) -> Tensors:
  """The tensors of a file that is a state dict, or of the part of it that is one."""
  if not isinstance(content, Mapping):
    raise DataError(f"{shown(path)}: holds a {type(content).__name__}; expected a state dict; {_REMEDY}")
  parts = [str(name) for name, value in content.items() if isinstance(value, Mapping) and _tensors(value)]
  if part:
    if part not in parts:
      raise DataError(f"{shown(path)}: no state dict {part!r} in it; expected one of {', '.join(parts) or 'none'}")
    return _tensors(content[part])
  tensors = _tensors(content)
  if tensors:
    return tensors
  if len(parts) == 1:
    return _tensors(content[parts[0]])
  if parts:
    raise DataError(f"{shown(path)}: holds the state dicts {', '.join(parts)}; choose one with --part")
  raise DataError(f"{shown(path)}: holds no tensor; {_REMEDY}")


def _tensors(content: Mapping[Any, Any]) -> Tensors:
  return {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}


def _archive(tensors: Mapping[str, np.ndarray]) -> bytes:
  """The bytes that `torch.save` of these float32 tensors writes, but for alignment."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", _pickle(tensors))
    archive.writestr("archive/byteorder", "little")
    for key, tensor in enumerate(tensors.values()):
      archive.writestr(f"archive/data/{key}", tensor.astype("<f4").tobytes())
    archive.writestr("archive/version", "3\n")
  return file.getvalue()


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
  """An OrderedDict of name to torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()), in the
  opcodes of protocol 2: pickle itself would have to import PyTorch to write its names."""

  def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded

  def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

  def several(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"

  empty = b"ccollections\nOrderedDict\n)R"
  parts = [b"\x80\x02", empty, b"("]
  for key, (name, tensor) in enumerate(tensors.items()):
    strides = tuple(step // tensor.itemsize for step in tensor.strides)
    storage = (
      b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + number(tensor.size) + b"tQ"
    )
    arguments = storage + number(0) + several(tensor.shape) + several(strides) + b"\x89" + empty
    parts.append(text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR")
  return b"".join([*parts, b"u."])
