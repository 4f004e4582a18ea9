"""Train MemGen's weaver: python pretrain_memgen.py experiment=memgen_quickstart name=a (see README.md)."""

from arclab.config.compose import run_main
from arclab.launch.start import start

if __name__ == "__main__":
    run_main(lambda argv: start("pretrain_memgen.py", argv))
