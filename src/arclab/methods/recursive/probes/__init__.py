"""What an encoder's context says and does: health, ablations, representations."""
