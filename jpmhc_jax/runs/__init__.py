"""Runs from Python, in a script or a notebook: train, load, evaluate, report. The commands stand on them too."""

from jpmhc_jax.runs.run import evaluate, load, report, Run, train
from jpmhc_jax.training.interrupts import Interrupted
from jpmhc_jax.training.nonfinite import NonFiniteLossError

__all__ = ["Interrupted", "NonFiniteLossError", "Run", "evaluate", "load", "report", "train"]
