"""The operators of a connection (read, mix, write, products) for every kind of device, and their derivatives."""
