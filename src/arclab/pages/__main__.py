"""python -m arclab.pages RUN [RUN ...]: compare run folders; see analyse.py."""

from arclab.config.compose import run_main
from arclab.pages.analyse import main

if __name__ == "__main__":
    run_main(main)
