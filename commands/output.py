"""What a command says: results on stdout, progress, notes and questions on stderr."""

from __future__ import annotations

import json
import sys

import click

from mer.pipeline.runtime.files import naming
from mer.pipeline.runtime.terminal import (
    STDERR,
    STDOUT,
    escape,
    escape_json,
    terminal_columns,
    wrapped,
)


def say(line: object, *, err: bool = False) -> None:
    """The one way to a terminal: a line whose ids, labels and paths can neither move the cursor nor
    begin another line.
    """
    width = terminal_columns(sys.stderr) if err else None
    put(wrapped(escape(str(line)), width), err=err)


def say_laid_out(text: str) -> None:
    """Text that mer has laid out in lines, whose values are escaped already."""
    put(escape(text, breaks=True))


def say_json(value: object, indent: int | None = None) -> None:
    """Control characters are in JSON's own escapes, so that what is read from it is exact."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    put(escape_json(json.dumps(value, ensure_ascii=not utf8, indent=indent)))


def put(text: str, *, err: bool = False, newline: bool = True) -> None:
    """Text as it is. Raises OSError that says which of the two could not be written: they may lead
    to a file on a full disk.
    """
    with naming(STDERR if err else STDOUT):
        click.echo(text, err=err, nl=newline)


def note(message: object) -> None:
    say(message, err=True)


def somebody_is_there() -> bool:
    """Whether a question can be answered."""
    return sys.stdin.isatty()


def agreed(question: str) -> bool:
    """Whether somebody answers a question, put on stderr, with yes."""
    asked = wrapped(f"{question}; go on? [y/N]:", terminal_columns(sys.stderr))
    return click.confirm(asked, err=True, show_default=False, prompt_suffix=" ")
