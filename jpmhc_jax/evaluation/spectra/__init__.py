"""Jacobians of trained models: measured, and linearised for the prediction."""
