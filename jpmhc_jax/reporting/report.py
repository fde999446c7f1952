"""Run folders -> report.html: one file that needs nothing else, offline, light or dark, on a phone or on paper."""

from collections.abc import Mapping, Sequence
import importlib.resources
from pathlib import Path
import shlex
from typing import Any

from jpmhc_jax.core import places
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.files import make_folder, storing, write_atomically
from jpmhc_jax.reporting import compare, sweep_folder
from jpmhc_jax.reporting.lead import status_badge
from jpmhc_jax.reporting.markup import join, Markup, tag
from jpmhc_jax.reporting.sections import gallery, run_sections, Section
from jpmhc_jax.reporting.workdir import folders_inside, read_runs, Run

NAMED = 8  # folders that a message names
FOLDED_EXAMPLES = 12  # answers drawn for each run when there are several; the run's own page shows all


def write_report(workdirs: Sequence[Path | str], out: Path | str) -> Path:
  """Writes one HTML page about the given folders of runs and of sweeps (all runs of theirs) and returns its path.

  One folder: its summary, curves, evaluations, answers, mixers, configuration and environment. Several: the table of
  runs, comparisons over seeds and the differences in configuration first, then each run. Missing or partial runs are
  shown as such. Raises UserError when no folder is given, none of them exists or holds a record, StorageError when the
  page cannot be written; an earlier page is still there then.
  """
  given = [places.stored(workdir) for workdir in workdirs]
  runs, entries = runs_of(given)
  if not any(run.path.is_dir() for run in runs):
    names = ", ".join(str(run.path) for run in runs) or "none given"
    raise UserError(f"no run folder found ({names}); give the --workdir of at least one run")
  if not entries and not any(run.recorded for run in runs):
    raise UserError(_nothing_recorded(runs))
  out = places.stored(out)
  content = page(runs, sweep_folder.section(given, entries))
  with storing(str(out)):
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
  return out


def runs_of(workdirs: Sequence[Path]) -> tuple[list[Run], dict[Path, sweep_folder.Entry]]:
  """The runs of these folders of runs and sweeps, and of each what its sweep says of it."""
  folders, entries = sweep_folder.expand(workdirs)
  endings = {
    path: (entry["state"], remark) for path, entry in entries.items() if (remark := sweep_folder.problem(entry))
  }
  return read_runs(folders, endings, {path: entry.get("metric", "") for path, entry in entries.items()}), entries


def _nothing_recorded(runs: Sequence[Run]) -> str:
  """What to say of folders that hold no run: the runs that lie inside them, if any do."""
  names = ", ".join(str(run.path) for run in runs)
  inside = [folder for run in runs for folder in folders_inside(run.path)]
  if not inside:
    return f"nothing was recorded in {names}; expected the --workdir of a run or of a sweep"
  shown = " ".join(shlex.quote(str(folder)) for folder in inside[:NAMED])
  more = f" … ({len(inside)} in all)" if len(inside) > NAMED else ""
  return f"nothing was recorded in {names} itself, but it holds runs; name these: jpmhc report {shown}{more}"


def page(runs: Sequence[Run], sweep: Markup | None = None) -> str:
  """The whole document; `sweep` says how the sweep stands that the runs belong to."""
  if len(runs) == 1 and sweep is None:
    title, sections, rest = runs[0].name, run_sections(runs[0]), None
  else:
    title, sections = f"{len(runs)} runs", compare.comparison_sections(runs)
    rest = Section("each-run", "Each run", join(_folded(run) for run in runs))
    sections = [*sections, *([Section("sweep", "Sweep", sweep)] if sweep else []), rest]
  return document(title, sections)


def write_answers(title: str, words: str, examples: Sequence[Mapping[str, Any]], out: Path) -> Path:
  """Writes a page of answers, as an evaluation records examples, and returns its path; `words` stand above them.

  Raises StorageError where it cannot be written.
  """
  body = gallery(examples, "answers", words)
  with storing(str(out)):
    make_folder(out.parent)
    write_atomically(out, document(title, [Section("answers", "Answers", body)]))
  return out


def document(title: str, sections: Sequence[Section]) -> str:
  """A whole page, with a link to each of its sections."""
  links = tag("ul", *(tag("li", tag("a", s.title, href=f"#{s.anchor}")) for s in sections))
  head = [
    tag("meta", charset="utf-8"),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("meta", name="color-scheme", content="light dark"),
    tag("title", f"{title} – jpmhc report"),
    tag("style", Markup(_asset("page.css"))),
  ]
  body = [
    tag("a", "Skip to the content", href="#content", class_="skip"),
    tag("header", tag("p", "jpmhc report", class_="eyebrow"), tag("h1", title)),
    tag("nav", links, aria_label="Sections"),
    tag("main", *(section.render(2) for section in sections), id="content"),
    tag("script", Markup(_asset("chart.js") + _asset("page.js"))),
  ]
  return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def _folded(run: Run) -> Markup:
  back = tag("a", "Back to its row in the table", href=f"#row-{run.anchor}")
  heading = tag("summary", tag("h3", run.name, id=f"run-{run.anchor}-title"), " ", status_badge(run))
  return tag(
    "details",
    heading,
    tag("p", back),
    *(section.render(4) for section in run_sections(run, FOLDED_EXAMPLES)),
    id=f"run-{run.anchor}",
    class_="run",
  )


def _asset(name: str) -> str:
  return importlib.resources.files("jpmhc_jax.reporting").joinpath(name).read_text(encoding="utf-8")
