"""Free probability of hyper-connections: predicted and measured Jacobian spectra, design rules."""
