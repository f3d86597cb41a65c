"""What mkdocs cannot do by itself: the reference of the command line, from the commands' own help."""

import re
import textwrap
from typing import Any

import typer
from typer.cli import get_docs_for_click

from embedcam.cli import app
from embedcam.cli.options import fill_in

_HERE = "<!-- every verb's help -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of all verbs where a page asks for it."""
    if _HERE not in markdown:
        return markdown
    command = typer.main.get_command(app)
    said = fill_in(get_docs_for_click(obj=command, ctx=typer.Context(command), name="embedcam"))
    # What stands behind a backspace is not to be wrapped: an example.
    said = re.sub(r"\x08\n(.+)\n((?:  .*\n)+)", _example, said)
    # Cut short; the page's own list of contents has them.
    said = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", said)
    # The page has its title already.
    return markdown.replace(_HERE, said.partition("\n")[2])


def _example(found: re.Match[str]) -> str:
    return f"{found[1]}\n\n```text\n{textwrap.dedent(found[2])}```\n"
