"""A full disk or a reader that went costs the output and not the run; the command line's exit codes survive both."""

import errno
import io
import pathlib
import subprocess
import sys

import pytest

from jpmhc_jax.commands import describe
from jpmhc_jax.core.terminal import cut, Forgiving, LONGEST, writable
from jpmhc_jax.main import main, parser
from jpmhc_jax.mixers import FAMILIES, make

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


TEXTS = {
  "plain": "plain",
  "… – − ‖H‖₂ ≤ 2σ": "... - - ||H||2 <= 2sigma",
  "R^{n×n} ⊗ αᵀ¹ → é": "R^{nxn} (x) alphaT1 -> e",
  "中 ‰": "\\u4e2d \\u2030",
}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", None])
def test_text_is_written_in_every_encoding(encoding):
  known = encoding or "utf-8"
  for text, plain in TEXTS.items():
    written = writable(text, encoding)
    assert written.encode(known).decode(known) == written
    assert written == (text if known == "utf-8" else written)
    assert encoding != "ascii" or written == plain
  assert writable("é", encoding) == ("e" if encoding == "ascii" else "é")
  assert writable("runs/\udcff", encoding) == "runs/\\xff"  # a byte of a file name that is no text


@pytest.fixture
def printed(monkeypatch):
  """printed(encoding, arguments) -> (exit code, standard output, standard error) on terminals of that encoding."""

  def run(encoding, arguments):
    files = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with monkeypatch.context() as patch:
      patch.setattr(sys, "stdout", Forgiving(files[0]))
      patch.setattr(sys, "stderr", Forgiving(files[1]))
      try:
        code = main(arguments)
      except SystemExit as end:
        code = end.code
    for file in files:
      file.flush()
    return code, *(file.buffer.getvalue().decode(encoding) for file in files)

  return run


VERBS = list(next(iter(parser()._subparsers._group_actions)).choices)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_tables_and_errors_are_printed_on_every_terminal(encoding, printed):
  for verb in VERBS:
    code, out, _ = printed(encoding, [verb, "--help"])
    assert code == 0 and f"usage: jpmhc {verb}" in out
  assert printed(encoding, ["--help"])[0] == 0
  code, out, _ = printed(encoding, ["describe", "--config.connection.options=größe[/b]中"])
  assert code == 0 and "connection.streams" in out and "[/b]\\u4e2d" in out
  code, _, error = printed(encoding, ["train", "--config=größe中.py"])
  assert code == 2 and "e\\u4e2d.py: no file" in error


def test_the_table_of_mixers_stands_straight_in_ascii(printed, monkeypatch):
  rows = [(name, traits.set, "", traits.norm, traits.eigenvalues, traits.determinant, "", "", "") for name, traits in (
    (name, make(name).traits) for name in FAMILIES
  )]  # fmt: skip
  monkeypatch.setattr(describe, "mixer_rows", lambda n, d: rows)  # their cost takes a minute to count
  code, out, _ = printed("ascii", ["describe", "--mixers"])
  table = [line for line in out.splitlines() if line.startswith(("|", "+"))]
  assert code == 0 and len({len(line) for line in table}) == 1
  assert "||H||2 = 1" in " ".join(out.split()) and "(x) of 2 x 2 Birkhoff" in " ".join(out.split())


def test_a_long_message_is_cut_in_its_middle_and_says_by_how_much():
  assert cut("x" * LONGEST) == "x" * LONGEST
  message = cut("the field" + "x" * 20_000 + "the remedy")
  assert message.startswith("the field") and message.endswith("the remedy")
  assert "(15019 characters cut)" in message and len(message) < LONGEST + 50


@pytest.mark.parametrize(
  "arguments",
  [
    ["train", "--config=" + "x" * 10_000],
    ["train", "--config=x.py", "--workdir=" + "x" * 10_000],
    ["evaluate", "--workdir=x", "--step=" + "9" * 10_000],
    ["report", "x", "--" + "x" * 10_000],
    ["describe", "--config.seed=" + "x" * 10_000],
    ["x" * 10_000],
  ],
)
def test_no_message_of_the_command_line_is_longer(arguments, printed):
  code, _, error = printed("utf-8", arguments)
  assert code == 2 and "characters cut" in error and len(error) < LONGEST + 2_000  # argparse puts the usage before it


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
