"""Improve a model or its programs in rounds: python self_improve.py method=tree_search stage=round name=a (see README.md)."""

from arclab.config.compose import run_main
from arclab.launch.start import start

if __name__ == "__main__":
    run_main(lambda argv: start("self_improve.py", argv))
