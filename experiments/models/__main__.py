r"""Writes a trained model to one file, or lists those that come with the code.

    python -m experiments.models
    python -m experiments.models --workdir=runs/digits --out=digits.npz \
        --licence="CC BY 4.0, UCI Machine Learning Repository"

`experiments.load("digits.npz")` returns what `experiments.load("runs/digits")` does.
"""

import argparse
from collections.abc import Sequence

from experiments import models
from experiments.run.errors import ending_in_one_line
from experiments.run.workdir import say


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="", help="folder or URL of a run")
    parser.add_argument("--out", default="", help="file to write, which ends with .npz")
    parser.add_argument("--licence", default="", help="licence and source of the data")
    values = parser.parse_args(arguments)
    with ending_in_one_line():
        if not values.workdir and (values.out or values.licence):
            raise ValueError("--workdir must be the folder of a run, got ''")
        if not values.workdir:
            for name in models.names():
                record = models.read(models.FOLDER / f"{name}.npz").record
                say(f"{name}: step {record['step']}, commit {record['commit']}")
            return
        record = models.write(values.workdir, values.out, licence=values.licence)
        say(f"{values.out}: {record['problem']}, step {record['step']}")


if __name__ == "__main__":
    main()
