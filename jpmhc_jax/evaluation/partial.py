"""A running evaluation on disk: what a pass has counted so far, so that a restart goes on where it was.

Every share of the processes writes its own file after the same batches, and the last two are kept: a kill may hit
between two processes' writes, and all must go on at the same batch.
"""

from collections.abc import Callable
import dataclasses
import functools
import gzip
import pathlib
from typing import Any
import zlib

from jpmhc_jax.core.files import from_json, storing, to_json, write_atomically
from jpmhc_jax.training.hosts import distributed

Tally = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvalProgress:
  """The files of one pass. describe: says what must be equal for a tally to be used (state, data, fields, shares)."""

  folder: pathlib.Path
  name: str
  describe: Callable[[], str]
  share: int

  @functools.cached_property
  def identity(self) -> str:
    return self.describe()

  def save(self, batches: int, tally: Callable[[], Tally]) -> None:
    """Writes what was counted in the first `batches` batches."""
    content = to_json({"identity": self.identity, "batches": batches, "tally": tally()}, words=True)
    with storing(str(self.folder)):
      write_atomically(self._path(batches), gzip.compress(content.encode(), mtime=0))
      for older in sorted(self._found())[:-2]:
        self._path(older).unlink(missing_ok=True)

  def load(self) -> tuple[int, Tally | None]:
    """The latest batch that all processes have saved and what this one had counted by then; (0, None) when none."""
    if not any(distributed.gather(self._found())):
      return 0, None
    usable = {batches: tally for batches in self._found() if (tally := self._read(batches)) is not None}
    common = set.intersection(*(set(found) for found in distributed.gather(sorted(usable))))
    batches = max(common, default=0)
    return batches, usable.get(batches)

  def discard(self) -> None:
    """The pass is finished and its result is written: also what other numbers of processes left of it goes."""
    for path in self.folder.glob(f"partial_{self.name}.*.json.gz"):
      path.unlink(missing_ok=True)

  def _path(self, batches: int) -> pathlib.Path:
    return self.folder / f"partial_{self.name}.{self.share}.{batches}.json.gz"

  def _found(self) -> list[int]:
    names = (path.name.split(".") for path in self.folder.glob(f"partial_{self.name}.{self.share}.*.json.gz"))
    return [int(parts[2]) for parts in names if parts[2].isdigit()]

  def _read(self, batches: int) -> Tally | None:
    try:
      saved = from_json(gzip.decompress(self._path(batches).read_bytes()))
      return saved["tally"] if (saved["identity"], saved["batches"]) == (self.identity, batches) else None
    except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error):
      return None  # damaged: the pass starts again
