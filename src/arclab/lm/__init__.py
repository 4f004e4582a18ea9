"""Language models: one interface, local models of transformers, servers, and small ones for tests."""
