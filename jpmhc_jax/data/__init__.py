"""Tasks, augmentation and batches: everything is a pure function of (seed, step), in plain numpy."""
