"""What solvers that ask a language model for programs have in common: the life of their evaluation, and votes as answers."""
