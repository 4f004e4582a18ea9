"""Train TRM or ETRM: python pretrain_encoder.py experiment=quickstart name=demo (see README.md)."""

from arclab.config.compose import run_main
from arclab.config.schema import ExperimentConfig
from arclab.launch.start import start


def in_place(config: ExperimentConfig) -> int:
    from arclab.app import pretrain  # imports torch, which a process that only starts others does not need

    return pretrain(config)


if __name__ == "__main__":
    run_main(lambda argv: start(argv, in_place))
