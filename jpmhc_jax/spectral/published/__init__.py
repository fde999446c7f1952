"""The published pipeline, by name, to be compared with `spectral.dyson`: exact where its assumptions hold, and only
there."""
