"""Runs the deep kernel exponential family on a table."""

from experiments.run import cli
from experiments.tutorial.deep_kernel import run

if __name__ == "__main__":
    cli.main(run.build, run.__file__, run.sweep)
