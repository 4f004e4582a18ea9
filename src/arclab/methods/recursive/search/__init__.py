"""Latent search at test time: the context is moved until it explains the demonstrations."""
