"""A full disk or a reader that went costs the output and not the run; the command line's exit codes survive both."""

import errno
import io
import pathlib
import subprocess
import sys

import pytest

from jpmhc_jax.core.terminal import Forgiving

FULL = pathlib.Path("/dev/full")


class Failing(io.StringIO):
  """Takes nothing."""

  def __init__(self, code):
    super().__init__()
    self.code = code

  def write(self, text):
    raise OSError(self.code, "no")

  def flush(self):
    self.write("")


@pytest.mark.parametrize(
  ("code", "lost"), [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EDQUOT, True), (errno.EPIPE, False)]
)
def test_what_cannot_be_written_is_dropped(code, lost):
  output = Forgiving(Failing(code))
  assert output.write("step 1") == 6
  output.flush()
  assert output.lost == lost


def test_other_errors_and_other_attributes_are_the_file_s():
  with pytest.raises(OSError, match="no"):
    Forgiving(Failing(errno.EBADF)).write("step 1")
  file = io.StringIO()
  output = Forgiving(file)
  print("step 1", file=output)
  assert file.getvalue() == "step 1\n" and not output.lost and not output.isatty()


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
  ("arguments", "expected"), [(["describe"], 74), (["train", "--config=nowhere.py", "--workdir=x"], 2)]
)
def test_exit_codes_survive_a_full_disk_under_the_log(arguments, expected):
  with FULL.open("w") as full:
    done = subprocess.run([sys.executable, "-m", "jpmhc_jax", *arguments], stdout=full, stderr=full, check=False)
  assert done.returncode == expected
