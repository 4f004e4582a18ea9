"""MemGen: a frozen language model that reads latent memory, written by LoRA adapters of itself while it answers."""
