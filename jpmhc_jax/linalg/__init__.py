"""Algebra of many tiny matrices: written out for small n, matrices first and tokens last, (n, n, *tokens)."""

from jpmhc_jax.linalg.differences import helmert
from jpmhc_jax.linalg.linear import haar, matmul, solve
from jpmhc_jax.linalg.sylvester import skew_sylvester

__all__ = ["haar", "helmert", "matmul", "skew_sylvester", "solve"]
