"""TRM and ETRM: the recursive model, its encoders, training, probes and solver."""
