"""Foundations that know no network: errors, files, names, fields of a config, random streams, sharding, the process."""
