"""What an evaluation records, by name: known from the config, before anything runs."""

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.arc import ArcVotes
from jpmhc_jax.training.tasks.registry import kind_of

_ONE_TASK = {"": {"test": [{"input": [[0]], "output": [[0]]}]}}


def metric_names(config: schema.Config) -> tuple[str, ...]:
  """Names in `evaluation/step_N.json` of a run of this config. Raises ConfigError where model and data do not fit."""
  kind = kind_of(config)
  names = [*kind.evaluation_metrics(dict.fromkeys(kind.per_example, 0.0), 0), "examples"]
  if config.data.kind == "arc":
    voted = list(ArcVotes([""]).results(_ONE_TASK))
    names += voted
    names += [f"pooled/{name}" for name in voted] if config.evaluation.pooled else []
  if config.evaluation.wrong_puzzle:
    names += ["wrong_puzzle/accuracy", "wrong_puzzle/exact_accuracy"]
  return tuple(names)
