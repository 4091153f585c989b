"""Runs the default problem of the paper: images."""

from experiments.generalized import images
from experiments.run import cli

cli.main(images.build, images.__file__, images.sweep)
