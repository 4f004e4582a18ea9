"""A model that proposes how it is trained on a task, and learns from the proposals that worked: stages of rounds."""
