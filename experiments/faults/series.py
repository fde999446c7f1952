"""A series: one workdir, broken again and again, restarted by the same command, then compared with a run left alone."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import pathlib
import random
import shutil
import signal
import tempfile
import time

from experiments.faults import disks, launch
from experiments.faults.launch import Layout, Start

KILLS = ("kill", "kill_time", "kill_start", "kill_compile", "kill_save", "kill_evaluation")
DAMAGES = ("truncate", "flip", "lose")
STORAGE = ("quota", "open_files", "full", "forbidden", *DAMAGES, "tail")
POWER = ("power", "power_time", "power_save", "power_evaluation")
FAMILIES = {"kills": KILLS, "power_failures": POWER, "storage_faults": STORAGE}

STEPS_A_FAULT = 14
QUOTA_BYTES = 65536
EXIT_STORAGE, EXIT_INTERRUPTED, EXIT_PEER_LOST = 74, 75, 69
ABORTED = -signal.SIGABRT  # JAX itself ends a process that loses its coordinator, sometimes before the lifeline does
WAITED = "looking for a sign of life"


@dataclasses.dataclass
class Report:
  """What was done and what came of it."""

  seed: int
  injected: dict[str, int] = dataclasses.field(default_factory=dict)
  recovered: int = 0
  starts: int = 0
  damage_reported: int = 0
  peers_ended: int = 0
  slowest_peer_s: float = 0.0
  losses_equal: int = 0
  losses_all: int = 0
  largest_difference: float = 0.0
  records_equal: int = 0
  records_all: int = 0
  leaves_equal: int = 0
  leaves_all: int = 0
  seconds: float = 0.0
  problems: list[str] = dataclasses.field(default_factory=list)

  @property
  def same(self) -> bool:
    """Whether every number agrees bit for bit."""
    pairs = [(self.losses_equal, self.losses_all), (self.records_equal, self.records_all)]
    return all(equal == whole for equal, whole in [*pairs, (self.leaves_equal, self.leaves_all)])


@dataclasses.dataclass(frozen=True)
class Whole:
  """The run that was left alone: its workdir, and the seconds that it took to its first step and in all."""

  workdir: pathlib.Path
  first_s: float
  all_s: float


def run_whole(folder: pathlib.Path, layout: Layout, steps: int, cache: pathlib.Path) -> Whole:
  """Runs it, or finds it done. It is run twice, so that its times are without compilation, as those of a restart."""
  workdir, times = folder / f"{layout}-{steps}", folder / f"{layout}-{steps}.json"
  if not times.is_file():
    for _ in range(2):
      shutil.rmtree(workdir, ignore_errors=True)
      with Start(layout, workdir, launch.training(steps, workdir), cache) as start:
        start.wait_for(lambda: bool(launch.losses(workdir)))
        first = time.monotonic() - start.began
        if any(start.finish()):
          raise RuntimeError(start.output())
        seconds = time.monotonic() - start.began
    times.write_text(json.dumps([first, seconds]))
  return Whole(workdir, *json.loads(times.read_text()))


class Breaker:
  """One workdir and the faults that it suffers."""

  def __init__(
    self,
    workdir: pathlib.Path,
    logs: pathlib.Path,
    cache: pathlib.Path,
    layouts: Sequence[Layout],
    whole: Whole,
    steps: int,
    seed: int,
  ):
    self.workdir, self.logs = workdir, logs
    self.cache, self.layouts, self.whole, self.steps = cache, layouts, whole, steps
    self.random = random.Random(seed)
    self.report = Report(seed)
    self.prefix: Sequence[str] = ()
    self._waiting = 0  # faults after which no start has made a step yet

  def over(self) -> bool:
    """Whether the run is so near its end that no fault fits in any more."""
    return max(launch.checkpoints(self.workdir), default=0) >= self.steps - 10

  def inject(self, kind: str, act: Callable[[Start, int], None], limit: int = 0) -> None:
    """One start that ends by this fault. act: does it to (start, victim)."""
    damaged = self._damage(kind) if kind in (*DAMAGES, "tail") else ""
    before, seen = launch.checkpoints(self.workdir), launch.losses(self.workdir)
    with self._start(limit) as start:
      victim = self.random.randrange(start.layout.processes)
      hit = self._wait(start, kind, max(before, default=0))
      if hit:
        act(start, victim)
      moment = time.monotonic()
      codes = start.finish()
      output = start.output()
    self._judge(kind, codes, victim, hit, time.monotonic() - moment, output)
    moved = launch.losses(self.workdir) != seen
    if damaged:
      reported = "is damaged" in output
      self.report.damage_reported += reported
      if not reported and moved:
        self.report.problems.append(f"{kind} of {damaged} was not reported")
    elif max(launch.checkpoints(self.workdir), default=0) < max(before, default=0):
      self.report.problems.append(f"{kind}: a checkpoint was lost: {before} before")
    if moved:
      self._recovered()
    self._waiting += hit

  def finish(self) -> None:
    """Runs to the end, undisturbed."""
    with self._start(0) as start:
      codes = start.finish()
      if any(codes):
        self.report.problems.append(f"the last start ended with {codes}: {start.output()[-2000:]}")
        return
    self._recovered()
    if left := [str(path) for path in self.workdir.rglob(".*.tmp")]:
      self.report.problems.append(f"left over: {left}")

  def _recovered(self) -> None:
    self.report.recovered += self._waiting
    self._waiting = 0

  def _start(self, limit: int) -> Start:
    layout = self.layouts[self.report.starts % len(self.layouts)]
    self.report.starts += 1
    arguments = launch.training(self.steps, self.workdir)
    return Start(layout, self.workdir, arguments, self.cache, limit, prefix=self.prefix, logs=self.logs)

  def _wait(self, start: Start, kind: str, base: int) -> bool:
    """Waits for the moment of the fault; False when the run ended before."""
    moment = kind.partition("_")[2] if kind.startswith(("kill", "power")) else kind
    if moment == "quota":
      return not start.wait_for(lambda: False) and any(code == EXIT_STORAGE for code in start.finish())
    if moment in ("start", "time"):
      step_s = (self.whole.all_s - self.whole.first_s) / self.steps
      spread = self.whole.first_s + (STEPS_A_FAULT * step_s if moment == "time" else 0.0)
      until = self.random.uniform(0.1, spread)
      return start.wait_for(lambda: time.monotonic() - start.began > until)
    if moment == "save":
      return self._after(start, lambda: any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")), 0.1)
    if moment == "compile":  # the last file that is written before the first step
      old = self._number("environment.json")
      return self._after(start, lambda: self._number("environment.json") != old, 1.0)
    if moment == "evaluation":
      old = set(launch.checkpoints(self.workdir))
      return self._after(start, lambda: self._evaluates(old), 0.2)
    target = min(base + self.random.randint(1, STEPS_A_FAULT - 4), self.steps - 1)
    seen = {self._number("metrics.jsonl")}  # it may hold later steps of the start before

    def reached() -> bool:
      now = self._number("metrics.jsonl")
      if now in seen:
        return False
      seen.add(now)
      steps = launch.losses(self.workdir)
      return bool(steps) and max(steps) >= target

    return start.wait_for(reached)

  def _after(self, start: Start, condition: Callable[[], bool], spread: float) -> bool:
    delay = self.random.uniform(0.0, spread)
    reached = start.wait_for(condition)
    time.sleep(delay)
    return reached and start.running()

  def _evaluates(self, old: set[int]) -> bool:
    """Whether an evaluation counts, or follows the checkpoint that was just saved."""
    if any((self.workdir / "evaluation").glob("partial_*")):
      return True
    new = [step for step in set(launch.checkpoints(self.workdir)) - old if step % 10 == 0]
    return any((self.workdir / "checkpoints" / str(step) / "manifest.json").exists() for step in new)

  def _number(self, name: str) -> tuple[int, int]:
    """Which file it is, as it is replaced, and its size."""
    path = self.workdir / name
    return (path.stat().st_ino, path.stat().st_size) if path.is_file() else (0, 0)

  def _damage(self, kind: str) -> str:
    """Damages a file of the newest checkpoint, if there is an older one to fall back to, or the metrics."""
    if kind == "tail":
      with (self.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')
      return ""
    steps = launch.checkpoints(self.workdir)
    if len(steps) < 2:
      return ""
    folder = self.workdir / "checkpoints" / str(steps[-1])
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.name != "manifest.json")
    if not (folder / "manifest.json").is_file():
      return ""  # killed before it was complete: what is lost of it cannot be known
    path = self.random.choice(files)
    if kind == "lose":
      path.unlink()
      return str(path.relative_to(folder))
    content = bytearray(path.read_bytes())
    if kind == "truncate":
      del content[len(content) // 2 :]
    else:
      content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
    path.write_bytes(content)
    return str(path.relative_to(folder))

  def _judge(self, kind: str, codes: list[int], victim: int, hit: bool, seconds: float, output: str) -> None:
    report = self.report
    if WAITED in output:
      report.problems.append(f"before {kind}: waited for a process that was gone: {output[-2000:]}")
    if not hit:
      if any(codes):
        report.problems.append(f"before {kind}: exit codes {codes}: {output[-2000:]}")
      return
    report.injected[kind] = report.injected.get(kind, 0) + 1
    if kind == "sigterm":
      expected = all(code == EXIT_INTERRUPTED for code in codes)
    elif kind in ("quota", "open_files", "full", "forbidden"):
      expected = all(code == EXIT_STORAGE for code in codes) and "Traceback" not in output
    elif kind in POWER:
      expected = all(code == -signal.SIGKILL for code in codes)
    else:
      others = [code for index, code in enumerate(codes) if index != victim]
      joined = "Gloo" in output or kind not in ("kill_start", "kill_time")  # the others wait to be joined
      allowed = {EXIT_PEER_LOST} if victim else {EXIT_PEER_LOST, ABORTED}
      expected = codes[victim] == -signal.SIGKILL and (not joined or allowed.issuperset(others))
      report.peers_ended += sum(code in allowed for code in others)
      report.slowest_peer_s = max(report.slowest_peer_s, seconds if others else 0.0)
    if not expected:
      report.problems.append(f"{kind}: exit codes {codes}: {output[-2000:]}")


def compare(report: Report, whole: pathlib.Path, broken: pathlib.Path) -> None:
  """Losses of every step, all other records, and fingerprints of every leaf at the end."""
  expected, found = launch.losses(whole), launch.losses(broken)
  report.losses_all = len(expected)
  report.losses_equal = sum(found.get(step) == loss for step, loss in expected.items())
  report.largest_difference = max(abs(found.get(step, 0.0) - loss) / abs(loss) for step, loss in expected.items())
  ours, theirs = launch.records(whole), launch.records(broken)
  report.records_all = max(len(ours), len(theirs))
  report.records_equal = sum(a == b for a, b in zip(ours, theirs, strict=False))
  leaves, others = launch.fingerprints(whole), launch.fingerprints(broken)
  report.leaves_all, report.leaves_equal = len(leaves), sum(a == b for a, b in zip(leaves, others, strict=True))


def break_a_run(
  kinds: Sequence[str],
  seed: int,
  layouts: Sequence[Layout],
  whole: Whole,
  steps: int,
  cache: pathlib.Path,
  folder: pathlib.Path,
) -> Report:
  """A series of these faults in this order, and how its end compares with the run that was left alone."""
  began = time.monotonic()
  with contextlib.ExitStack() as stack:
    place, power, small = folder, None, None
    if any(kind in POWER for kind in kinds):
      power = stack.enter_context(contextlib.closing(disks.PowerDisk(folder)))
      place = power.path
    elif "full" in kinds:
      small = stack.enter_context(contextlib.closing(disks.SmallDisk(folder)))
      place = small.path
      other = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
      (place / "broken").mkdir()
      (place / "broken" / "damaged").symlink_to(other)  # another file system
    breaker = Breaker(place / "broken", folder, cache, layouts, whole, steps, seed)
    for number, kind in enumerate(kinds):
      if breaker.over():
        break
      if power:
        breaker.prefix = disks.rebooted(folder, number)
      _suffer(breaker, kind, power, small)
      if power:
        _check_after_a_cut(breaker)
      if breaker.report.problems:
        break
    if power:
      breaker.prefix = disks.rebooted(folder, len(kinds))
    breaker.finish()
    if not breaker.report.problems:
      compare(breaker.report, whole.workdir, breaker.workdir)
  breaker.report.seconds = round(time.monotonic() - began, 1)
  return breaker.report


def _suffer(breaker: Breaker, kind: str, power: disks.PowerDisk | None, small: disks.SmallDisk | None) -> None:
  """Injects one fault and takes its cause away again."""
  draw = breaker.random
  if kind in POWER and power:
    breaker.inject(kind, lambda start, _: power.cut(start.processes))
  elif kind == "full" and small:
    breaker.inject(kind, lambda *_: small.fill(draw.randrange(100_000)))
    small.empty()
  elif kind == "forbidden":
    name = draw.choice(["checkpoints", "evaluation", "."])
    folder = breaker.workdir / name if (breaker.workdir / name).is_dir() else breaker.workdir
    folder.mkdir(parents=True, exist_ok=True)
    try:
      breaker.inject(kind, lambda *_: disks.forbid(folder))
    finally:
      disks.allow(folder)
  elif kind == "open_files":
    breaker.inject(kind, lambda start, victim: disks.no_more_files(start.processes[victim].pid, draw.randrange(3)))
  elif kind == "quota":
    breaker.inject(kind, lambda *_: None, QUOTA_BYTES)
  else:
    number = signal.SIGTERM if kind == "sigterm" else signal.SIGKILL
    breaker.inject(kind, lambda start, victim: start.processes[victim].send_signal(number))


def _check_after_a_cut(breaker: Breaker) -> None:
  """What the newest checkpoint covers is on the disk that has just lost its power."""
  broken, whole = breaker.workdir, launch.losses(breaker.whole.workdir)
  complete = [s for s in launch.checkpoints(broken) if (broken / "checkpoints" / str(s) / "manifest.json").is_file()]
  newest = max(complete, default=0)
  there = launch.losses(broken)
  if missing := [step for step in range(1, newest + 1) if there.get(step) != whole[step]]:
    breaker.report.problems.append(f"checkpoint {newest} is there, losses of steps {missing} are not")
  scores = broken / "checkpoints" / "scores.json"
  ranked = json.loads(scores.read_text())["scores"] if scores.is_file() else {}
  if lost := [step for step in ranked if not (broken / "evaluation" / f"step_{step}.json").is_file()]:
    breaker.report.problems.append(f"scores of steps {lost} are there, their evaluations are not")
  if newest and not (broken / "config.json").is_file():
    breaker.report.problems.append("a checkpoint is there, config.json is not")
