"""Runs the command line."""

import sys

from jpmhc_jax.main import main

sys.exit(main())
