"""Train TRM or ETRM: python pretrain_encoder.py experiment=quickstart name=demo (see README.md)."""

from arclab.config.compose import run_main
from arclab.launch.start import start

if __name__ == "__main__":
    run_main(lambda argv: start("pretrain_encoder.py", argv))
