"""Spectra of recursions: layers whose noises are correlated, since calls share their weights."""

from jpmhc_jax.spectral.correlated.equation import coherence, echoes
from jpmhc_jax.spectral.correlated.grid import by_parts, first_moment, Prepared, prepared, resolvent
from jpmhc_jax.spectral.correlated.noise import Correlated, correlated_noise, independent, tied_covariance

__all__ = [
  "Correlated",
  "Prepared",
  "by_parts",
  "coherence",
  "correlated_noise",
  "echoes",
  "first_moment",
  "independent",
  "prepared",
  "resolvent",
  "tied_covariance",
]
