"""Optimisers: nothing but optax transformations, plus the row-wise sign-SGD of the puzzle table."""
