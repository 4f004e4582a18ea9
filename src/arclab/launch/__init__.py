"""Starting runs: in place, as a torchrun job on this machine, or on SLURM. Nothing here imports torch."""
