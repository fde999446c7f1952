"""Manifolds that parameters live on: tangent spaces, retractions, projections, transport."""
