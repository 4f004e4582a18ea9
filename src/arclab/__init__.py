"""arclab: experiments on the Abstraction and Reasoning Corpus; see README.md for the two commands to start with."""

__version__ = "0.1.0"
