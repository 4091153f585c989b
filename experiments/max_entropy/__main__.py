"""The paper's default problem."""

from experiments.max_entropy import plane
from experiments.run import cli

cli.main(plane.build, plane.__file__, plane.sweep)
