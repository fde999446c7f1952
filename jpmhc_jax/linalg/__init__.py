"""Algebra of many tiny matrices: written out for small n, matrices first and tokens last."""
