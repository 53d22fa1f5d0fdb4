"""What several commands take, and how it is read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import click

from mer.pipeline.errors import Together
from mer.pipeline.runtime.terminal import shown

TYPED = "mer.typed"  # where the context has the words of the command line
NO_LOCK = click.option(
    "--no-lock",
    is_flag=True,
    help="For a file system without locks: take none. One run at a time there is up to you.",
)
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N")
BY_FOLD = click.Choice(["session", "speaker", "dialogue", "published"])
RUNS = click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def command_line(context: click.Context) -> str:
    """What was typed, with the environment variables that stood for options of the command."""
    prefix = f"MER_{(context.info_name or '').upper()}_"
    variables = [
        f"{name}={shlex.quote(os.environ[name])}"
        for name in sorted(os.environ)
        if name.startswith(prefix)
    ]
    return " ".join([*variables, shlex.join(["mer", *context.meta.get(TYPED, [])])])


def parted(option: str, form: str, given: tuple[str, ...]) -> dict[str, str]:
    """What an option was given, again and again, as NAME=VALUE; a value may be empty."""
    bad = [pair for pair in given if "=" not in pair]
    if bad:
        raise click.UsageError(f"{option} {bad[0]}: expected {form}")
    split = [pair.split("=", 1) for pair in given]
    if twice := _given_twice(split):
        raise click.UsageError(f"{option} {twice}")
    return {name: value for name, value in split}


def _given_twice(split: list[list[str]]) -> str | None:
    """What is said of the first name that has two values; None: each name is there once."""
    first: dict[str, str] = {}
    for name, value in split:
        if name in first:
            both = f"{shown(first[name], 60)} and {shown(value, 60)}"
            return f"{shown(name, 60)} is given twice, as {both}; give it once"
        first[name] = value
    return None


def mapped(columns: tuple[str, ...]) -> dict[str, str]:
    """--column FIELD=NAME as a dict."""
    return parted("--column", "FIELD=NAME", columns)


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE options as a dict."""
    split = []
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise click.BadParameter(f"'{value}' is not NAME=VALUE")
        split.append([name, rest])
    if twice := _given_twice(split):
        raise click.BadParameter(twice)
    return {name: rest for name, rest in split}


def check_run_folders(runs: Iterable[Path]) -> None:
    """DataError for each that is none, said before torch is loaded."""
    from mer.fusion.runtime.files import check_run

    checks = Together()
    for run in runs:
        checks.of(partial(check_run, run))
    checks.settle()
