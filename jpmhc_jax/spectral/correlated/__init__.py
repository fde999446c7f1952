"""Spectra of recursions: layers whose noises are correlated, since calls share their weights."""
