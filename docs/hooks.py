"""A hook for mkdocs that generates the reference of the command line from the commands' help."""

import re
import textwrap
from typing import Any

import typer
from typer.cli import get_docs_for_click

from embedcam.cli import app
from embedcam.cli.options import fill_in

_PLACEHOLDER = "<!-- help of all commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert the help of all commands at the placeholder."""
    if _PLACEHOLDER not in markdown:
        return markdown
    command = typer.main.get_command(app)
    reference = fill_in(get_docs_for_click(obj=command, ctx=typer.Context(command), name="embedcam"))
    # A backspace marks an example, which must not be wrapped.
    reference = re.sub(r"\x08\n(.+)\n((?:  .*\n)+)", _example, reference)
    # The list of commands repeats the page's table of contents.
    reference = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", reference)
    # The page already has a title.
    return markdown.replace(_PLACEHOLDER, reference.partition("\n")[2])


def _example(match: re.Match[str]) -> str:
    return f"{match[1]}\n\n```text\n{textwrap.dedent(match[2])}```\n"
