"""The training loop and what it needs: optimisers, checkpoints, ranks."""
