"""What a run says of the code that made it: the revision of this project, or that it is not known."""

import json
import os
import pathlib
import subprocess

import pytest

from jpmhc_jax.training import workdir
from jpmhc_jax.training.workdir import git_revision


@pytest.fixture
def checkout(tmp_path):
  """A repository with one file and one revision."""

  def git(*arguments):
    command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

  (tmp_path / "tracked.py").write_text("")
  git("init", "-q")
  git("add", "tracked.py")
  git("commit", "-q", "-m", "first")
  return tmp_path, git("rev-parse", "HEAD")


def test_a_tracked_file_has_the_revision_of_its_checkout(checkout):
  folder, revision = checkout
  assert git_revision(folder / "tracked.py") == revision
  (folder / "tracked.py").write_text("x = 1")
  assert git_revision(folder / "tracked.py") == f"{revision}+changes"


def test_a_package_installed_inside_another_project_does_not_take_its_revision(checkout):
  folder, _ = checkout
  installed = folder / ".venv" / "lib" / "module.py"
  installed.parent.mkdir(parents=True)
  installed.write_text("")
  assert git_revision(installed) == "unknown"


def test_variables_that_git_sets_for_its_hooks_do_not_name_another_repository(checkout, monkeypatch):
  folder, _ = checkout
  ours = git_revision()
  monkeypatch.setenv("GIT_DIR", str(folder / ".git"))
  monkeypatch.setenv("GIT_WORK_TREE", str(folder))
  assert git_revision() == ours


@pytest.mark.parametrize("mode", [0o644, 0o755, None])
def test_a_git_that_cannot_run_costs_no_run(mode, tmp_path, monkeypatch):
  if mode is not None:
    (tmp_path / "git").write_text("no program")
    os.chmod(tmp_path / "git", mode)
  monkeypatch.setenv("PATH", str(tmp_path))
  assert git_revision(pathlib.Path(__file__)) == "unknown"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', '{"a": 1}', "[" * 10_000])
def test_a_damaged_list_of_starts_begins_anew(text, tmp_path):
  path = tmp_path / "environment.json"
  path.write_text(text)
  workdir.save_environment({"seed": 2}, path)
  workdir.save_environment({"seed": 3}, path)
  assert json.loads(path.read_text()) == {"seed": 3, "earlier_starts": [{"seed": 2}]}
