"""A run's configuration: the schema of every field, loading and locking, variants by name."""
