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


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_what_a_run_opens_never_takes_the_place_of_a_closed_stream(closed, tmp_path):
  code = (
    "import os, pathlib, sys\nfrom jpmhc_jax.core.terminal import open_closed_streams\nopen_closed_streams()\n"
    "file = open(sys.argv[1], 'w')\nassert file.fileno() > 2\n"
    "print('a line')\nprint('a line', file=sys.stderr)\nos.write(2, b'from a library')\n"
    "os.execv(sys.executable, [sys.executable, '-c', 'import sys; print(1); sys.exit(3 + (sys.stdout is None))'])\n"
  )
  shut = " ".join(f"{number}>&-" for number in closed.split())
  done = subprocess.run(["bash", "-c", f'exec "$@" {shut}', "bash", sys.executable, "-c", code, tmp_path / "file"])
  assert done.returncode == 3 and (tmp_path / "file").read_text() == ""


def test_a_command_without_standard_output_ends_as_it_should():
  command = ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-m", "jpmhc_jax", "describe"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, "")
