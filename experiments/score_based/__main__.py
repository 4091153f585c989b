"""Runs the default problem of the paper: images."""

from experiments.run import cli
from experiments.score_based import images

cli.main(images.build, images.__file__, images.sweep)
