"""The report's style for matplotlib: its colours in their order, no frame, small type, text that stays text."""

from collections.abc import Iterator
import contextlib
import functools
import importlib.resources
import re

LOOK = {
  "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
  "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
  "axes.grid": True, "axes.grid.axis": "y", "grid.linewidth": 0.4, "grid.alpha": 0.5, "legend.frameon": False,
  "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "jpmhc", "savefig.dpi": 300,
}  # fmt: skip


@functools.cache
def palette() -> tuple[str, ...]:
  """The colours of the report's lines on light paper, from its style sheet."""
  sheet = importlib.resources.files("jpmhc_jax.reporting").joinpath("page.css").read_text(encoding="utf-8")
  return tuple(re.findall(r"--line-\d: (#\w{6})", sheet.partition("@media")[0]))


@contextlib.contextmanager
def report_style() -> Iterator[None]:
  """Within it matplotlib draws as the report does: its colours in its order, no frame, small type."""
  import matplotlib.rcsetup

  with matplotlib.rc_context(LOOK | {"axes.prop_cycle": matplotlib.rcsetup.cycler(color=palette())}):  # type: ignore[arg-type]
    yield
