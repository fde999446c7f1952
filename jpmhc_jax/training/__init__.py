"""Training: state, step, loop, mesh, checkpoints, and what a workdir holds."""
