"""Tasks, augmentation, tokens and the sampler. Imports nothing from the rest of the package but its configuration."""
