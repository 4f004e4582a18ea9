"""Learning from trees: collect, curate, augment, fine-tune, value, evaluate; see run.py."""
