"""What a run learns: model, loss, metrics and predictions of each task, behind one interface."""

from jpmhc_jax.training.tasks.base import register_task, SinglePass, Task, task_of

__all__ = ["register_task", "SinglePass", "Task", "task_of"]
