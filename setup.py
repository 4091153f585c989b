"""Everything about the package is in pyproject.toml, except how its README is read."""

import os
import pathlib
import re

from setuptools import setup


def readme_without_repository(text: str, url: str | None) -> str:
    """Returns a README that a package index can show, which has no other file.

    Relative links and pictures are put under `url`, an address of the repository's
    files such as `https://host/owner/name/raw/commit`. Without one they are replaced
    by their words, because an index would show a broken picture.
    """

    def moved(match):
        mark, words, path = match.groups()
        return f"{mark}[{words}]({url}/{path})" if url else words

    parts = text.split("```")  # programs are left alone
    parts[::2] = [
        re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", moved, part)
        for part in parts[::2]
    ]
    return "```".join(parts)


readme = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    long_description=readme_without_repository(
        readme, os.environ.get("EBMJAX_FILES_URL")
    ),
    long_description_content_type="text/markdown",
)
