"""Score a checkpoint or a solver: python evaluate.py checkpoint=runs/quickstart/demo (see README.md)."""

from arclab.config.compose import run_main
from arclab.launch.start import start

if __name__ == "__main__":
    run_main(lambda argv: start("evaluate.py", argv))
