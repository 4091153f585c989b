"""Runs the default problem: methods on targets whose density is known."""

from experiments.run import cli
from experiments.tutorial import run

if __name__ == "__main__":
    cli.main(run.build, run.__file__, run.sweep)
