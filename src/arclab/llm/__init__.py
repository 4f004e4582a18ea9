"""Programs and language models: run code that nobody has read, and (later) the models that write it."""
