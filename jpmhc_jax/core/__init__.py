"""Config schema and locking, named random streams, errors."""
