"""Score a checkpoint: python evaluate.py checkpoint=runs/quickstart/demo (see README.md)."""

from arclab.app import evaluate
from arclab.config.compose import run_main

if __name__ == "__main__":
    run_main(evaluate)
