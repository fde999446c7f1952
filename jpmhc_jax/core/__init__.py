"""Config schema, variants and locking, named random streams, errors."""
