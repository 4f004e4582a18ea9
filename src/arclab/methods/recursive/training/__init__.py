"""Training the recursive model: the loop, its state, checkpoints and optimisers."""
