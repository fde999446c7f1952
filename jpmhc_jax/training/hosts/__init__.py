"""Several processes of one run: how they find each other, and what happens when one is gone."""
