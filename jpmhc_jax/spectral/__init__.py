"""Free probability of deep residual networks: the Jacobian's singular values, predicted before a run and measured.

law = spectral.predict(Cayley(), sigma=0.1, streams=4, depth=12)
law.top, law.quantile(0.5), law.w1(spectral.measure(function, x))
"""

from jpmhc_jax.spectral.correlated import coherence, Correlated, correlated_noise, tied_covariance
from jpmhc_jax.spectral.dyson import NotSolvedError
from jpmhc_jax.spectral.jacobian import JacobianSpectrum, measure, predict
from jpmhc_jax.spectral.layers import block_noise, full_noise, Layers
from jpmhc_jax.spectral.measured import operator
from jpmhc_jax.spectral.propagation import critical_sigma_w, isometric_sigma_w, propagate
from jpmhc_jax.spectral.rules import what_if

__all__ = [
  "Correlated",
  "JacobianSpectrum",
  "Layers",
  "NotSolvedError",
  "block_noise",
  "coherence",
  "correlated_noise",
  "critical_sigma_w",
  "full_noise",
  "isometric_sigma_w",
  "measure",
  "operator",
  "predict",
  "propagate",
  "tied_covariance",
  "what_if",
]
