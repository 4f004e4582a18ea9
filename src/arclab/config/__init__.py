"""Configuration: schema.py says which keys exist and what is allowed, compose.py turns YAML and overrides into it."""
