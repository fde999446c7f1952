"""Launchers: the commands that start a run on SLURM, Cloud TPUs, GKE or as several processes here, printed or run."""
