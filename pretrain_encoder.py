"""Train TRM or ETRM: python pretrain_encoder.py experiment=quickstart name=demo (see README.md)."""

from arclab.app import pretrain
from arclab.config.compose import run_main

if __name__ == "__main__":
    run_main(pretrain)
