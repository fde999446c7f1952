"""Stands in for `python -m jpmhc_jax`: what each start of a run does is written in --plan, in milliseconds.

'exit1/exit0': the first start exits with 1, the next and later ones with 0. A start that exits with 0 evaluates four
times, with scores up to --config.optimizer.learning_rate; `wait` evaluates once and sleeps until SIGTERM (exit 75);
`die` kills itself; `steps` records ten steps of 200 ms at once, and sleeps.
"""

import json
import os
import pathlib
import signal
import sys
import time

arguments = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:])
workdir = pathlib.Path(arguments["workdir"])
starts = workdir / "starts"
count = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(count))
plan = arguments.get("plan", os.environ.get("FAKE_PLAN", "exit0")).split("/")
act = plan[min(count, len(plan)) - 1]
score = float(arguments.get("config.optimizer.learning_rate", 0.5))


def evaluate(step):
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": step, "evaluation/exact_accuracy": score * step / 4}) + "\n")


print(f"start {count}: {act}, CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}", flush=True)
if act == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  evaluate(1)
  (workdir / "pid").write_text(str(os.getpid()))
  time.sleep(60)
elif act == "steps":
  times = [{"step": 1, "time/compile_s": 3.0}, *({"step": k, "time/step_ms": 200.0} for k in range(1, 11))]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
  pathlib.Path(os.environ["FAKE_PID"]).write_text(f"{os.getpid()} {' '.join(sys.argv)}")
  time.sleep(60)
elif act == "die":
  os.kill(os.getpid(), signal.SIGKILL)
elif act == "exit0":
  for step in range(1, 5):
    evaluate(step)
    time.sleep(float(os.environ.get("FAKE_PAUSE", "0")))
else:
  print(f"the reason for {act}", file=sys.stderr)
  sys.exit(int(act.removeprefix("exit")))
