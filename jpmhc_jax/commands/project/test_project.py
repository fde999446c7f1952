"""What this project promises: python -m pytest."""

import pathlib

import jax
import my_mixer

import jpmhc_jax as jp

CONFIG = pathlib.Path(__file__).with_name("config.py")


def test_the_mixer_is_doubly_stochastic():
  mixer = my_mixer.Leak()
  h = mixer.project(jax.random.normal(jax.random.key(0), (*mixer.logit_shape(4), 10)), 4)
  assert h.shape == (4, 4, 10) and mixer.distance(h).max() < 1e-6


def test_it_learns(tmp_path):
  run = jp.train(f"{CONFIG}:leak", tmp_path, overrides={"steps": 60, "model.layers": 1, "evaluation.every": 60})
  losses = run.metrics["train/loss"].values
  assert losses[-1] < losses[0] / 2 and run.evaluations[-1].metrics["loss"] < 0.5
